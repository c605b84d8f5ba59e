//! The agent's side of a helper: a process of its own program that carries out
//! one task with one thread, hands over what it has made, and ends.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::Serialize;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

use super::Guest;
use super::cgroup::Cgroup;
use super::process::{Process, Started};
use super::report::{Failure, FailureKind, Report, receive, send};
use super::stdio::{ChildStdio, Kept};
use crate::error::{Doing, Error};
use crate::poll;
use crate::reaper::Reaper;

/// How long a helper may take.
const BUILDING: Duration = Duration::from_secs(120);

/// How long a helper may take that only looks.
const LOOKING: Duration = Duration::from_secs(5);

/// What a helper is for: the first argument of the agent's program. The second
/// is the number of the control socket's descriptor.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// Builds a container.
    BuildContainer,
    /// Starts a further process in a container.
    Exec,
    /// Parks a process in a new PID namespace.
    Park,
    /// Looks at the processes of a container.
    Look,
}

impl Role {
    const ALL: [Self; 4] = [Self::BuildContainer, Self::Exec, Self::Park, Self::Look];

    fn name(self) -> &'static str {
        match self {
            Self::BuildContainer => "build-container",
            Self::Exec => "exec",
            Self::Park => "park",
            Self::Look => "look",
        }
    }

    /// The role that an argument names.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }
}

/// What a helper has handed over.
pub(super) struct Built {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    pub(super) verdict: OwnedFd,
    pub(super) terminal: Option<OwnedFd>,
}

impl Built {
    /// Makes the process the agent's own and connects its streams. Kills it when
    /// that fails.
    pub(super) fn adopt(
        self,
        helper: HelperProcess,
        kept: Kept,
        cgroup: Option<&Cgroup>,
    ) -> Result<(Process, OwnedFd), Error> {
        let reaper = Arc::clone(&helper.reaper);
        let pid = self.pid;
        let pidfd = self.pidfd.try_clone().doing("cannot keep the process")?;
        reaper.track(pid);
        let adopted = self.watch(helper, kept, cgroup);
        if adopted.is_err() {
            // One that has ended needs no signal.
            let _ = pidfd_send_signal(pidfd, Signal::KILL);
            reaper.forget(pid);
        }
        adopted
    }

    fn watch(
        self,
        helper: HelperProcess,
        kept: Kept,
        cgroup: Option<&Cgroup>,
    ) -> Result<(Process, OwnedFd), Error> {
        let reaper = Arc::clone(&helper.reaper);
        let helper_end = helper.release()?;
        let input = kept
            .connect(self.terminal.as_ref())
            .doing("cannot connect the streams")?;
        let started = Started {
            pid: self.pid,
            pidfd: self.pidfd,
            terminal: self.terminal,
            input,
        };
        let process = Process::watch(started, helper_end, cgroup.cloned(), reaper)
            .doing("cannot watch the process")?;
        Ok((process, self.verdict))
    }
}

/// A running helper; killed when it is dropped before it has finished.
pub(super) struct HelperProcess {
    reaper: Arc<Reaper>,
    child: Child,
    pidfd: OwnedFd,
    control: AsyncFd<OwnedFd>,
    finished: bool,
}

impl HelperProcess {
    /// Executes the agent's program in a role, with the stdio given.
    pub(super) fn spawn(guest: &Guest, role: Role, stdio: ChildStdio) -> Result<Self, Error> {
        let doing = "cannot start a helper";
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).doing(doing)?;
        let control = poll::register(ours).doing(doing)?;
        // Inherited by this child alone: the agent has one thread, and starts no
        // other child before `theirs` is closed.
        rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty()).doing(doing)?;
        let child = Command::new(&guest.binary)
            .arg(role.name())
            .arg(theirs.as_raw_fd().to_string())
            .env_clear()
            .current_dir("/")
            .stdin(stdio.stdin)
            .stdout(stdio.stdout)
            .stderr(stdio.stderr)
            .spawn()
            .doing(doing)?;
        let pid = child.id().cast_signed();
        guest.reaper.track(pid);
        let pidfd = Pid::from_raw(pid)
            .ok_or(rustix::io::Errno::SRCH)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()))
            .doing(doing)?;
        Ok(Self {
            reaper: Arc::clone(&guest.reaper),
            child,
            pidfd,
            control,
            finished: false,
        })
    }

    /// Asks it to carry out its task and waits for the process that it makes,
    /// which is the helper's child until [`HelperProcess::release`].
    pub(super) async fn build(
        &self,
        request: &impl Serialize,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Built, Error> {
        match self.ask(request, fds, BUILDING).await? {
            (Report::Created { pid }, fds) => Self::take_over(pid, fds),
            (Report::Failed(failure), _) => Err(failure.into()),
            (Report::Seen, _) => Err(nothing_handed_over()),
        }
    }

    /// Asks it to look at processes; gives the file with what it has seen. The helper ends when
    /// it is dropped.
    pub(super) async fn look(&self, request: &impl Serialize) -> Result<OwnedFd, Error> {
        match self.ask(request, &[], LOOKING).await? {
            (Report::Seen, fds) => fds.into_iter().next().ok_or_else(nothing_handed_over),
            (Report::Failed(failure), _) => Err(failure.into()),
            (Report::Created { .. }, _) => Err(nothing_handed_over()),
        }
    }

    async fn ask(
        &self,
        request: &impl Serialize,
        fds: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<(Report, Vec<OwnedFd>), Error> {
        send(self.control.get_ref(), request, fds).doing("cannot ask a helper")?;
        match timeout(limit, self.report()).await {
            Ok(report) => report.doing("a helper failed"),
            Err(_late) => {
                let message = format!("a helper was not done within {limit:?}");
                Err(Error::Internal(message))
            }
        }
    }

    async fn report(&self) -> io::Result<(Report, Vec<OwnedFd>)> {
        loop {
            let mut ready = self.control.readable().await?;
            if let Ok(report) = ready.try_io(|control| receive(control.get_ref())) {
                return report;
            }
        }
    }

    fn take_over(pid: i32, fds: Vec<OwnedFd>) -> Result<Built, Error> {
        let mut fds = fds.into_iter();
        let (Some(pidfd), Some(verdict)) = (fds.next(), fds.next()) else {
            return Err(nothing_handed_over());
        };
        Ok(Built {
            pid,
            pidfd,
            verdict,
            terminal: fds.next(),
        })
    }

    /// Lets the helper go. Once it has ended, which is what comes back waits
    /// for, the process that it has made is the agent's child.
    pub(super) fn release(
        self,
    ) -> Result<impl Future<Output = Result<(), Error>> + Send + 'static, Error> {
        send(self.control.get_ref(), &(), &[]).doing("cannot release a helper")?;
        Ok(async move {
            let mut helper = self;
            let pid = helper.child.id().cast_signed();
            let waited = helper.reaper.wait(pid, helper.pidfd.as_fd()).await;
            helper.finished = true;
            waited.doing("cannot wait for a helper")?;
            Ok(())
        })
    }
}

fn nothing_handed_over() -> Error {
    Error::Internal("a helper has handed nothing over".to_owned())
}

impl Drop for HelperProcess {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        // It may have ended by itself; either way somebody must reap it.
        let _ = self.child.kill();
        let pid = self.child.id().cast_signed();
        let reaper = Arc::clone(&self.reaper);
        if let Ok(pidfd) = self.pidfd.try_clone() {
            tokio::spawn(async move { reaper.wait(pid, &pidfd).await });
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure.kind {
            FailureKind::Invalid => Self::InvalidArgument(failure.message),
            FailureKind::Precondition => Self::FailedPrecondition(failure.message),
            FailureKind::Internal => Self::Internal(failure.message),
        }
    }
}
