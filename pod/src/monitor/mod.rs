//! A monitor, watched: its events, its log and its end, as they come.
//!
//! One task owns the process; dropping the [`Machine`] kills it. Killing takes
//! nothing but the process's own descriptor, whatever else hangs.

mod log_tail;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nacre_vmm::client::{Monitor, ProcessEnd};
use nacre_vmm::config::DiskConfig;
use nacre_vmm::control::{Event, ExitReport, FrontDoorSocket, Request, Stats};
use rustix::process::{Signal, pidfd_send_signal};
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::UnixStream;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

pub(crate) use self::log_tail::LogTail;
use crate::poll::{self, Owned, Polled};
use crate::text::one_line;
use crate::timing::Moment;

/// How long a monitor may take to answer a question about itself.
const ANSWER: Duration = Duration::from_secs(2);

/// Most questions of a kind that wait for a monitor that does not answer: it may have been
/// taken over, and the front door is asked about it for ever.
const MAX_WAITING: usize = 16;

/// What is known of a monitor.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    /// When its `main` began and when the kernel was entered.
    pub(crate) entered: Option<(Moment, Moment)>,
    /// When the agent connected, and VM exits until then.
    pub(crate) ready: Option<(Moment, u64)>,
    /// The agent's connection has closed.
    pub(crate) agent_gone: bool,
    /// How it ended.
    pub(crate) end: Option<End>,
}

/// How a monitor ended.
#[derive(Clone, Debug)]
pub(crate) struct End {
    pub(crate) process: ProcessEnd,
    /// Its last message, if it came to that.
    pub(crate) report: Option<ExitReport>,
}

/// Those who wait for an answer, by the kinds of their questions.
#[derive(Debug, Default)]
struct Questions {
    asked: u64,
    stats: Waiting<Stats>,
    console: Waiting<String>,
    slots: Waiting<Result<u32, String>>,
}

/// Those who wait for answers of a kind, with the numbers of their questions, in order. Who
/// gives up stays until the monitor has come to that question.
#[derive(Debug)]
struct Waiting<T>(VecDeque<(u64, oneshot::Sender<T>)>);

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T> Waiting<T> {
    /// Joins those who wait; `None` where so many wait that there will be no answer.
    fn join(&mut self, question: u64) -> Option<oneshot::Receiver<T>> {
        if self.0.len() >= MAX_WAITING {
            return None;
        }
        let (sender, answer) = oneshot::channel();
        self.0.push_back((question, sender));
        Some(answer)
    }

    /// Gives the answer to a question to who has asked it. Who has given up on an earlier one
    /// has no answer to come any more.
    fn answer(&mut self, question: u64, answer: T) {
        self.0
            .retain(|(asked, sender)| *asked >= question || !sender.is_closed());
        let asked = self.0.iter().position(|(asked, _)| *asked == question);
        if let Some((_, sender)) = asked.and_then(|at| self.0.remove(at)) {
            let _ = sender.send(answer);
        }
    }
}

/// A handle on a running monitor.
#[derive(Debug)]
pub(crate) struct Machine {
    requests: Polled<FrontDoorSocket>,
    pid: u32,
    pidfd: OwnedFd,
    state: watch::Receiver<State>,
    questions: Arc<Mutex<Questions>>,
    log: LogTail,
    watcher: JoinHandle<()>,
}

impl Machine {
    /// Watches a monitor whose log is read from `log`.
    pub(crate) fn watch(monitor: Monitor, log: OwnedFd) -> io::Result<Self> {
        let duplicate = || monitor.control().as_fd().try_clone_to_owned();
        let requests = FrontDoorSocket::from(duplicate()?);
        let events = poll::add(FrontDoorSocket::from(duplicate()?), Interest::READABLE)?;
        let pid = monitor.pid().as_raw_nonzero().get().unsigned_abs();
        let pidfd = monitor.pidfd().try_clone_to_owned()?;
        let ended = poll::add(pidfd.try_clone()?, Interest::READABLE)?;
        let questions = Arc::<Mutex<Questions>>::default();
        let (state, receiver) = watch::channel(State::default());
        let watcher = Watcher {
            monitor,
            events,
            ended,
            state,
            questions: questions.clone(),
            agent: None,
            report: None,
        };
        Ok(Self {
            requests: poll::add(requests, Interest::WRITABLE)?,
            pid,
            pidfd,
            state: receiver,
            questions,
            log: LogTail::read(log)?,
            watcher: tokio::spawn(watcher.run()),
        })
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// What is known so far; changes can be waited for.
    pub(crate) fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// The newest part of the monitor's log.
    pub(crate) fn log(&self) -> &LogTail {
        &self.log
    }

    /// Opens a vsock connection to a port of the guest. A guest that refuses is
    /// a connection that ends at once.
    pub(crate) async fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let (ours, theirs) = StdStream::pair()?;
        self.send(&Request::Connect { port }, Some(theirs.into()))
            .await?;
        ours.set_nonblocking(true)?;
        UnixStream::from_std(ours)
    }

    /// What the virtual machine has used; `None` if the monitor does not answer.
    pub(crate) async fn stats(&self) -> Option<Stats> {
        let (question, answer) = self.question(|questions| &mut questions.stats)?;
        self.ask(&Request::Stats { question }, None, answer).await
    }

    /// The newest part of the guest's console; `None` if the monitor does not answer.
    pub(crate) async fn console(&self) -> Option<String> {
        let (question, answer) = self.question(|questions| &mut questions.console)?;
        self.ask(&Request::Console { question }, None, answer).await
    }

    /// Puts a disk into a slot and gives the number of the slot's device.
    ///
    /// # Errors
    /// Why there is no disk in it now, in words that may come from a monitor that was taken
    /// over; that it does not answer.
    pub(crate) async fn attach_disk(
        &self,
        slot: u32,
        disk: DiskConfig,
        fd: OwnedFd,
    ) -> Result<u32, String> {
        let request = |question| Request::AttachDisk {
            question,
            slot,
            disk,
        };
        self.ask_about_slot(request, Some(fd)).await
    }

    /// Takes the disk out of a slot.
    ///
    /// # Errors
    /// As [`attach_disk`](Self::attach_disk).
    pub(crate) async fn detach_disk(&self, slot: u32) -> Result<(), String> {
        let request = |question| Request::DetachDisk { question, slot };
        self.ask_about_slot(request, None).await.map(drop)
    }

    async fn ask_about_slot(
        &self,
        request: impl FnOnce(u64) -> Request,
        fd: Option<OwnedFd>,
    ) -> Result<u32, String> {
        let answered = async {
            let (question, answer) = self.question(|questions| &mut questions.slots)?;
            self.ask(&request(question), fd, answer).await
        };
        answered
            .await
            .unwrap_or_else(|| Err("the pod's monitor does not answer".to_owned()))
            .map_err(|reason| one_line(&reason))
    }

    /// A number for a question, and where its answer will be.
    fn question<T>(
        &self,
        kind: impl FnOnce(&mut Questions) -> &mut Waiting<T>,
    ) -> Option<(u64, oneshot::Receiver<T>)> {
        let mut questions = lock(&self.questions);
        questions.asked += 1;
        let question = questions.asked;
        Some((question, kind(&mut questions).join(question)?))
    }

    async fn ask<T>(
        &self,
        request: &Request,
        descriptor: Option<OwnedFd>,
        answer: oneshot::Receiver<T>,
    ) -> Option<T> {
        let asked = async {
            self.send(request, descriptor).await.ok()?;
            answer.await.ok()
        };
        tokio::time::timeout(ANSWER, asked).await.ok().flatten()
    }

    async fn send(&self, request: &Request, descriptor: Option<OwnedFd>) -> io::Result<()> {
        let send = |Owned(socket): &Owned<FrontDoorSocket>| {
            socket.send(request, descriptor.as_ref().map(AsFd::as_fd))
        };
        self.requests.async_io(Interest::WRITABLE, send).await
    }

    /// Ends the monitor, and with it the guest, at once.
    pub(crate) fn kill(&self) {
        // The only possible failure is that there is nothing left to kill.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Waits until the process has ended and is reaped.
    pub(crate) async fn ended(&self) -> End {
        let mut state = self.state.clone();
        let ended = state.wait_for(|state| state.end.is_some()).await;
        match ended.ok().and_then(|state| state.end.clone()) {
            Some(end) => end,
            // The watcher is gone, and has killed and reaped it.
            None => End {
                process: ProcessEnd::Signaled(libc::SIGKILL),
                report: None,
            },
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
        self.watcher.abort();
    }
}

/// Owns the process and turns what it does into a [`State`].
struct Watcher {
    monitor: Monitor,
    events: Polled<FrontDoorSocket>,
    ended: Polled<OwnedFd>,
    state: watch::Sender<State>,
    questions: Arc<Mutex<Questions>>,
    /// The agent's connection, which it keeps open while it lives.
    agent: Option<UnixStream>,
    report: Option<ExitReport>,
}

impl Watcher {
    async fn run(mut self) {
        let mut connected = true;
        loop {
            tokio::select! {
                biased;
                event = receive(&self.events), if connected => match event {
                    Ok(Some((event, descriptor))) => self.take(event, descriptor),
                    // It ends now, or is to be ended: it cannot be talked to.
                    Ok(None) => connected = false,
                    Err(error) => {
                        log::warn!("the monitor sent what is no message: {error}");
                        self.monitor.kill();
                        connected = false;
                    }
                },
                () = end_of(&mut self.agent) => {
                    self.agent = None;
                    self.state.send_modify(|state| state.agent_gone = true);
                }
                _ = self.ended.readable() => break,
            }
        }
        // What it said last is still in the socket.
        while let Ok(Some((event, descriptor))) = self.events.get_ref().0.receive() {
            self.take(event, descriptor);
        }
        let process = self
            .monitor
            .wait()
            .unwrap_or(ProcessEnd::Signaled(libc::SIGKILL));
        let report = self.report.take();
        self.state
            .send_modify(|state| state.end = Some(End { process, report }));
    }

    fn take(&mut self, event: Event, descriptor: Option<OwnedFd>) {
        match event {
            Event::KernelEntered { at_ns, up_ns } => self.state.send_modify(|state| {
                let moments = (Moment::from_nanos(up_ns), Moment::from_nanos(at_ns));
                state.entered.get_or_insert(moments);
            }),
            Event::Accepted { port, at_ns, exits } => {
                // A guest connects once; what else it opens is closed again.
                if port != nacre_protocol::READY_PORT || self.state.borrow().ready.is_some() {
                    return;
                }
                self.agent = descriptor.and_then(|fd| into_stream(fd).ok());
                self.state.send_modify(|state| {
                    state.ready = Some((Moment::from_nanos(at_ns), exits));
                });
            }
            Event::Stats { question, stats } => {
                lock(&self.questions).stats.answer(question, stats);
            }
            Event::Console { question, text } => {
                lock(&self.questions).console.answer(question, text);
            }
            Event::Slot { question, answer } => {
                lock(&self.questions).slots.answer(question, answer);
            }
            Event::Exited(report) => self.report = Some(report),
        }
    }
}

async fn receive(events: &Polled<FrontDoorSocket>) -> io::Result<Option<(Event, Option<OwnedFd>)>> {
    events
        .async_io(Interest::READABLE, |Owned(socket)| socket.receive())
        .await
}

/// Waits for the agent's connection to close; never without one.
async fn end_of(agent: &mut Option<UnixStream>) {
    let Some(stream) = agent else {
        return std::future::pending().await;
    };
    // No byte is ever sent on it: who sends one is no agent.
    let _ = stream.read_u8().await;
}

fn into_stream(fd: OwnedFd) -> io::Result<UnixStream> {
    let stream = StdStream::from(fd);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

fn lock(questions: &Mutex<Questions>) -> MutexGuard<'_, Questions> {
    // A panic elsewhere leaves a queue as usable as before.
    questions.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "monitor_test.rs"]
pub(crate) mod tests;
