//! Which namespaces a container of a guest gets.
//!
//! The guest is the pod: its network namespace is the pod's, so a container
//! never gets one of its own. A UTS or IPC namespace is made when the
//! specification lists one, and is the guest's, shared by the pod's containers,
//! when it does not. Mount and PID namespaces are required, because without
//! them the container would share the agent's; the latter unless the host asks
//! for the pod's. A cgroup namespace is always made, one of users or of time when
//! it is listed. Namespaces of others (`path`) are files of the host: refused.

use std::path::PathBuf;

use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, Spec};

use super::SpecError;

fn listed(linux: &Linux) -> &[LinuxNamespace] {
    linux.namespaces().as_deref().unwrap_or_default()
}

fn lists(linux: &Linux, kind: LinuxNamespaceType) -> bool {
    listed(linux)
        .iter()
        .any(|namespace| namespace.typ() == kind)
}

/// Whether the container gets a UTS namespace of its own.
pub(super) fn has_uts(spec: &Spec) -> bool {
    spec.linux()
        .as_ref()
        .is_some_and(|linux| lists(linux, LinuxNamespaceType::Uts))
}

/// Whether the container gets an IPC namespace of its own.
pub(super) fn has_ipc(linux: &Linux) -> bool {
    lists(linux, LinuxNamespaceType::Ipc)
}

/// Whether the container gets a time namespace of its own.
pub(in crate::container) fn has_time(linux: &Linux) -> bool {
    lists(linux, LinuxNamespaceType::Time)
}

/// Which PID namespace a container is to have.
#[derive(Debug)]
pub(in crate::container) enum PidNamespace {
    /// Its own, which its specification must list.
    Own,
    /// Its own, whatever its specification lists.
    New,
    /// The one of this file.
    Join(PathBuf),
}

/// Refuses namespaces that a guest cannot give.
pub(super) fn check_namespaces(linux: &Linux, pid: &PidNamespace) -> Result<(), SpecError> {
    for (index, namespace) in listed(linux).iter().enumerate() {
        let field = format!("linux.namespaces[{index}]");
        if let Some(path) = namespace.path() {
            let reason = format!("{path:?} is not known in the guest");
            return Err(SpecError::new(format!("{field}.path"), reason));
        }
    }
    for (kind, name, required) in [
        (LinuxNamespaceType::Mount, "mount", true),
        (
            LinuxNamespaceType::Pid,
            "pid",
            matches!(pid, PidNamespace::Own),
        ),
    ] {
        if required && !lists(linux, kind) {
            return Err(SpecError::new(
                "linux.namespaces",
                format!("a {name} namespace is required"),
            ));
        }
    }
    check_users(linux, pid)
}

/// A user namespace and the mappings come together.
fn check_users(linux: &Linux, pid: &PidNamespace) -> Result<(), SpecError> {
    let is_listed = lists(linux, LinuxNamespaceType::User);
    if is_listed && matches!(pid, PidNamespace::Join(_)) {
        let reason = "a user namespace has no power over the pod's PID namespace";
        return Err(SpecError::new("linux.namespaces", reason));
    }
    for (mappings, field) in [
        (linux.uid_mappings(), "linux.uidMappings"),
        (linux.gid_mappings(), "linux.gidMappings"),
    ] {
        let is_given = mappings.as_ref().is_some_and(|all| !all.is_empty());
        if is_given && !is_listed {
            return Err(SpecError::new(field, "needs a user namespace"));
        }
        if !is_given && is_listed {
            return Err(SpecError::new(field, "a user namespace needs some"));
        }
    }
    Ok(())
}

/// Made, or for PIDs joined, whatever a specification lists.
const ALWAYS: [LinuxNamespaceType; 2] = [LinuxNamespaceType::Cgroup, LinuxNamespaceType::Pid];

/// The namespaces to make for a specification that was checked.
pub(super) fn effective(linux: &Linux, pid: &PidNamespace) -> Vec<LinuxNamespace> {
    let kinds = [
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Cgroup,
        LinuxNamespaceType::User,
        LinuxNamespaceType::Time,
    ];
    kinds
        .into_iter()
        .filter(|kind| ALWAYS.contains(kind) || lists(linux, *kind))
        .filter_map(|kind| {
            let builder = LinuxNamespaceBuilder::default().typ(kind);
            let builder = match pid {
                PidNamespace::Join(file) if kind == LinuxNamespaceType::Pid => builder.path(file),
                _ => builder,
            };
            builder.build().ok()
        })
        .collect()
}
