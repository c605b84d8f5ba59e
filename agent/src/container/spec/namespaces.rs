//! Which namespaces a container of a guest gets.
//!
//! The guest is the pod: its network namespace is the pod's, so a container
//! never gets one of its own. A UTS or IPC namespace is made when the
//! specification lists one, and is the guest's, shared by the pod's containers,
//! when it does not. Mount and PID namespaces are required, because without
//! them the container would share the agent's; the latter unless the host asks
//! for the pod's. A cgroup namespace is always
//! made. Namespaces of others (`path`) are files of the host: refused.

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
        if let LinuxNamespaceType::User | LinuxNamespaceType::Time = namespace.typ() {
            return Err(SpecError::new(
                format!("{field}.type"),
                format!("a {} namespace is not supported", namespace.typ()),
            ));
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
    for (mappings, field) in [
        (linux.uid_mappings(), "linux.uidMappings"),
        (linux.gid_mappings(), "linux.gidMappings"),
    ] {
        if mappings
            .as_ref()
            .is_some_and(|mappings| !mappings.is_empty())
        {
            return Err(SpecError::new(field, "a user namespace is not supported"));
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
