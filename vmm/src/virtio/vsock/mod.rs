//! virtio-vsock (virtio 1.2, section 5.10): stream connections between the guest
//! and Unix sockets of the host.
//!
//! The host end of each connection is a Unix stream socket that a front door
//! holds the other end of. [`Connector`] makes connections to ports of the guest;
//! connections of the guest are taken on a few allowed ports of the host only,
//! one at a time each, and everything else is reset.
//!
//! # A connection
//!
//! ```text
//!   Connector::connect                       REQUEST of the guest to an allowed port
//!           │                                        │ accept() takes the other end
//!     RequestDue                                     │ of a new socket pair
//!           │ REQUEST ►                              ▼
//!   AwaitingResponse ──── ◄ RESPONSE ───┐      ResponseDue
//!           │                           ▼            │ RESPONSE ►
//!           │ ◄ RST, or no answer    Established ◄───┘
//!           │ in time: RST ►         to the guest: socket ends ─► SHUTDOWN(SEND) ►
//!           ▼                                      ◄ SHUTDOWN(RECEIVE) ─► SHUT_RD
//!     socket closed                  to the host:  ◄ SHUTDOWN(SEND) ─► buffer flushed,
//!                                                    SHUT_WR
//!                                                  nobody reads ─► SHUTDOWN(RECEIVE) ►
//!                                       │                       │
//!                        both have ended│                       │ ◄ RST, protocol broken,
//!                                 RST ► │                       │ device reset
//!                                       ▼                       ▼
//!                                 socket closed   ◄────────  Detached
//!                                                 buffer flushed, or nobody reads
//! ```
//!
//! Bytes that the guest has sent reach the host before the end of the stream
//! does, whatever ends it; only a host that stops reading loses them. A host
//! that has sent bytes which the guest did not take before it ended the
//! connection sees `ECONNRESET` rather than an end of stream.
//!
//! # Flow
//!
//! Bytes go from guest memory to the socket and back without a copy in between.
//! Only what a slow reader does not take is buffered, within the connection's
//! [`credit`]; [`muxer`] gives the connections their turns at the RX queue, and
//! [`event_loop`] does everything on one thread.
//!
//! The event queue's buffers are left with the device: nothing that would reset
//! the transport under a running driver exists yet.

mod connection;
mod credit;
mod event_loop;
mod guest_bytes;
mod muxer;
mod packet;
mod sender;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use thiserror::Error;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use vmm_sys_util::epoll::Epoll;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use self::event_loop::EventLoop;
use self::muxer::Muxer;
use super::device::{ActivateError, ActiveDevice, VirtioDevice, read_space};
use super::worker::Worker;
use crate::jail::seccomp::ThreadKind;

/// Entries of the RX, TX and event queue. Linux fills the RX queue with buffers
/// of its own, so that a longer one would only cost the guest memory: 128
/// buffers of 4 KiB are more than the credit of a connection.
const QUEUE_SIZES: [u16; 3] = [128, 256, 16];
/// Stream sockets are supported (virtio 1.2, section 5.10.3).
const F_STREAM: u64 = 1 << 0;
/// Connections that can wait for the driver to become ready.
const MAX_WAITING: usize = 128;

/// Takes the host end of a connection from the guest to the given port. It runs
/// on the device's thread, so it must not wait; an error refuses the connection.
type Accept = Box<dyn FnMut(u32, OwnedFd) -> io::Result<()> + Send>;

/// The vsock device.
#[derive(Debug)]
pub struct Vsock {
    guest_cid: u64,
    worker: Worker,
}

/// Makes connections from the host to the guest.
#[derive(Clone, Debug)]
pub struct Connector {
    requests: SyncSender<ConnectRequest>,
    wake: Arc<EventFd>,
}

/// Why a connection was not begun.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The guest's driver is not ready, and others wait already.
    #[error("vsock: {MAX_WAITING} connections wait for the guest's driver, and no more can")]
    TooMany,
    /// The device's thread has ended.
    #[error("vsock: the device's thread has ended")]
    WorkerGone,
}

/// A connection that is to be made.
#[derive(Debug)]
struct ConnectRequest {
    guest_port: u32,
    socket: OwnedFd,
}

/// The device's end of a [`Connector`].
#[derive(Debug)]
struct Requests {
    queue: Receiver<ConnectRequest>,
    wake: Arc<EventFd>,
}

impl Vsock {
    /// Starts the device's thread. The guest has the context identifier
    /// `guest_cid` and may connect to the host's `guest_ports`; `accept` is
    /// given the host end of each such connection, on the device's thread, so
    /// it must not wait. An error of `accept` refuses the connection.
    ///
    /// # Errors
    /// What the system answers to `epoll_create1(2)`, `eventfd(2)` or the start
    /// of a thread.
    pub fn spawn<A>(guest_cid: u32, guest_ports: &[u32], accept: A) -> io::Result<(Self, Connector)>
    where
        A: FnMut(u32, OwnedFd) -> io::Result<()> + Send + 'static,
    {
        let guest_cid = u64::from(guest_cid);
        let (connector, requests) = Connector::pair()?;
        let muxer = Muxer::new(guest_cid, guest_ports, Box::new(accept), Epoll::new()?);
        let worker = Worker::spawn(ThreadKind::Vsock, |mailbox| {
            match EventLoop::new(mailbox, requests, muxer) {
                Ok(event_loop) => event_loop.run(),
                Err(error) => log::error!("vsock: cannot watch for events: {error}"),
            }
        })?;
        Ok((Self { guest_cid, worker }, connector))
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn name(&self) -> &'static str {
        "vsock"
    }

    fn features(&self) -> u64 {
        F_STREAM
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_space(&self.guest_cid.to_le_bytes(), offset, data);
    }

    fn activate(&mut self, active: ActiveDevice) -> Result<(), ActivateError> {
        self.worker.activate(active)
    }

    fn reset(&mut self) {
        self.worker.reset();
    }
}

impl Connector {
    /// Makes `socket`, a connected Unix stream socket, the host end of a
    /// connection to a port of the guest. While the guest's driver is not ready
    /// the connection waits. It is the peer of `socket` that sees what becomes
    /// of it: when the guest refuses or does not answer within 20 s, the
    /// stream ends.
    ///
    /// # Errors
    /// [`ConnectError`]; `socket` is closed then.
    pub fn connect(&self, guest_port: u32, socket: OwnedFd) -> Result<(), ConnectError> {
        self.requests
            .try_send(ConnectRequest { guest_port, socket })
            .map_err(|error| match error {
                TrySendError::Full(_) => ConnectError::TooMany,
                TrySendError::Disconnected(_) => ConnectError::WorkerGone,
            })?;
        self.wake.write(1).map_err(|_| ConnectError::WorkerGone)
    }

    fn pair() -> io::Result<(Self, Requests)> {
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let (sender, queue) = sync_channel(MAX_WAITING);
        Ok((
            Self {
                requests: sender,
                wake: Arc::clone(&wake),
            },
            Requests { queue, wake },
        ))
    }
}
#[cfg(test)]
mod flow_test;
#[cfg(test)]
mod hostile_test;
#[cfg(test)]
mod lifecycle_test;
#[cfg(test)]
mod model_test;
#[cfg(test)]
mod test_driver;
