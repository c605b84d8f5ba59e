//! Fits a checked specification to the guest and to libcontainer.

use std::collections::HashMap;
use std::path::PathBuf;

use oci_spec::runtime::{
    Capabilities, Hook, Hooks, Linux, LinuxCapabilities, LinuxResources, Mount, PosixRlimit,
    Process, Spec,
};

use super::check::{create_hooks, is_bind, is_disk};
use super::namespaces::PidNamespace;
use super::{SpecError, namespaces, sysctl, sysfs};
use crate::container::id::Id;
use crate::container::paths;
use crate::container::user_namespace::Users;

/// What is built, and what the agent does itself beside.
#[derive(Debug)]
pub(in crate::container) struct Prepared {
    /// For libcontainer.
    pub spec: Spec,
    /// To be run before the program.
    pub start_hooks: Vec<Hook>,
    /// Limits of the container and rules of its device program.
    pub resources: Option<LinuxResources>,
    /// Limits of the process, to be set once it needs no more than its program.
    pub rlimits: Option<Vec<PosixRlimit>>,
    /// Parameters of the container's own namespaces by their names.
    pub sysctls: HashMap<String, String>,
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
    let resources = linux.resources().clone();
    linux.set_resources(None);
    spec.set_linux(Some(linux));
    let mut rlimits = None;
    if let Some(process) = spec.process_mut() {
        prepare_process(process);
        rlimits = process.rlimits().clone();
        process.set_rlimits(None);
    }
    if Users::of(&spec).are_mapped() {
        let mounts = spec.mounts_mut().take();
        spec.set_mounts(mounts.map(sysfs::bind));
    }
    for mount in spec.mounts_mut().iter_mut().flatten() {
        prepare_mount(mount);
    }
    let start_hooks = take_start_hooks(&mut spec);
    Ok(Prepared {
        spec,
        start_hooks,
        resources,
        rlimits,
        sysctls: sysctls.container,
        guest_sysctls: sysctls.guest,
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
    let programs = create_hooks(spec).iter().enumerate().map(|(index, hook)| {
        let field = format!("hooks.createContainer[{index}].path");
        (field, hook.path().clone())
    });
    root.into_iter().chain(binds).chain(programs).collect()
}

fn prepare_linux(
    linux: &mut Linux,
    id: &Id,
    own_uts: bool,
    pid: &PidNamespace,
) -> Result<sysctl::Split, SpecError> {
    let parameters = linux.sysctl().clone().unwrap_or_default();
    let split = sysctl::split(&parameters, namespaces::has_ipc(linux), own_uts)?;
    linux.set_sysctl(None);
    linux.set_namespaces(Some(namespaces::effective(linux, pid)));
    // The root is bound recursively in any case, and libcontainer knows no other names.
    let propagation = linux.rootfs_propagation().as_deref();
    let propagation = propagation.map(|kind| kind.trim_start_matches('r').to_owned());
    linux.set_rootfs_propagation(propagation.filter(|kind| !kind.is_empty()));
    if namespaces::has_time(linux) {
        // Given, but empty, it would wait for offsets that nobody writes.
        let offsets = linux.time_offsets().clone().filter(|all| !all.is_empty());
        linux.set_time_offsets(offsets);
    } else {
        linux.set_time_offsets(None);
    }
    // The specification's path is one of the host's hierarchy.
    linux.set_cgroups_path(Some(paths::cgroup(id)));
    Ok(split)
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
    for option in mount.options_mut().iter_mut().flatten() {
        // It knows these only for a mount and all below it; here nothing is below.
        if let "nosymfollow" | "symfollow" = option.as_str() {
            option.insert(0, 'r');
        }
    }
    if is_disk(mount) {
        tell_file_system(mount.options_mut().get_or_insert_default());
    }
    // libcontainer wants a source where the kernel needs none.
    if !is_bind(mount) && mount.source().is_none() {
        mount.set_source(mount.typ().clone().map(PathBuf::from));
    }
}

/// libcontainer applies these options to the mount alone, but a disk that is read-only must also
/// be opened so. With a value, which the kernel does not look at, it passes them on.
fn tell_file_system(options: &mut Vec<String>) {
    let told: Vec<_> = options
        .iter()
        .filter_map(|option| match option.as_str() {
            "ro" | "rro" => Some("ro="),
            "rw" | "rrw" => Some("rw="),
            "sync" => Some("sync="),
            "dirsync" => Some("dirsync="),
            "lazytime" => Some("lazytime="),
            _ => None,
        })
        .map(str::to_owned)
        .collect();
    options.extend(told);
}

/// Leaves those hooks in the specification that libcontainer runs.
fn take_start_hooks(spec: &mut Spec) -> Vec<Hook> {
    let hooks = spec.hooks().clone().unwrap_or_default();
    let create = hooks.create_container().clone().unwrap_or_default();
    let create = (!create.is_empty()).then(|| {
        let mut hooks = Hooks::default();
        hooks.set_create_container(Some(create));
        hooks
    });
    spec.set_hooks(create);
    hooks.start_container().clone().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_file_system_of_a_disk_hears_of_what_concerns_it() {
        let prepared = |kind: &str| {
            let mount = json!({ "destination": "/data", "type": kind, "source": "/dev/vda",
                "options": ["ro", "noatime", "rw", "sync", "rro"] });
            let mut mount: Mount = serde_json::from_value(mount).unwrap();
            prepare_mount(&mut mount);
            mount.options().clone().unwrap()[5..].to_vec()
        };
        assert_eq!(prepared("ext4"), ["ro=", "rw=", "sync=", "ro="]);
        assert!(prepared("tmpfs").is_empty());
    }
}
