//! Clones a helper, and what its child does first.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, RawFd};

use rustix::process::Pid;

/// Flag of `clone3(2)`: the child begins in the cgroup that is given.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Clones this process, which must have one thread, into a cgroup. Moving it there
/// afterwards would wait for a grace period of the kernel's.
///
/// Gives the child's identifier, or `None` in the child.
pub(super) fn into_cgroup(cgroup: BorrowedFd<'_>) -> io::Result<Option<Pid>> {
    let mut arguments = arguments();
    arguments.flags = CLONE_INTO_CGROUP;
    arguments.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    clone(&arguments)
}

/// Clones this process, which must have one thread; see [`into_cgroup`].
pub(super) fn plain() -> io::Result<Option<Pid>> {
    clone(&arguments())
}

/// Clones this process, which must have one thread, into a new user namespace; see
/// [`into_cgroup`].
pub(super) fn into_user_namespace() -> io::Result<Option<Pid>> {
    let mut arguments = arguments();
    arguments.flags = u64::from(libc::CLONE_NEWUSER.unsigned_abs());
    clone(&arguments)
}

fn arguments() -> libc::clone_args {
    // SAFETY: clone_args is plain data, for which zeroes are a valid value.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    arguments
}

fn clone(arguments: &libc::clone_args) -> io::Result<Option<Pid>> {
    // SAFETY: the arguments live as long as the call. The child gets a copy of
    // this process, whose only thread is the caller, so that no lock is held in
    // it by a thread that is gone; it shares no memory with its parent.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            std::ptr::from_ref(arguments),
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

/// Where the verdict's pipe is put, above stdio; all above it is closed.
const VERDICT: RawFd = 3;

/// Closes all descriptors but stdio and the verdict's: a path like
/// `/proc/self/fd/7` must not lead to one of the helper's.
pub(super) fn keep_only(verdict: RawFd) -> Option<File> {
    // SAFETY: in the child of a process with one thread, which uses none of its
    // parent's descriptors any more, and never returns to code that would.
    let verdict = unsafe {
        if libc::dup3(verdict, VERDICT, libc::O_CLOEXEC) < 0 && verdict != VERDICT {
            return None;
        }
        if libc::syscall(libc::SYS_close_range, VERDICT + 1, libc::c_uint::MAX, 0) < 0 {
            return None;
        }
        File::from_raw_fd(VERDICT)
    };
    debug_assert_eq!(verdict.as_raw_fd(), VERDICT);
    Some(verdict)
}
