//! The specification as the guest gets it.
//!
//! Paths of the host become paths below the share, and what belongs to the host
//! is left out: namespaces that are the pod's, the cgroup's path (the agent gives
//! each container its own), and the host's default AppArmor profile (see
//! [`refuse`](super::refuse)).

use std::path::PathBuf;

use nacre_protocol::{GUEST_SHARE, GUEST_SHARED_MEMORY};
use oci_spec::runtime::{Hooks, Spec};

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
        for mount in mounts {
            if mounts::is_bind(mount) && role.is_shared_memory(mount) {
                mount.set_source(Some(GUEST_SHARED_MEMORY.into()));
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
