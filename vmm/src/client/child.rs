//! The steps between `clone3(2)` and the monitor's first instruction.
//!
//! The child is made with all its namespaces at once. Between clone and exec it
//! is a copy of one thread of a process that may have more, so it makes system
//! calls on prepared data and nothing else: no allocation, no lock.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::ptr;

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;

use super::SpawnError;

/// Everything of the kernel that a process can have of its own.
const NAMESPACES: i32 = libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_PIDFD;

/// `CLONE_INTO_CGROUP` of linux/sched.h, as wide as `clone_args` has its flags.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What a child is made of.
pub(super) struct Child<'a> {
    /// The monitor.
    pub(super) binary: &'a CString,
    /// Descriptors by the number that the monitor knows them by.
    pub(super) fds: &'a [(RawFd, OwnedFd)],
    /// Directory of the cgroup to be born in.
    pub(super) cgroup: Option<&'a OwnedFd>,
}

/// A child that waits for its identity maps.
pub(super) struct Started {
    pub(super) pid: Pid,
    pub(super) pidfd: OwnedFd,
    /// A byte written here lets the child go on.
    pub(super) release: OwnedFd,
    /// Carries a [`Failure`], or closes when the monitor is executed.
    pub(super) failure: OwnedFd,
}

/// The step at which a child failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
enum Step {
    Session = 1,
    Release,
    Descriptors,
    Groups,
    Execute,
}

/// What a child reports when it cannot become a monitor.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Failure {
    step: u32,
    errno: i32,
}

impl Failure {
    pub(super) const LEN: usize = 8;

    fn encode(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&self.step.to_ne_bytes());
        bytes[4..].copy_from_slice(&self.errno.to_ne_bytes());
        bytes
    }

    pub(super) fn decode(bytes: [u8; Self::LEN]) -> Self {
        let [a, b, c, d, e, f, g, h] = bytes;
        Self {
            step: u32::from_ne_bytes([a, b, c, d]),
            errno: i32::from_ne_bytes([e, f, g, h]),
        }
    }

    pub(super) fn into_error(self, binary: &Path) -> SpawnError {
        let source = io::Error::from_raw_os_error(self.errno);
        let what = match self.step {
            step if step == Step::Execute as u32 => {
                return SpawnError::Execute {
                    path: binary.to_owned(),
                    source,
                };
            }
            step if step == Step::Session as u32 => "session",
            step if step == Step::Release as u32 => "identity map",
            step if step == Step::Groups as u32 => "supplementary groups",
            _ => "descriptors",
        };
        SpawnError::Other { what, source }
    }
}

impl Child<'_> {
    /// Makes the child.
    ///
    /// # Errors
    /// What `clone3(2)` or `pipe2(2)` answers.
    pub(super) fn start(&self) -> io::Result<Started> {
        let (released, release) = pipe_with(PipeFlags::CLOEXEC)?;
        let (failure, failed) = pipe_with(PipeFlags::CLOEXEC)?;
        let mut pidfd: RawFd = -1;
        // SAFETY: all zeroes is a valid `clone_args` that asks for nothing.
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        args.pidfd = ptr::from_mut(&mut pidfd) as u64;
        args.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
        args.flags = u64::from(NAMESPACES.cast_unsigned());
        if let Some(cgroup) = self.cgroup {
            args.flags |= CLONE_INTO_CGROUP;
            args.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
        }
        // SAFETY: without CLONE_VM the child has a copy of this address space and
        // continues here, as after fork(2); it calls `run`, which never returns
        // and makes only system calls.
        let pid = unsafe {
            libc::syscall(
                libc::SYS_clone3,
                &raw mut args,
                size_of::<libc::clone_args>(),
            )
        };
        match pid {
            0 => self.run(released.as_raw_fd(), failed.as_raw_fd()),
            -1 => Err(io::Error::last_os_error()),
            pid => {
                let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
                // SAFETY: the kernel has stored a new descriptor that nobody else owns.
                let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
                let pid =
                    pid.ok_or_else(|| io::Error::other("clone3 returned no process identifier"))?;
                Ok(Started {
                    pid,
                    pidfd,
                    release,
                    failure,
                })
            }
        }
    }

    /// The child's life until it executes the monitor.
    fn run(&self, released: RawFd, failed: RawFd) -> ! {
        let Err((step, errno)) = self.become_monitor(released);
        let report = Failure {
            step: step as u32,
            errno,
        }
        .encode();
        // SAFETY: the buffer is as long as said; nothing else is left to do but to leave.
        unsafe {
            libc::write(failed, report.as_ptr().cast(), report.len());
            libc::_exit(127)
        }
    }

    fn become_monitor(&self, released: RawFd) -> Result<std::convert::Infallible, (Step, i32)> {
        // SAFETY: plain system calls without pointers.
        check(Step::Session, unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL)
        })?;
        // A session of its own: the terminal's Ctrl-C is for the container.
        // SAFETY: as above.
        check(Step::Session, unsafe { libc::setsid() })?;

        let mut byte = 0_u8;
        // SAFETY: one byte is read into a variable of one byte.
        let read = unsafe { libc::read(released, ptr::from_mut(&mut byte).cast(), 1) };
        if read != 1 {
            return Err((Step::Release, libc::EPIPE));
        }

        let mut beyond = 0;
        for (place, fd) in self.fds {
            // SAFETY: both numbers are descriptors of this process, `place` below all sources.
            check(Step::Descriptors, unsafe {
                libc::dup2(fd.as_raw_fd(), *place)
            })?;
            beyond = beyond.max(place.unsigned_abs() + 1);
        }
        // SAFETY: descriptors are only marked to be closed by exec.
        check(Step::Descriptors, unsafe {
            libc::syscall(
                libc::SYS_close_range,
                beyond,
                u32::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            )
        })?;
        // The C library's setgroups waits for threads that this child has none of.
        let none = ptr::null::<libc::gid_t>();
        // SAFETY: the list of groups is empty.
        check(Step::Groups, unsafe {
            libc::syscall(libc::SYS_setgroups, 0, none)
        })?;

        let name: &CStr = c"nacre-vmm";
        let argv = [name.as_ptr(), ptr::null()];
        let envp = [ptr::null()];
        // SAFETY: the path and both null-terminated arrays outlive the call.
        unsafe { libc::execve(self.binary.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
        Err((Step::Execute, last_errno()))
    }
}

fn check<T: Into<i64>>(step: Step, result: T) -> Result<(), (Step, i32)> {
    if result.into() < 0 {
        Err((step, last_errno()))
    } else {
        Ok(())
    }
}

fn last_errno() -> i32 {
    // SAFETY: errno is a valid variable of this thread.
    unsafe { *libc::__errno_location() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_its_step() {
        let failure = Failure {
            step: Step::Execute as u32,
            errno: libc::ENOENT,
        };
        let error = Failure::decode(failure.encode()).into_error(Path::new("/no/such"));
        assert!(
            error
                .to_string()
                .starts_with("cannot execute the monitor /no/such: No such file")
        );
    }
}
