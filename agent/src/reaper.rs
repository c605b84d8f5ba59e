//! Waiting for children: by pidfd for those that somebody waits for, and a
//! sweep for the orphans that fall to PID 1.
//!
//! The sweep looks at a dead child without reaping it (`WNOWAIT`) and leaves it
//! alone when it is tracked, so an exit status always reaches its owner.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use crate::poll;

/// Knows which children have an owner.
#[derive(Default)]
pub(crate) struct Reaper {
    tracked: Mutex<HashSet<i32>>,
    /// Wakes the sweep when an owner has reaped, for the orphans behind it.
    reaped: Notify,
}

/// How a process ended, as a shell would say it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct ExitStatus(pub(crate) u32);

/// What is added to the number of the signal that ended a process.
const SIGNAL_BASE: u32 = 128;

impl Reaper {
    /// Says that the caller waits for `pid` itself, with [`Reaper::wait`].
    pub(crate) fn track(&self, pid: i32) {
        self.lock().insert(pid);
    }

    /// Takes back [`Reaper::track`]: the child becomes an orphan like any other.
    pub(crate) fn forget(&self, pid: i32) {
        self.lock().remove(&pid);
        self.reaped.notify_one();
    }

    /// Waits for the end of a tracked child and reaps it.
    ///
    /// # Errors
    /// When the pidfd is not one of a child; the child is no longer tracked then.
    pub(crate) async fn wait(&self, pid: i32, pidfd: impl AsFd) -> io::Result<ExitStatus> {
        let status = match pidfd.as_fd().try_clone_to_owned() {
            Ok(pidfd) => wait_for(pidfd).await,
            Err(error) => Err(error),
        };
        self.forget(pid);
        status
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<i32>> {
        self.tracked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reaps orphans for as long as the agent lives.
    ///
    /// # Errors
    /// When SIGCHLD cannot be handled.
    pub(crate) async fn reap_orphans(&self) -> io::Result<()> {
        let mut child_signal = signal(SignalKind::child())?;
        loop {
            self.sweep();
            tokio::select! {
                _ = child_signal.recv() => {}
                () = self.reaped.notified() => {}
            }
        }
    }

    /// Reaps dead children up to the first that is tracked.
    fn sweep(&self) {
        while let Some(pid) = peek_dead_child() {
            if self.lock().contains(&pid.as_raw_pid()) {
                return;
            }
            if let Err(error) = waitid(WaitId::Pid(pid), REAP) {
                log::warn!("cannot reap orphan {}: {error}", pid.as_raw_pid());
            }
        }
    }
}

const REAP: WaitIdOptions = WaitIdOptions::EXITED.union(WaitIdOptions::NOHANG);

/// A dead child that nobody has reaped yet; it stays so.
fn peek_dead_child() -> Option<Pid> {
    // SAFETY: siginfo_t is plain data, for which zeroes are a valid value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WEXITED | libc::WNOWAIT | libc::WNOHANG;
    loop {
        // SAFETY: `info` is a valid place for the kernel to write to. The safe
        // wrappers cannot be used: they do not say which child it was.
        if unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) } == 0 {
            break;
        }
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return None;
        }
    }
    // SAFETY: waitid succeeded, so it filled the fields of a SIGCHLD, or left
    // the zeroes when no child is dead.
    Pid::from_raw(unsafe { info.si_pid() })
}

async fn wait_for(pidfd: OwnedFd) -> io::Result<ExitStatus> {
    let pidfd = poll::register_pidfd(pidfd)?;
    loop {
        let mut ready = pidfd.readable().await?;
        let status = match waitid(WaitId::PidFd(pidfd.get_ref().as_fd()), REAP) {
            Ok(Some(status)) => status,
            Ok(None) | Err(Errno::INTR) => {
                ready.clear_ready();
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let shell_status = match status.terminating_signal() {
            Some(signal) => SIGNAL_BASE.saturating_add_signed(signal),
            None => status.exit_status().unwrap_or_default().unsigned_abs(),
        };
        return Ok(ExitStatus(shell_status));
    }
}
