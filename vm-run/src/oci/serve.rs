//! What a keeper does for verbs that come over its control socket.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use nacre_pod::agent::{AgentError, ProcessId};
use nacre_pod::pod::{Pod, PodError};
use nacre_pod::stdio::{Stdio, TerminalSize};
use nacre_pod::timing::{Moment, Timing};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::error::OciError;
use super::state::{Home, Record, Status};
use super::stats;
use super::wire::{self, Answer, Exec, Follow, Request};
use crate::launch::status_of;

/// SIGKILL.
const KILL: u32 = 9;

/// Largest number of a signal.
const MAX_SIGNAL: u32 = 64;

/// How long a container may take to end after SIGKILL before its pod is killed, and a further
/// process before its streams are cut.
const KILLED: Duration = Duration::from_secs(10);

/// One container, as its verbs see it.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) pod: Pod,
    id: String,
    home: Rc<Home>,
    record: RefCell<Record>,
    /// Somebody has asked for the start.
    started: Cell<bool>,
    executed: Cell<u64>,
    /// The guest does not end the container, so the host must.
    unkillable: Notify,
    /// The status is another one.
    changed: Notify,
}

impl Service {
    pub(crate) fn new(pod: Pod, record: Record, home: Rc<Home>) -> Self {
        Self {
            pod,
            id: record.id.clone(),
            home,
            record: RefCell::new(record),
            started: Cell::default(),
            executed: Cell::default(),
            unkillable: Notify::new(),
            changed: Notify::new(),
        }
    }

    fn status(&self) -> Status {
        self.record.borrow().status
    }

    /// Notes a new status where everybody sees it.
    pub(crate) fn enter(&self, status: Status) -> Result<(), OciError> {
        let mut record = self.record.borrow_mut();
        record.status = status;
        self.changed.notify_waiters();
        self.home.write(&record).map_err(OciError::system("state"))
    }

    /// Waits until the container is not paused: nothing that is made in it would run before.
    async fn resumed(&self) {
        self.changes_to(|status| status != Status::Paused).await;
    }

    async fn changes_to(&self, is_wanted: impl Fn(Status) -> bool) {
        while !is_wanted(self.status()) {
            self.changed.notified().await;
        }
    }

    /// Notes the end of the container.
    pub(crate) fn stopped(&self) {
        match self.enter(Status::Stopped) {
            // The container has been deleted meanwhile.
            Err(OciError::System { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => log::warn!("{error}"),
            Ok(()) => {}
        }
    }

    /// Waits until the container can only be ended with its pod.
    pub(crate) async fn killed(&self) {
        self.unkillable.notified().await;
    }

    /// Starts the container's program.
    pub(crate) async fn start(&self) -> Result<(), OciError> {
        match self.status() {
            Status::Created if !self.started.get() => {}
            Status::Created | Status::Running => return Err(OciError::AlreadyRunning),
            Status::Stopped => return Err(OciError::HasStopped),
            status => return Err(OciError::StartIn(status)),
        }
        self.started.set(true);
        self.pod
            .start(&self.id)
            .await
            .map_err(crate::launch::RunError::from)?;
        // It may have ended already.
        match self.status() {
            Status::Created => self.enter(Status::Running),
            _ => Ok(()),
        }
    }

    async fn signal(&self, number: u32, all: bool) -> Result<(), OciError> {
        if self.status() == Status::Stopped {
            return Err(OciError::NotRunning);
        }
        if number > MAX_SIGNAL {
            return Err(OciError::Other(
                "unable to signal init: invalid argument".into(),
            ));
        }
        if number == 0 {
            return Ok(());
        }
        let first = ProcessId::first_of(&self.id);
        let sent = self.pod.signal(first, number, all).await;
        sent.map_err(|error| match error {
            PodError::Agent(AgentError::NotFound(_) | AgentError::FailedPrecondition(_))
            | PodError::Gone(_) => OciError::NotRunning,
            error => OciError::Other(format!("unable to signal init: {error}")),
        })
    }

    /// A container that does not end of SIGKILL ends with its pod. The guest is not asked
    /// again: it could give this question another answer than the one that the keeper waits for.
    async fn kill(self: Rc<Self>) {
        let ended = self.changes_to(|status| status == Status::Stopped);
        if tokio::time::timeout(KILLED, ended).await.is_err() {
            log::warn!("the guest does not end the container: the pod is killed");
            self.unkillable.notify_one();
        }
    }

    async fn pause(&self) -> Result<(), OciError> {
        match self.status() {
            Status::Created | Status::Running => {}
            _ => return Err(OciError::NotRunning),
        }
        self.pod.pause(&self.id).await.map_err(OciError::from)?;
        self.enter(Status::Paused)
    }

    async fn resume(&self) -> Result<(), OciError> {
        if self.status() != Status::Paused {
            return Err(OciError::NotPaused);
        }
        self.pod.resume(&self.id).await.map_err(OciError::from)?;
        self.enter(if self.started.get() {
            Status::Running
        } else {
            Status::Created
        })
    }

    fn require_running(&self) -> Result<(), OciError> {
        match self.status() {
            Status::Stopped => Err(OciError::NotRunning),
            _ => Ok(()),
        }
    }

    /// Answers one request, other than to execute something.
    async fn answer(self: &Rc<Self>, request: Request) -> Result<Answer, OciError> {
        match request {
            Request::Start => self.start().await?,
            Request::Signal { number, all } => {
                if number == KILL {
                    tokio::task::spawn_local(Rc::clone(self).kill());
                }
                self.signal(number, all).await?;
            }
            Request::Pause => self.pause().await?,
            Request::Resume => self.resume().await?,
            Request::Update { resources } => {
                self.require_running()?;
                let text = resources.to_string();
                let updated = self.pod.update(&self.id, text.as_bytes()).await;
                updated.map_err(OciError::from)?;
            }
            Request::Processes => {
                self.require_running()?;
                let listed = self.pod.processes(&self.id).await;
                return Ok(Answer::Processes(listed.map_err(OciError::from)?));
            }
            Request::Stats => {
                self.require_running()?;
                let stats = self.pod.stats(&self.id).await.map_err(OciError::from)?;
                return Ok(Answer::Stats(stats::event(&self.id, &stats)));
            }
            Request::Exec(_) => return Err(OciError::Other("not alone on a connection".into())),
        }
        Ok(Answer::Done)
    }

    /// Executes a process, passes on what follows for it, and says how it ended.
    async fn exec(
        &self,
        exec: &Exec,
        fds: Vec<OwnedFd>,
        stream: &mut UnixStream,
    ) -> Result<u8, OciError> {
        if exec.ignore_paused {
            self.resumed().await;
        }
        match self.status() {
            Status::Stopped => return Err(OciError::ExecStopped),
            Status::Paused => return Err(OciError::ExecPaused),
            _ => {}
        }
        let number = self.executed.get() + 1;
        self.executed.set(number);
        let name = format!("exec-{number}");
        let id = ProcessId {
            container: &self.id,
            exec: &name,
        };
        let stdio = stdio(fds, exec.terminal)?;
        let process = exec.process.to_string();
        let executed = self.pod.exec(id, process.as_bytes(), stdio).await;
        let mut process = executed.map_err(crate::launch::RunError::from)?;
        let told = wire::send_async(stream, &Answer::Executed).await;
        let (mut from, _to) = stream.split();
        let wait = self.pod.wait(id);
        tokio::pin!(wait);
        let mut hears = told.is_ok();
        let mut killed = None;
        let end = loop {
            tokio::select! {
                end = &mut wait => break end,
                () = at(killed) => {
                    log::warn!("the guest does not end {name}: it is given up");
                    return Ok(status_of(libc::SIGKILL));
                }
                follow = wire::receive_async(&mut from), if hears => {
                    hears = matches!(follow, Ok(Some(_)));
                    let signal = match follow {
                        Ok(Some(Follow::Signal(number))) => Some(number),
                        Ok(Some(Follow::Resize(..))) => None,
                        _ => exec.bound.then_some(KILL),
                    };
                    if signal == Some(KILL) {
                        killed.get_or_insert_with(|| Instant::now() + KILLED);
                    }
                    let passed_on = match (follow, signal) {
                        (_, Some(number)) => process.control().signal(number).await,
                        (Ok(Some(Follow::Resize(columns, rows))), None) => {
                            process.control().resize(TerminalSize { columns, rows }).await
                        }
                        _ => Ok(()),
                    };
                    if let Err(error) = passed_on {
                        log::debug!("{name}: {error}");
                    }
                }
            }
        };
        let status = end.map_err(OciError::from)?.status;
        process.drain(&mut Timing::new(Moment::now())).await;
        if let Err(error) = self.pod.delete_exec(id).await {
            log::debug!("{name}: {error}");
        }
        Ok(status)
    }

    async fn converse(self: Rc<Self>, mut stream: UnixStream) -> io::Result<()> {
        let (request, fds) = wire::receive_with_fds(&mut stream).await?;
        let answer = match request {
            Request::Exec(exec) => self.exec(&exec, fds, &mut stream).await.map(Answer::Exited),
            request => self.answer(request).await,
        };
        let answer = answer.unwrap_or_else(|error| Answer::Failed(error.to_string()));
        wire::send_async(&mut stream, &answer).await
    }
}

/// Answers each connection in a task of its own: a call that hangs holds up no other.
pub(crate) async fn accept(
    listener: &UnixListener,
    service: &Rc<Service>,
    connections: &mut JoinSet<()>,
) -> Infallible {
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let conversation = Rc::clone(service).converse(stream);
                    connections.spawn_local(async {
                        if let Err(error) = conversation.await {
                            log::debug!("control socket: {error}");
                        }
                    });
                }
                Err(error) => {
                    log::warn!("control socket: {error}");
                    // Too many descriptors, as a rule; some will be closed.
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Waits until then; for ever, if it is not known.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Three descriptors, or one of a terminal.
fn stdio(fds: Vec<OwnedFd>, terminal: Option<(u16, u16)>) -> Result<Stdio, OciError> {
    let mut fds = fds.into_iter();
    let stdio = Stdio {
        stdin: fds.next(),
        stdout: fds.next(),
        stderr: fds.next(),
        terminal: terminal.map(|(columns, rows)| TerminalSize { columns, rows }),
    };
    let complete = stdio.stderr.is_some();
    complete
        .then_some(stdio)
        .ok_or_else(|| OciError::Other("the standard descriptors did not come along".into()))
}
