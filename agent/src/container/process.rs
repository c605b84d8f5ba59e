//! A process that the host knows: a container's first, or one of its execs.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::{Signal, pidfd_send_signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::cgroup::Cgroup;
use super::terminal;
use crate::error::Error;
use crate::reaper::{ExitStatus, Reaper};

/// How a process ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exit {
    /// As a shell would say it.
    pub(crate) status: ExitStatus,
    /// Guest's wall clock, nanoseconds since the epoch.
    pub(crate) at_ns: i64,
    /// The OOM killer has killed a process of the container.
    pub(crate) oom_killed: bool,
}

/// Status of a process of which the kernel would not say how it ended.
const UNKNOWN: ExitStatus = ExitStatus(255);

/// A process with a pidfd, an end that can be waited for, and maybe a terminal.
pub(crate) struct Process {
    pid: i32,
    pidfd: OwnedFd,
    terminal: Option<OwnedFd>,
    exit: watch::Receiver<Option<Exit>>,
}

/// What makes a [`Process`].
pub(super) struct Started {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    pub(super) terminal: Option<OwnedFd>,
    /// Copies the process's input; of no use once it has ended.
    pub(super) input: Option<JoinHandle<()>>,
}

impl Process {
    /// Watches over a process that `reaper` tracks already, and that is the
    /// agent's child once `helper_end` is there.
    pub(super) fn watch(
        started: Started,
        helper_end: impl Future<Output = Result<(), Error>> + Send + 'static,
        cgroup: Option<Cgroup>,
        reaper: Arc<Reaper>,
    ) -> io::Result<Self> {
        let (ended, exit) = watch::channel(None);
        let pid = started.pid;
        let pidfd = started.pidfd.try_clone()?;
        let input = started.input;
        tokio::spawn(async move {
            if let Err(error) = helper_end.await {
                log::error!("{error}");
            }
            let status = reaper.wait(pid, &pidfd).await.unwrap_or_else(|error| {
                log::error!("lost the exit status of process {pid}: {error}");
                UNKNOWN
            });
            if let Some(input) = input {
                input.abort();
            }
            let exit = Exit {
                status,
                at_ns: now_ns(),
                oom_killed: cgroup.is_some_and(|cgroup| cgroup.oom_killed()),
            };
            ended.send_replace(Some(exit));
        });
        Ok(Self {
            pid,
            pidfd: started.pidfd,
            terminal: started.terminal,
            exit,
        })
    }

    /// Process identifier in the agent's PID namespace.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Stands for it for as long as somebody holds this.
    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// How it ended, if it has.
    pub(crate) fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Waits for its end.
    pub(crate) async fn wait(&self) -> Result<Exit, Error> {
        let mut exit = self.exit.clone();
        let ended = exit.wait_for(Option::is_some).await;
        let exit = ended.ok().and_then(|exit| *exit);
        exit.ok_or_else(|| Error::Internal(format!("nobody waits for process {}", self.pid)))
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(pidfd_send_signal(self.pidfd.as_fd(), signal)?)
    }

    /// Sets the size of its terminal.
    pub(crate) fn resize(&self, columns: u16, rows: u16) -> Result<(), Error> {
        let terminal = self
            .terminal
            .as_ref()
            .ok_or_else(|| Error::FailedPrecondition("the process has no terminal".to_owned()))?;
        terminal::resize(terminal, columns, rows)
            .map_err(|error| Error::internal("cannot set the terminal's size", error))
    }
}

fn now_ns() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    since_epoch.map_or(0, |time| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX))
}
