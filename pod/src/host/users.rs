//! User namespaces that say whose the files of an ID-mapped mount are.
//!
//! The kernel takes such a mapping as a user namespace (mount_setattr(2)), and makes one for
//! nobody but a process. So a process is made for the moment that it takes to get hold of it.

use std::fmt::Write;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

/// Users or groups in a row.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct IdMapping {
    /// The first one as the source has them.
    pub(crate) source: u32,
    /// The first one as they are seen through the mount.
    pub(crate) seen: u32,
    /// How many.
    pub(crate) count: u32,
}

/// Whose the files of an ID-mapped mount are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Mapping {
    uids: Vec<IdMapping>,
    gids: Vec<IdMapping>,
    recursive: bool,
}

/// The users and groups of an ID-mapped mount. Others are nobody there.
#[derive(Debug)]
pub(crate) struct UserNamespace {
    namespace: OwnedFd,
    mapping: Mapping,
}

impl UserNamespace {
    /// Makes one; with `recursive`, it is also that of the mounts below.
    ///
    /// # Errors
    /// The kernel's answer: `EINVAL` for ranges that overlap.
    pub(crate) fn new(uids: &[IdMapping], gids: &[IdMapping], recursive: bool) -> io::Result<Self> {
        let process = Process::start()?;
        let proc = format!("/proc/{}", process.pid.as_raw_pid());
        fs::write(format!("{proc}/uid_map"), lines(uids))?;
        fs::write(format!("{proc}/gid_map"), lines(gids))?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let namespace = open(format!("{proc}/ns/user"), flags, Mode::empty())?;
        Ok(Self {
            namespace,
            mapping: Mapping {
                uids: uids.to_vec(),
                gids: gids.to_vec(),
                recursive,
            },
        })
    }

    /// Whether the mounts below have the same users.
    pub(super) fn is_recursive(&self) -> bool {
        self.mapping.recursive
    }

    /// What it maps.
    pub(super) fn mapping(&self) -> &Mapping {
        &self.mapping
    }
}

impl AsFd for UserNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

/// The text of a map; see user_namespaces(7).
fn lines(mappings: &[IdMapping]) -> String {
    let mut lines = String::new();
    for mapping in mappings {
        let IdMapping {
            source,
            seen,
            count,
        } = mapping;
        // A string takes all that is written to it.
        let _ = writeln!(lines, "{source} {seen} {count}");
    }
    lines
}

/// A process in a user namespace of its own, which does nothing. It ends when this is dropped.
struct Process {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Process {
    fn start() -> io::Result<Self> {
        let mut pidfd: RawFd = -1;
        // SAFETY: all zeroes is a valid `clone_args` that asks for nothing.
        let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
        arguments.pidfd = std::ptr::from_mut(&mut pidfd) as u64;
        arguments.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
        arguments.flags = u64::from((libc::CLONE_NEWUSER | libc::CLONE_PIDFD).unsigned_abs());
        // SAFETY: without CLONE_VM the child has a copy of this address space, and makes
        // nothing but system calls until it is killed.
        let pid = unsafe {
            libc::syscall(
                libc::SYS_clone3,
                &raw mut arguments,
                size_of::<libc::clone_args>(),
            )
        };
        if pid == 0 {
            // SAFETY: plain system calls without pointers.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                loop {
                    libc::pause();
                }
            }
        }
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has stored a new descriptor that nobody else owns.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("clone3 returned no process identifier"))?;
        Ok(Self { pid, pidfd })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_has_a_line_for_each_range() {
        let range = |source, seen, count| IdMapping {
            source,
            seen,
            count,
        };
        assert_eq!(
            lines(&[range(0, 100_000, 1000), range(1000, 5, 1)]),
            "0 100000 1000\n1000 5 1\n"
        );
    }
}
