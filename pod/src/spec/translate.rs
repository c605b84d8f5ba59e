//! The specification as the guest gets it.
//!
//! Paths of the host become paths below the share, and what belongs to the host
//! is left out: namespaces that are the pod's, the cgroup's path (the agent gives
//! each container its own), and the host's default profiles and labels (see
//! [`labels`](super::labels)).

use nacre_protocol::GUEST_SHARED_MEMORY;
use oci_spec::runtime::{Hooks, Mount, Spec};

use super::disks::InGuest;
use super::{Role, devices, hook_programs, id_maps, mounts};
use crate::host::Source;

/// What of the host a container is given, in the share by now.
pub(super) struct Shared<'a> {
    pub(super) rootfs: &'a Source,
    /// Sources of bind mounts by their number in the specification.
    pub(super) binds: &'a [(usize, Source)],
    /// Programs of hooks.
    pub(super) hook_programs: &'a [(usize, Source)],
}

/// Translates `spec` for a container that is given what `shared` says, and whose disks the
/// guest has as `disks` says.
pub(super) fn for_guest(spec: &Spec, role: Role, shared: &Shared<'_>, disks: &InGuest<'_>) -> Spec {
    let mut guest = spec.clone();
    if let Some(root) = guest.root_mut() {
        root.set_path(shared.rootfs.guest_path());
    }
    if let Some(mounts) = guest.mounts_mut() {
        for (index, source) in shared.binds {
            if let Some(mount) = mounts.get_mut(*index) {
                mount.set_source(Some(source.guest_path()));
                inherit(mount, source.options());
                id_maps::drop(mount);
            }
        }
        disks.set_sources(mounts);
        let joins_ipc = role.joins_ipc(spec.linux().as_ref());
        for mount in mounts
            .iter_mut()
            .filter(|mount| role.is_shared_memory(mount))
        {
            if mounts::is_bind(mount) {
                mount.set_source(Some(GUEST_SHARED_MEMORY.into()));
            } else if joins_ipc {
                *mount = shared_memory(mount);
            }
        }
    }
    if let Some(linux) = guest.linux_mut() {
        linux.set_cgroups_path(None);
        linux.set_mount_label(None);
        role.keep_own_namespaces(linux);
        disks.set_rules(linux);
        drop_what_the_guest_has_not(linux, disks);
    }
    if let Some(process) = guest.process_mut() {
        process.set_apparmor_profile(None);
        process.set_selinux_label(None);
    }
    let hooks = guest.hooks().as_ref();
    let hooks = hooks.map(|hooks| hooks_of_the_guest(hooks, shared.hook_programs));
    guest.set_hooks(hooks);
    guest
}

/// Adds options of a mount's source. The mount's own come later, and so count.
fn inherit(mount: &mut Mount, options: &[&str]) {
    if !options.is_empty() {
        let own = mount.options().clone().unwrap_or_default();
        let options = options.iter().map(|option| (*option).to_owned());
        mount.set_options(Some(options.chain(own).collect()));
    }
}

/// The pod's shared memory in place of a file system of the container's own.
/// Where containerd has made none on the host (pods of the Sandbox API), it asks
/// for one in each container.
fn shared_memory(mount: &Mount) -> Mount {
    let mut shared = mount.clone();
    let options = ["rbind", "nosuid", "nodev", "noexec"].map(str::to_owned);
    shared.set_typ(Some("bind".to_owned()));
    shared.set_source(Some(GUEST_SHARED_MEMORY.into()));
    shared.set_options(Some(options.to_vec()));
    shared
}

/// Those that run inside the guest: programs of the container's own root, and programs of
/// the host, which are in the share.
fn hooks_of_the_guest(hooks: &Hooks, programs: &[(usize, Source)]) -> Hooks {
    let mut kept = Hooks::default();
    kept.set_start_container(hooks.start_container().clone());
    let programs = hook_programs::of(hooks).iter().zip(programs);
    let shared = programs.map(|(hook, (_, program))| {
        let mut shared = hook.clone();
        if hook.args().as_deref().unwrap_or_default().is_empty() {
            shared.set_args(Some(vec![hook.path().display().to_string()]));
        }
        shared.set_path(program.guest_path());
        shared
    });
    kept.set_create_container(Some(shared.collect()));
    kept
}

/// Devices of a privileged container that the guest cannot have, and the host's CPUs, which the
/// monitor runs on. Disks get the guest's numbers.
fn drop_what_the_guest_has_not(linux: &mut oci_spec::runtime::Linux, disks: &InGuest<'_>) {
    if let Some(devices) = linux.devices_mut() {
        let mut indices = 0..;
        devices.retain_mut(|device| {
            let number = indices
                .next()
                .and_then(|index| disks.number_of_device(index));
            if let Some((major, minor)) = number {
                device.set_major(major);
                device.set_minor(minor);
                return true;
            }
            let kind = device.typ();
            devices::can_be_had(kind.as_str(), device.major(), device.minor())
        });
    }
    let resources = linux.resources_mut().as_mut();
    if let Some(cpu) = resources.and_then(|resources| resources.cpu_mut().as_mut()) {
        cpu.set_cpus(None);
    }
}
