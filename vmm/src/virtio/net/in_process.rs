//! The data path in the monitor: the device's thread moves frames between the
//! tap and guest memory.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::mpsc::SyncSender;

use thiserror::Error;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::receive::{Received, Receiver};
use super::tap::Tap;
use super::transmit::{Sent, Transmitter};
use super::{RECEIVE_QUEUE, TRANSMIT_QUEUE, features};
use crate::virtio::device::{ActivateError, ActiveDevice};
use crate::virtio::queue::QueueError;
use crate::virtio::worker::{Command, Mailbox};

const MAILBOX: u64 = 0;
const TAP: u64 = 1;
const RECEIVE_KICK: u64 = 2;
const TRANSMIT_KICK: u64 = 3;
const FOREVER: i32 = -1;

/// Why the device has to be reset.
#[derive(Debug, Error)]
pub(super) enum PathError {
    /// The driver broke the rules.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// A queue is missing.
    #[error(transparent)]
    Activate(#[from] ActivateError),
    /// The host refuses something.
    #[error("cannot {what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

impl PathError {
    pub(super) fn host(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { what, source }
    }
}

/// The thread: moves frames whenever the device is active.
pub(super) fn run(tap: &Tap, mailbox: &Mailbox) {
    run_with(mailbox, |mut active, mailbox| {
        tap.set_offloads(features::tap_offloads(active.features))
            .map_err(PathError::host("set the offloads of the tap"))?;
        move_frames(&mut active, tap, mailbox)
    });
}

/// Hands each activation to `serve`, which returns when it is told to reset.
pub(super) fn run_with<F>(mailbox: &Mailbox, mut serve: F)
where
    F: FnMut(ActiveDevice, &Mailbox) -> Result<End, PathError>,
{
    loop {
        match wait_for_command(mailbox) {
            Ok(Some(Command::Activate(active))) => {
                let interrupt = active.interrupt.clone();
                match serve(*active, mailbox) {
                    Ok(end) => end.tell(),
                    Err(error) => interrupt.fail_device(&error),
                }
            }
            Ok(Some(Command::Reset(done))) => End::Reset(done).tell(),
            Ok(None) => return,
            Err(error) => return log::error!("net: the thread has ended: {error}"),
        }
    }
}

/// Why frames are not moved any more.
#[derive(Debug)]
pub(super) enum End {
    /// The driver has reset the device; somebody waits to hear that it is done.
    Reset(SyncSender<()>),
    /// The device is gone.
    Closed,
}

impl End {
    /// What the mailbox says, if it is time to end.
    pub(super) fn ask(mailbox: &Mailbox) -> Option<Self> {
        match mailbox.take() {
            Some(Command::Reset(done)) => Some(Self::Reset(done)),
            _ => mailbox.is_closed().then_some(Self::Closed),
        }
    }

    fn tell(self) {
        if let Self::Reset(done) = self {
            // An error means that nobody waits any more.
            let _ = done.send(());
        }
    }
}

/// The next command, or `None` when none will come.
fn wait_for_command(mailbox: &Mailbox) -> io::Result<Option<Command>> {
    let epoll = Epoll::new()?;
    let event = EpollEvent::new(EventSet::IN, MAILBOX);
    epoll.ctl(ControlOperation::Add, mailbox.as_raw_fd(), event)?;
    loop {
        let command = mailbox.take();
        if command.is_some() || mailbox.is_closed() {
            return Ok(command);
        }
        wait(&epoll, &mut [EpollEvent::default()])?;
    }
}

/// Waits for events; an interrupted wait ends without any.
pub(super) fn wait(epoll: &Epoll, events: &mut [EpollEvent]) -> io::Result<usize> {
    match epoll.wait(FOREVER, events) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
        result => result,
    }
}

/// Moves frames until the device is reset or gone.
pub(super) fn move_frames<T: AsFd>(
    active: &mut ActiveDevice,
    tap: &T,
    mailbox: &Mailbox,
) -> Result<End, PathError> {
    let receive = active.take_queue(RECEIVE_QUEUE)?;
    let transmit = active.take_queue(TRANSMIT_QUEUE)?;
    let mergeable = features::mergeable(active.features);
    let mut path = Path {
        tap,
        epoll: Epoll::new().map_err(PathError::host("make an epoll"))?,
        receiver: Receiver::new(&active.memory, receive, mergeable),
        transmitter: Transmitter::new(&active.memory, transmit),
        starved: false,
        blocked: false,
        gone: false,
    };
    path.watch(mailbox)?;
    let mut events = [EpollEvent::default(); 4];
    // What was made available before is not announced again.
    path.receive()?;
    path.send()?;
    loop {
        let ready = wait(&path.epoll, &mut events).map_err(PathError::host("wait for events"))?;
        for event in &events[..ready] {
            match event.data() {
                MAILBOX => {
                    if let Some(end) = End::ask(mailbox) {
                        return Ok(end);
                    }
                }
                token => path.handle(token, event.event_set())?,
            }
        }
    }
}

struct Path<'a, T> {
    tap: &'a T,
    epoll: Epoll,
    receiver: Receiver<'a>,
    transmitter: Transmitter<'a>,
    /// The guest has no buffer for the next frame.
    starved: bool,
    /// The tap takes no frame.
    blocked: bool,
    /// The tap is no more.
    gone: bool,
}

impl<T: AsFd> Path<'_, T> {
    fn watch(&self, mailbox: &Mailbox) -> Result<(), PathError> {
        let watched = [
            (mailbox.as_raw_fd(), MAILBOX),
            (self.tap.as_fd().as_raw_fd(), TAP),
            (self.receiver.queue().kick().as_raw_fd(), RECEIVE_KICK),
            (self.transmitter.queue().kick().as_raw_fd(), TRANSMIT_KICK),
        ];
        for (fd, token) in watched {
            self.epoll
                .ctl(
                    ControlOperation::Add,
                    fd,
                    EpollEvent::new(EventSet::IN, token),
                )
                .map_err(PathError::host("watch a descriptor"))?;
        }
        Ok(())
    }

    fn handle(&mut self, token: u64, set: EventSet) -> Result<(), PathError> {
        match token {
            RECEIVE_KICK => {
                // The counter only says that there may be something.
                let _ = self.receiver.queue().kick().read();
                self.receive()
            }
            TRANSMIT_KICK => {
                let _ = self.transmitter.queue().kick().read();
                self.send()
            }
            _ => {
                // Told whether asked for or not, so it must not be left at that.
                if set.intersects(EventSet::ERROR | EventSet::HANG_UP) {
                    return self.lose_tap(&io::ErrorKind::NotConnected.into());
                }
                if set.contains(EventSet::OUT) {
                    self.send()?;
                }
                if set.contains(EventSet::IN) {
                    self.receive()?;
                }
                Ok(())
            }
        }
    }

    fn receive(&mut self) -> Result<(), PathError> {
        if self.gone {
            return Ok(());
        }
        let starved = match self.receiver.receive(self.tap.as_fd())? {
            Received::Starved => true,
            Received::All | Received::Budget => false,
            Received::Gone(error) => return self.lose_tap(&error),
        };
        self.update(starved, self.blocked)
    }

    fn send(&mut self) -> Result<(), PathError> {
        let blocked = match self.transmitter.send(self.tap.as_fd())? {
            Sent::All => false,
            Sent::Blocked => true,
            Sent::Budget => {
                self.transmitter
                    .queue()
                    .kick()
                    .write(1)
                    .map_err(PathError::host("kick the transmit queue"))?;
                false
            }
        };
        self.update(self.starved, blocked)
    }

    /// Waits for the tap only where there is something to do with it.
    fn update(&mut self, starved: bool, blocked: bool) -> Result<(), PathError> {
        if self.gone || (starved, blocked) == (self.starved, self.blocked) {
            return Ok(());
        }
        (self.starved, self.blocked) = (starved, blocked);
        let mut set = EventSet::empty();
        if !starved {
            set |= EventSet::IN;
        }
        if blocked {
            set |= EventSet::OUT;
        }
        self.epoll
            .ctl(
                ControlOperation::Modify,
                self.tap.as_fd().as_raw_fd(),
                EpollEvent::new(set, TAP),
            )
            .map_err(PathError::host("watch the tap"))
    }

    /// The interface was deleted on the host: what is sent from now on is lost.
    fn lose_tap(&mut self, error: &io::Error) -> Result<(), PathError> {
        if std::mem::replace(&mut self.gone, true) {
            return Ok(());
        }
        log::warn!("net: the tap is gone: {error}");
        self.epoll
            .ctl(
                ControlOperation::Delete,
                self.tap.as_fd().as_raw_fd(),
                EpollEvent::default(),
            )
            .map_err(PathError::host("let go of the tap"))
    }
}
