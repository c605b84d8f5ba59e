//! The specification as the guest gets it.
//!
//! Paths of the host become paths below the share, and what belongs to the host
//! is left out: namespaces that are the pod's, the cgroup's path (the agent gives
//! each container its own), and the host's default AppArmor profile (see
//! [`refuse`](super::refuse)).

use std::path::PathBuf;

use nacre_protocol::{GUEST_SHARE, GUEST_SHARED_MEMORY};
use oci_spec::runtime::{Hooks, Mount, Spec};

use super::{Role, mounts};

/// Translates `spec` for the container `container`, whose bind mounts are those
/// numbered `binds`.
pub(super) fn for_guest(
    spec: &Spec,
    role: Role,
    container: &str,
    binds: impl IntoIterator<Item = usize>,
) -> Spec {
    let share = PathBuf::from(GUEST_SHARE).join(container);
    let mut guest = spec.clone();
    if let Some(root) = guest.root_mut() {
        root.set_path(share.join("rootfs"));
    }
    if let Some(mounts) = guest.mounts_mut() {
        for index in binds {
            if let Some(mount) = mounts.get_mut(index) {
                mount.set_source(Some(share.join("mounts").join(index.to_string())));
            }
        }
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
        role.keep_own_namespaces(linux);
        drop_empty_huge_page_limits(linux);
    }
    if let Some(process) = guest.process_mut() {
        process.set_apparmor_profile(None);
    }
    guest.set_hooks(guest.hooks().as_ref().map(hooks_of_the_container));
    guest
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

/// Those that run inside the container, programs of its own root.
fn hooks_of_the_container(hooks: &Hooks) -> Hooks {
    let mut kept = Hooks::default();
    kept.set_start_container(hooks.start_container().clone());
    kept
}

/// A limit of no huge pages is kept by a guest that has none; its cgroups may
/// have no file to write it into.
fn drop_empty_huge_page_limits(linux: &mut oci_spec::runtime::Linux) {
    if let Some(resources) = linux.resources_mut() {
        resources.set_hugepage_limits(None);
    }
}
