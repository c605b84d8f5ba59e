//! The thread on which a device moves its data.
//!
//! A worker is started before the guest runs and lives as long as the monitor,
//! so that no vCPU ever starts a thread (its seccomp filter would not let it).
//! It owns the device's queues while the device is active; the transport talks
//! to it through a mailbox. What a worker is handed upon activation is the
//! [`ActiveDevice`], unless several threads serve one device and each gets its
//! share `A` of it.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EFD_SEMAPHORE, EventFd};

use super::device::{ActivateError, ActiveDevice};
use crate::jail::seccomp::{self, ThreadKind};

/// What the transport tells a worker.
#[derive(Debug)]
pub enum Command<A = ActiveDevice> {
    /// The driver is ready.
    Activate(Box<A>),
    /// The driver has reset the device: drop the queues, then answer.
    Reset(SyncSender<()>),
}

/// The transport's end: held by the device that the worker belongs to.
#[derive(Debug)]
pub struct Worker<A = ActiveDevice> {
    commands: Sender<Command<A>>,
    wake: EventFd,
    closed: Arc<AtomicBool>,
}

/// The worker's end.
#[derive(Debug)]
pub struct Mailbox<A = ActiveDevice> {
    commands: Receiver<Command<A>>,
    wake: EventFd,
    closed: Arc<AtomicBool>,
}

impl<A: Send + 'static> Worker<A> {
    /// Starts a thread that runs `body` under the seccomp filter of its kind.
    ///
    /// # Errors
    /// What `eventfd(2)` or the start of a thread answers.
    pub fn spawn<F>(kind: ThreadKind, body: F) -> io::Result<Self>
    where
        F: FnOnce(Mailbox<A>) + Send + 'static,
    {
        Self::spawn_prepared(kind, || Ok(()), body)
    }

    /// Like [`spawn`](Self::spawn), with something for the thread to do before
    /// it is under the filter.
    ///
    /// # Errors
    /// What `eventfd(2)` or the start of a thread answers.
    pub fn spawn_prepared<P, F>(kind: ThreadKind, prepare: P, body: F) -> io::Result<Self>
    where
        P: FnOnce() -> io::Result<()> + Send + 'static,
        F: FnOnce(Mailbox<A>) + Send + 'static,
    {
        let (worker, mailbox) = Self::pair()?;
        thread::Builder::new()
            .name(kind.name().to_owned())
            .spawn(move || {
                // Whoever waits for the worker then finds that it has ended.
                if let Err(error) = prepare() {
                    return log::error!("{}: the thread cannot start: {error}", kind.name());
                }
                seccomp::enter(kind);
                body(mailbox);
            })?;
        Ok(worker)
    }

    /// A worker's two ends without a thread, for tests that play the thread.
    ///
    /// # Errors
    /// What `eventfd(2)` answers.
    pub fn pair() -> io::Result<(Self, Mailbox<A>)> {
        // Each command counts, so that one that comes close behind another still wakes.
        let wake = EventFd::new(EFD_NONBLOCK | EFD_SEMAPHORE)?;
        let (sender, receiver) = channel();
        let closed = Arc::new(AtomicBool::new(false));
        let mailbox = Mailbox {
            commands: receiver,
            wake: wake.try_clone()?,
            closed: Arc::clone(&closed),
        };
        Ok((
            Self {
                commands: sender,
                wake,
                closed,
            },
            mailbox,
        ))
    }

    /// Hands the active device, or this worker's share of it, over.
    ///
    /// # Errors
    /// [`ActivateError::WorkerGone`] when the thread has ended.
    pub fn activate(&self, active: A) -> Result<(), ActivateError> {
        self.send(Command::Activate(Box::new(active)))
    }

    /// Returns when the worker holds no queue any more.
    pub fn reset(&self) {
        let (done, answer) = sync_channel(1);
        if self.send(Command::Reset(done)).is_ok() {
            // An error means that the worker has ended, and its queues with it.
            let _ = answer.recv();
        }
    }

    fn send(&self, command: Command<A>) -> Result<(), ActivateError> {
        self.commands
            .send(command)
            .map_err(|_| ActivateError::WorkerGone)?;
        self.wake.write(1).map_err(|_| ActivateError::WorkerGone)
    }
}

impl<A> Drop for Worker<A> {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::SeqCst);
        // Where the thread cannot be woken it goes with the process.
        let _ = self.wake.write(1);
    }
}

impl<A> Mailbox<A> {
    /// Whether the device is gone, so that no command will come any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// The next command, if one waits.
    #[must_use]
    pub fn take(&self) -> Option<Command<A>> {
        // The counter only says that there may be something.
        let _ = self.wake.read();
        self.commands.try_recv().ok()
    }
}

impl<A> AsRawFd for Mailbox<A> {
    /// Becomes readable when a command arrives.
    fn as_raw_fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_that_come_together_each_wake_the_worker() {
        let (worker, mailbox) = Worker::<u32>::pair().unwrap();
        worker.activate(1).unwrap();
        worker.activate(2).unwrap();
        for expected in [1, 2] {
            assert_eq!(mailbox.wake.read().unwrap(), 1);
            // Put back what the look at the descriptor has taken.
            mailbox.wake.write(1).unwrap();
            match mailbox.take() {
                Some(Command::Activate(active)) => assert_eq!(*active, expected),
                other => panic!("{other:?}"),
            }
        }
        mailbox.wake.read().unwrap_err();
        assert!(mailbox.take().is_none());
    }

    #[test]
    fn a_worker_learns_that_its_device_is_gone() {
        let (worker, mailbox) = Worker::<u32>::pair().unwrap();
        assert!(!mailbox.is_closed());
        drop(worker);
        assert!(mailbox.is_closed());
        assert_eq!(mailbox.wake.read().unwrap(), 1);
    }

    #[test]
    fn a_reset_returns_when_the_worker_has_ended() {
        let (worker, mailbox) = Worker::<u32>::pair().unwrap();
        drop(mailbox);
        worker.reset();
        assert!(matches!(worker.activate(1), Err(ActivateError::WorkerGone)));
    }
}
