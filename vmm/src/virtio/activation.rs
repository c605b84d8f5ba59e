//! The life of a device's thread: from activation to reset, again and again.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use thiserror::Error;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::virtio::device::{ActivateError, ActiveDevice};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::QueueError;
use crate::virtio::worker::{Command, Mailbox};

const MAILBOX: u64 = 0;
const FOREVER: i32 = -1;

/// What a thread is handed upon activation.
pub(super) trait Share {
    /// How to tell the driver that the device has failed.
    fn interrupt(&self) -> &Arc<Interrupt>;
}

impl Share for ActiveDevice {
    fn interrupt(&self) -> &Arc<Interrupt> {
        &self.interrupt
    }
}

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

/// Hands each activation to `serve`, which returns when it is told to reset. `device` is
/// for the log.
pub(super) fn run_with<A, F>(device: &str, mailbox: &Mailbox<A>, mut serve: F)
where
    A: Share,
    F: FnMut(A, &Mailbox<A>) -> Result<End, PathError>,
{
    loop {
        match wait_for_command(mailbox) {
            Ok(Some(Command::Activate(active))) => {
                let interrupt = Arc::clone(active.interrupt());
                match serve(*active, mailbox) {
                    Ok(end) => end.tell(),
                    Err(error) => interrupt.fail_device(&error),
                }
            }
            Ok(Some(Command::Reset(done))) => End::Reset(done).tell(),
            Ok(None) => return,
            Err(error) => return log::error!("{device}: the thread has ended: {error}"),
        }
    }
}

/// Why the queues are not served any more.
#[derive(Debug)]
pub(super) enum End {
    /// The driver has reset the device; somebody waits to hear that it is done.
    Reset(SyncSender<()>),
    /// The device is gone.
    Closed,
}

impl End {
    /// What the mailbox says, if it is time to end.
    pub(super) fn ask<A>(mailbox: &Mailbox<A>) -> Option<Self> {
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
fn wait_for_command<A>(mailbox: &Mailbox<A>) -> io::Result<Option<Command<A>>> {
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
