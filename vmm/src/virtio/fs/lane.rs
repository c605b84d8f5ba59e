//! What a thread of the file system device does: it takes requests from its
//! queue, alone or together with others, until the device is reset.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fuse_backend_rs::api::server::Server;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::request::{RequestError, Shadow, serve};
use super::share::Share;
use crate::virtio::GuestMemory;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::{QueueError, VirtQueue};
use crate::virtio::worker::{Command, Mailbox};

/// The time from the driver's DRIVER_OK to its reset, shared by all lanes.
pub(super) struct Session {
    pub(super) memory: Arc<GuestMemory>,
    pub(super) interrupt: Arc<Interrupt>,
    pub(super) server: Server<Share>,
}

/// One thread's part in a session.
pub(super) struct Lane {
    session: Arc<Session>,
    queue: Arc<Mutex<VirtQueue>>,
    kick: EventFd,
}

impl Lane {
    /// A lane that serves `queue`, which it may share with others.
    ///
    /// # Errors
    /// What `dup(2)` answers.
    pub(super) fn new(session: Arc<Session>, queue: Arc<Mutex<VirtQueue>>) -> io::Result<Self> {
        let kick = lock(&queue).kick().try_clone()?;
        Ok(Self {
            session,
            queue,
            kick,
        })
    }

    /// Serves all requests that wait.
    fn drain(&self, shadow: &mut Shadow) -> Result<(), RequestError> {
        let memory = &*self.session.memory;
        while !self.session.interrupt.has_failed() {
            let mut queue = lock(&self.queue);
            let chain = queue.pop(memory)?;
            let more = queue.enable_kicks(memory)?;
            drop(queue);
            match chain {
                Some(chain) => {
                    if more {
                        // Another thread may take the next while this one works.
                        self.kick.write(1).map_err(RequestError::Kick)?;
                    }
                    let written = serve(&self.session.server, memory, &chain, shadow)?;
                    self.complete(chain.head(), written)?;
                }
                None if more => {}
                None => break,
            }
        }
        Ok(())
    }

    fn complete(&self, head: u16, written: u32) -> Result<(), QueueError> {
        let mut queue = lock(&self.queue);
        queue.push(&self.session.memory, head, written)?;
        queue.signal(&self.session.memory)
    }
}

/// The queue's state is whole between any two calls, so a panic elsewhere does
/// not spoil it.
fn lock(queue: &Mutex<VirtQueue>) -> MutexGuard<'_, VirtQueue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

const MAILBOX: u64 = 0;
const KICK: u64 = 1;
const FOREVER: i32 = -1;

/// The thread: serves the lane that it is handed until it is told to let go, and
/// ends with the device.
pub(super) fn run(mailbox: &Mailbox<Lane>) {
    if let Err(error) = try_run(mailbox) {
        log::error!("fs: a thread that serves the share has ended: {error}");
    }
}

fn try_run(mailbox: &Mailbox<Lane>) -> io::Result<()> {
    let epoll = Epoll::new()?;
    let event = EpollEvent::new(EventSet::IN, MAILBOX);
    epoll.ctl(ControlOperation::Add, mailbox.as_raw_fd(), event)?;
    let mut shadow = Shadow::new()?;
    let mut lane: Option<Lane> = None;
    let mut events = [EpollEvent::default(); 2];
    loop {
        let ready = match epoll.wait(FOREVER, &mut events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => &events[..result?],
        };
        if mailbox.is_closed() {
            return Ok(());
        }
        if ready.iter().any(|event| event.data() == MAILBOX) {
            match mailbox.take() {
                Some(Command::Activate(active)) => {
                    // Of the threads that wait for one queue a kick wakes one.
                    let event = EpollEvent::new(EventSet::IN | EventSet::EXCLUSIVE, KICK);
                    epoll.ctl(ControlOperation::Add, active.kick.as_raw_fd(), event)?;
                    lane = Some(*active);
                }
                Some(Command::Reset(done)) => {
                    if let Some(lane) = lane.take() {
                        let event = EpollEvent::default();
                        epoll.ctl(ControlOperation::Delete, lane.kick.as_raw_fd(), event)?;
                    }
                    // An error means that nobody waits any more.
                    let _ = done.send(());
                }
                None => {}
            }
        }
        if let Some(lane) = &lane {
            // The counter only says that there may be something.
            let _ = lane.kick.read();
            if let Err(error) = lane.drain(&mut shadow) {
                lane.session.interrupt.fail_device(&error);
            }
        }
    }
}
