//! A root that a container's root can be pivoted out of.
//!
//! The kernel does not allow `pivot_root` from the initramfs it started in, so
//! the same files are mounted once more, that mount is moved over the root, and
//! the agent enters it. Nothing is copied. The new root becomes read-only: a
//! workload that gets hold of the agent's program, which executes its first
//! process, cannot change it for the next one.

use std::ffi::CStr;

use rustix::mount::{MountFlags, mount_bind_recursive, mount_move, mount_remount};
use rustix::process::{chdir, chroot};

use crate::error::{Doing, Error};

/// Where the second mount of the root is made before it is moved.
const NEW_ROOT: &CStr = c"/root";

/// Moves the agent, with what is mounted by now, into a root of its own.
pub(super) fn make_movable() -> Result<(), Error> {
    mount_bind_recursive(c"/", NEW_ROOT)
        .and_then(|()| chdir(NEW_ROOT))
        .and_then(|()| mount_move(c".", c"/"))
        .and_then(|()| chroot(c"."))
        .and_then(|()| chdir(c"/"))
        .doing("cannot make the root movable")
}

/// Makes the root read-only once all mount points below it are there.
pub(super) fn seal() -> Result<(), Error> {
    mount_remount(c"/", MountFlags::BIND | MountFlags::RDONLY, c"")
        .doing("cannot make the root read-only")
}
