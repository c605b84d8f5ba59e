//! The monitor's root: an empty, read-only tmpfs with the share and the monitor's
//! own `/proc/self/fd`, through which the file server opens again what it holds.
//! Nothing else of procfs is there: neither the host's controls nor the monitor's
//! memory, which a thread could make code of by writing to it as a file.

use std::fs::{create_dir, create_dir_all};
use std::path::Path;

use rustix::fs::{Mode, chmod};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive,
    mount_change, mount_remount, unmount,
};
use rustix::process::{chdir, pivot_root};

use super::JailError;

/// Where the share is in the jail.
pub const SHARE: &str = "/share";

const BARE: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// Makes the root on the empty directory `jail` and leaves the old one.
pub(super) fn pivot(jail: &Path, share: &Path) -> Result<(), JailError> {
    // What the front door mounts into the share later arrives here, never the reverse.
    let downstream = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", downstream).map_err(JailError::at("mount propagation"))?;

    mount(
        "nacre-jail",
        jail,
        "tmpfs",
        BARE,
        c"mode=0755,size=4k,nr_inodes=8",
    )
    .map_err(JailError::at("tmpfs for the root"))?;
    let new_share = jail.join("share");
    create_dir(&new_share).map_err(JailError::at("directory of the share"))?;
    descriptors(&new_share, &jail.join("proc/self/fd"))?;
    mount_bind_recursive(share, &new_share).map_err(JailError::at("bind mount of the share"))?;
    chmod(jail, Mode::from_raw_mode(0o555)).map_err(JailError::at("mode of the root"))?;
    mount_remount(jail, MountFlags::BIND | MountFlags::RDONLY | BARE, c"")
        .map_err(JailError::at("read-only root"))?;

    // The old root is stacked on the new one, and then goes with all its mounts.
    chdir(jail).map_err(JailError::at("chdir to the new root"))?;
    pivot_root(".", ".").map_err(JailError::at("pivot_root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(JailError::at("unmount of the old root"))?;
    chdir("/").map_err(JailError::at("chdir to /"))
}

/// Mounts the monitor's directory of descriptors at `place`, by way of a procfs
/// that is mounted on the empty directory `scratch` for as long as that takes.
fn descriptors(scratch: &Path, place: &Path) -> Result<(), JailError> {
    const WHAT: &str = "mount of /proc/self/fd";
    create_dir_all(place).map_err(JailError::at(WHAT))?;
    mount("proc", scratch, "proc", BARE, c"subset=pid").map_err(JailError::at(WHAT))?;
    // The monitor is the first process of its PID namespace.
    mount_bind(scratch.join("1/fd"), place).map_err(JailError::at(WHAT))?;
    unmount(scratch, UnmountFlags::DETACH).map_err(JailError::at(WHAT))
}
