//! Fits a checked specification to the guest and to libcontainer.

use std::collections::HashMap;
use std::path::PathBuf;

use oci_spec::runtime::{
    Capabilities, Hooks, HooksBuilder, Linux, LinuxCapabilities, LinuxDeviceCgroup, Mount, Process,
    Spec,
};

use super::check::is_bind;
use super::namespaces::PidNamespace;
use super::{SpecError, namespaces, sysctl};
use crate::container::id::Id;
use crate::container::paths;

/// What is built, and what the agent does itself beside.
#[derive(Debug)]
pub(in crate::container) struct Prepared {
    /// For libcontainer.
    pub spec: Spec,
    /// Rules of the container's device program.
    pub devices: Option<Vec<LinuxDeviceCgroup>>,
    /// Parameters of the guest's kernel: path below `/proc/sys` and value.
    pub guest_sysctls: Vec<(String, String)>,
    /// Paths below the share that the container is given: field and path.
    pub shared: Vec<(String, PathBuf)>,
}

/// Fits `spec`, which passed [`super::check`], to the guest.
///
/// `hostname` is the guest's own: a container without a UTS namespace may ask
/// for no other.
pub(in crate::container) fn prepare(
    mut spec: Spec,
    id: &Id,
    hostname: &str,
    pid: &PidNamespace,
) -> Result<Prepared, SpecError> {
    share_hostname(&mut spec, hostname)?;
    let shared = shared_paths(&spec);
    let own_uts = namespaces::has_uts(&spec);
    let mut linux = spec.linux().clone().unwrap_or_default();
    let sysctls = prepare_linux(&mut linux, id, own_uts, pid)?;
    let devices = linux
        .resources()
        .as_ref()
        .and_then(|resources| resources.devices().clone());
    spec.set_linux(Some(linux));
    if let Some(process) = spec.process_mut() {
        prepare_process(process);
    }
    for mount in spec.mounts_mut().iter_mut().flatten() {
        prepare_mount(mount);
    }
    let hooks = guest_hooks(spec.hooks().as_ref());
    spec.set_hooks(hooks);
    Ok(Prepared {
        spec,
        devices,
        guest_sysctls: sysctls,
        shared,
    })
}

fn share_hostname(spec: &mut Spec, guest: &str) -> Result<(), SpecError> {
    if namespaces::has_uts(spec) {
        return Ok(());
    }
    if let Some(hostname) = spec.hostname()
        && hostname != guest
    {
        let reason = format!("{hostname:?} needs a uts namespace, the pod's is {guest:?}");
        return Err(SpecError::new("hostname", reason));
    }
    spec.set_hostname(None);
    Ok(())
}

fn shared_paths(spec: &Spec) -> Vec<(String, PathBuf)> {
    let root = spec
        .root()
        .as_ref()
        .map(|root| ("root.path".to_owned(), root.path().clone()));
    let binds = spec
        .mounts()
        .iter()
        .flatten()
        .enumerate()
        .filter(|(_, mount)| is_bind(mount))
        .filter_map(|(index, mount)| {
            let source = mount.source().clone()?;
            Some((format!("mounts[{index}].source"), source))
        })
        .filter(|(_, source)| source.starts_with(nacre_protocol::GUEST_SHARE));
    root.into_iter().chain(binds).collect()
}

fn prepare_linux(
    linux: &mut Linux,
    id: &Id,
    own_uts: bool,
    pid: &PidNamespace,
) -> Result<Vec<(String, String)>, SpecError> {
    let parameters = linux.sysctl().clone().unwrap_or_default();
    let split = sysctl::split(&parameters, namespaces::has_ipc(linux), own_uts)?;
    linux.set_sysctl(some_unless_empty(split.container));
    linux.set_namespaces(Some(namespaces::effective(linux, pid)));
    // The specification's path is one of the host's hierarchy.
    linux.set_cgroups_path(Some(paths::cgroup(id)));
    Ok(split.guest)
}

fn some_unless_empty(map: HashMap<String, String>) -> Option<HashMap<String, String>> {
    (!map.is_empty()).then_some(map)
}

pub(super) fn prepare_process(process: &mut Process) {
    // libcontainer takes any value for "true" where it orders seccomp.
    if process.no_new_privileges() == Some(false) {
        process.set_no_new_privileges(None);
    }
    // It leaves a set that is not given as full as the agent's own.
    let capabilities = complete(process.capabilities().as_ref());
    process.set_capabilities(Some(capabilities));
    if process.apparmor_profile().is_some() {
        process.set_apparmor_profile(None);
    }
}

/// Capability sets where those that were not given are empty.
fn complete(given: Option<&LinuxCapabilities>) -> LinuxCapabilities {
    let or_empty = |set: fn(&LinuxCapabilities) -> &Option<Capabilities>| {
        Some(
            given
                .and_then(|given| set(given).clone())
                .unwrap_or_default(),
        )
    };
    // Its default is not empty, so each set is said.
    let mut complete = LinuxCapabilities::default();
    complete
        .set_bounding(or_empty(LinuxCapabilities::bounding))
        .set_effective(or_empty(LinuxCapabilities::effective))
        .set_permitted(or_empty(LinuxCapabilities::permitted))
        .set_inheritable(or_empty(LinuxCapabilities::inheritable))
        .set_ambient(or_empty(LinuxCapabilities::ambient));
    complete
}

fn prepare_mount(mount: &mut Mount) {
    if mount.typ().as_deref() == Some("cgroup2") {
        mount.set_typ(Some("cgroup".to_owned()));
    }
    // libcontainer wants a source where the kernel needs none.
    if !is_bind(mount) && mount.source().is_none() {
        mount.set_source(mount.typ().clone().map(PathBuf::from));
    }
}

/// The one kind of hook whose program is one of the container's own files.
fn guest_hooks(hooks: Option<&Hooks>) -> Option<Hooks> {
    let start = hooks?
        .start_container()
        .clone()
        .filter(|hooks| !hooks.is_empty())?;
    HooksBuilder::default().start_container(start).build().ok()
}
