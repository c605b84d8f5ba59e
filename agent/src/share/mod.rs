//! The host's files, as the guest has them.

mod directories;

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nacre_protocol::GUEST_SHARE;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

pub(crate) use self::directories::{Directories, Held};
use crate::error::{Doing, Error};

/// Opens a path of the share, which must not lead out of it by a link that a
/// container has planted in a directory it can write to.
///
/// # Errors
/// The outer one when the share itself is not there, the inner one for the path.
pub(crate) fn open(path: &Path, flags: OFlags) -> Result<io::Result<OwnedFd>, Error> {
    let share = rustix::fs::open(GUEST_SHARE, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .doing(GUEST_SHARE)?;
    let below = path.strip_prefix(GUEST_SHARE).unwrap_or(path);
    let below = if below.as_os_str().is_empty() {
        Path::new(".")
    } else {
        below
    };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let opened = openat2(
        share,
        below,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        resolve,
    );
    Ok(opened.map_err(io::Error::from))
}
