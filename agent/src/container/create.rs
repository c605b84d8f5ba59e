//! Creates a container: bundle, cgroup, stdio, and the helper that builds it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use nacre_protocol::agent::{CreateContainerRequest, Stdio};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

use super::Container;
use super::cgroup::Cgroup;
use super::helper::CONFIG;
use super::id::ContainerId;
use super::process::{Process, Started};
use super::report::{BuildRequest, Failure, FailureKind, Report, receive, send};
use super::stdio::{self, ChildStdio, ClaimedStreams, Plumbing};
use super::{Guest, paths};
use crate::error::{Doing, Error};
use crate::poll;

/// First argument of the agent's binary when it is to build a container; the
/// second is the number of the control socket's descriptor.
pub const HELPER_ROLE: &str = "build-container";

/// How long a container may take to be built.
const BUILDING: Duration = Duration::from_secs(120);

/// Creates the container of a request. Leaves nothing behind when it fails.
pub(super) async fn create(
    guest: &Guest,
    id: &ContainerId,
    request: &CreateContainerRequest,
) -> Result<Container, Error> {
    let stdio = request.stdio.clone().unwrap_or_default();
    let streams = ClaimedStreams::claim(&stdio, &guest.streams).await?;
    let cgroup = Cgroup::of(id);
    let bundle = Bundle::write(paths::bundle(id), &request.spec)?;
    let built = match cgroup.create().doing("cannot make the container's cgroup") {
        Ok(()) => build(guest, id, &stdio, streams, &cgroup).await,
        Err(error) => Err(error),
    };
    match built {
        Ok((init, verdict)) => Ok(Container::new(
            id.clone(),
            init,
            verdict,
            cgroup,
            bundle.keep(),
        )),
        Err(error) => {
            if let Err(left) = cgroup.remove().await {
                log::error!("cannot remove the cgroup of {}: {left}", id.as_str());
            }
            Err(error)
        }
    }
}

/// The container's directory, removed when dropped.
struct Bundle(PathBuf);

impl Bundle {
    fn write(path: PathBuf, spec: &[u8]) -> Result<Self, Error> {
        fs::create_dir_all(&path).doing("cannot make the container's directory")?;
        let bundle = Self(path);
        fs::write(bundle.0.join(CONFIG), spec).doing("cannot write the specification")?;
        Ok(bundle)
    }

    fn keep(self) -> PathBuf {
        let path = self.0.clone();
        std::mem::forget(self);
        path
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        super::remove_bundle(&self.0);
    }
}

async fn build(
    guest: &Guest,
    id: &ContainerId,
    stdio: &Stdio,
    streams: ClaimedStreams,
    cgroup: &Cgroup,
) -> Result<(Process, OwnedFd), Error> {
    let (child_stdio, plumbing) = if stdio.terminal {
        (stdio::nothing()?, Err(streams))
    } else {
        let (child, plumbing) = stdio::pipes(streams)?;
        (child, Ok(plumbing))
    };
    let helper = Helper::spawn(guest, child_stdio)?;
    let request = BuildRequest {
        id: id.as_str().to_owned(),
        terminal: stdio.terminal,
        terminal_size: terminal_size(stdio),
    };
    let built = helper.build(&request).await?;
    let (pid, reaper) = (built.pid, &guest.reaper);
    reaper.track(pid);
    let adopted = adopt(guest, helper, built, plumbing, cgroup).await;
    if adopted.is_err() {
        reaper.forget(pid);
    }
    adopted
}

/// Makes a container that was built the agent's own.
async fn adopt(
    guest: &Guest,
    helper: Helper<'_>,
    built: Built,
    plumbing: Result<Plumbing, ClaimedStreams>,
    cgroup: &Cgroup,
) -> Result<(Process, OwnedFd), Error> {
    helper.finish().await?;
    let plumbing = match (plumbing, &built.terminal) {
        (Ok(plumbing), _) => Ok(plumbing),
        (Err(streams), Some(master)) => Plumbing::of_terminal(streams, master),
        (Err(_), None) => Err(io::Error::other("the container has no terminal")),
    };
    let input = plumbing
        .and_then(Plumbing::run)
        .doing("cannot connect the streams")?;
    let started = Started {
        pid: built.pid,
        pidfd: built.pidfd,
        terminal: built.terminal,
        input,
    };
    let init = Process::watch(started, cgroup.clone(), guest.reaper.clone())
        .doing("cannot watch the container")?;
    Ok((init, built.verdict))
}

/// Columns and rows, if the host has said any.
fn terminal_size(stdio: &Stdio) -> Option<(u16, u16)> {
    let size = stdio.terminal_size.as_ref()?;
    let bounded = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
    Some((bounded(size.columns), bounded(size.rows)))
}

/// What a helper has handed over.
struct Built {
    pid: i32,
    pidfd: OwnedFd,
    verdict: OwnedFd,
    terminal: Option<OwnedFd>,
}

/// A running helper; killed when it is dropped before it has finished.
struct Helper<'a> {
    guest: &'a Guest,
    child: Child,
    pidfd: OwnedFd,
    control: AsyncFd<OwnedFd>,
    finished: bool,
}

impl<'a> Helper<'a> {
    fn spawn(guest: &'a Guest, stdio: ChildStdio) -> Result<Self, Error> {
        let doing = "cannot start the container's builder";
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).doing(doing)?;
        let control = poll::register(ours).doing(doing)?;
        // Inherited by this child alone: the agent has one thread, and starts no
        // other child before `theirs` is closed.
        rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty()).doing(doing)?;
        let child = Command::new(&guest.binary)
            .arg(HELPER_ROLE)
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
            guest,
            child,
            pidfd,
            control,
            finished: false,
        })
    }

    async fn build(&self, request: &BuildRequest) -> Result<Built, Error> {
        send(self.control.get_ref(), request, &[]).doing("cannot ask the container's builder")?;
        let (report, fds) = match timeout(BUILDING, self.report()).await {
            Ok(report) => report.doing("the container's builder failed")?,
            Err(_late) => {
                let message = format!("the container was not built within {BUILDING:?}");
                return Err(Error::Internal(message));
            }
        };
        match report {
            Report::Created { pid } => Self::take_over(pid, fds),
            Report::Failed(failure) => Err(failure.into()),
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
            let message = "the container's builder has handed nothing over";
            return Err(Error::Internal(message.to_owned()));
        };
        Ok(Built {
            pid,
            pidfd,
            verdict,
            terminal: fds.next(),
        })
    }

    /// Lets the helper go, which leaves the container's process to the agent.
    async fn finish(mut self) -> Result<(), Error> {
        send(self.control.get_ref(), &(), &[]).doing("cannot release the container's builder")?;
        let pid = self.child.id().cast_signed();
        let waited = self.guest.reaper.wait(pid, self.pidfd.as_fd()).await;
        self.finished = true;
        waited.doing("cannot wait for the container's builder")?;
        Ok(())
    }
}

impl Drop for Helper<'_> {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        // It may have ended by itself; either way somebody must reap it.
        let _ = self.child.kill();
        let pid = self.child.id().cast_signed();
        let reaper = Arc::clone(&self.guest.reaper);
        if let Ok(pidfd) = self.pidfd.try_clone() {
            tokio::spawn(async move { reaper.wait(pid, &pidfd).await });
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure.kind {
            FailureKind::Invalid => Self::InvalidArgument(failure.message),
            FailureKind::Internal => Self::Internal(failure.message),
        }
    }
}
