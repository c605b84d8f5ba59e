//! Into the namespaces of a process that waits to be started.

use std::io;
use std::os::fd::AsFd;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

/// Goes to namespaces of `pid`. The helper, which has one thread, stays there.
///
/// # Errors
/// The kernel's, when the process is gone.
pub(super) fn enter(pid: Pid, namespaces: ThreadNameSpaceType) -> io::Result<()> {
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    Ok(move_into_thread_name_spaces(pidfd.as_fd(), namespaces)?)
}
