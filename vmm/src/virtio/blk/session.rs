//! What the thread of a slot does from the driver's DRIVER_OK to its reset.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::QUEUE_SIZE;
use super::disk::Disk;
use super::request::serve;
use crate::virtio::GuestMemory;
use crate::virtio::activation::{End, PathError, Share, run_with, wait};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::VirtQueue;
use crate::virtio::worker::Mailbox;

const MAILBOX: u64 = 0;
const KICK: u64 = 1;

/// Requests, and bytes of their buffers, after which the mailbox is looked into: a driver that
/// refills the queue as fast as it is served holds up a reset for no longer than they take. The
/// request that goes beyond is still served whole.
const BUDGET: usize = QUEUE_SIZE as usize;
const BUDGET_BYTES: u64 = 8 << 20;

/// What the thread is handed upon activation.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) memory: Arc<GuestMemory>,
    pub(super) interrupt: Arc<Interrupt>,
    pub(super) queue: VirtQueue,
    pub(super) disk: Arc<Disk>,
    /// The driver will never ask for a flush.
    pub(super) write_through: bool,
}

impl Share for Session {
    fn interrupt(&self) -> &Arc<Interrupt> {
        &self.interrupt
    }
}

/// The thread: serves requests whenever the device is active.
pub(super) fn run(mailbox: &Mailbox<Session>) {
    run_with("blk", mailbox, |mut session, mailbox| session.run(mailbox));
}

impl Session {
    fn run(&mut self, mailbox: &Mailbox<Self>) -> Result<End, PathError> {
        let epoll = Epoll::new().map_err(PathError::host("make an epoll"))?;
        for (fd, token) in [
            (mailbox.as_raw_fd(), MAILBOX),
            (self.queue.kick().as_raw_fd(), KICK),
        ] {
            let event = EpollEvent::new(EventSet::IN, token);
            epoll
                .ctl(ControlOperation::Add, fd, event)
                .map_err(PathError::host("watch a descriptor"))?;
        }
        // What was made available before is not announced again.
        self.drain()?;
        let mut events = [EpollEvent::default(); 2];
        loop {
            let ready = wait(&epoll, &mut events).map_err(PathError::host("wait for events"))?;
            for event in &events[..ready] {
                if event.data() == KICK {
                    // The counter only says that there may be something.
                    let _ = self.queue.kick().read();
                    self.drain()?;
                } else if let Some(end) = End::ask(mailbox) {
                    return Ok(end);
                }
            }
        }
    }

    /// Serves what waits, as far as the budget goes.
    fn drain(&mut self) -> Result<(), PathError> {
        let mut bytes = 0;
        for _ in 0..BUDGET {
            let Some(chain) = self.queue.pop(&self.memory)? else {
                if self.queue.enable_kicks(&self.memory)? {
                    continue;
                }
                return Ok(());
            };
            let written = serve(&self.disk, self.write_through, &chain)?;
            self.queue.push(&self.memory, chain.head(), written)?;
            self.queue.signal(&self.memory)?;
            bytes += chain.readable_len() + chain.writable_len();
            if bytes > BUDGET_BYTES {
                break;
            }
        }
        let again = self.queue.kick().write(1);
        again.map_err(PathError::host("go on with the queue"))
    }
}

#[cfg(test)]
#[path = "session_test.rs"]
mod tests;
