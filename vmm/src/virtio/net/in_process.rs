//! The data path in the monitor: a thread for each pair of queues moves frames
//! between the tap and guest memory.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::control::rest;
use super::receive::{Received, Receiver};
use super::tap::Tap;
use super::transmit::{Sent, Transmitter};
use super::{RECEIVE_QUEUE, TRANSMIT_QUEUE, features};
use crate::virtio::activation::{End, PathError, run_with, wait};
use crate::virtio::device::ActiveDevice;
use crate::virtio::worker::Mailbox;

const MAILBOX: u64 = 0;
const TAP: u64 = 1;
const RECEIVE_KICK: u64 = 2;
const TRANSMIT_KICK: u64 = 3;

/// The thread: moves frames whenever the device is active.
pub(super) fn run(tap: &Tap, mailbox: &Mailbox) {
    let mut pause = 0;
    run_with("net", mailbox, |mut active, mailbox| {
        // A guest can reset and start the device without end; its first start waits for nothing.
        rest(std::mem::replace(&mut pause, 1));
        tap.set_offloads(features::tap_offloads(active.features))
            .map_err(PathError::host("set the offloads of the tap"))?;
        move_frames(&mut active, tap, mailbox)
    });
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
