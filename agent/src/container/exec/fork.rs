//! Clones the helper into a container.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::process::Pid;

/// Flag of `clone3(2)`: the child begins in the cgroup that is given.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Clones this process, which must have one thread, into a cgroup. Moving it there
/// afterwards would wait for a grace period of the kernel's.
///
/// Gives the child's identifier, or `None` in the child.
pub(super) fn into_cgroup(cgroup: BorrowedFd<'_>) -> io::Result<Option<Pid>> {
    // SAFETY: clone_args is plain data, for which zeroes are a valid value.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = CLONE_INTO_CGROUP;
    arguments.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    arguments.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    // SAFETY: the arguments live as long as the call. The child gets a copy of
    // this process, whose only thread is the caller, so that no lock is held in
    // it by a thread that is gone; it shares no memory with its parent.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            size_of::<libc::clone_args>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Pid::from_raw(
        i32::try_from(result).map_err(io::Error::other)?,
    ))
}
