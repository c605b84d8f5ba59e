//! What a front door and its monitor say to one another.
//!
//! The control socket is a Unix socket pair of type SEQPACKET: one message, one
//! JSON object, at most one descriptor with it. The front door's end is a
//! [`FrontDoorSocket`], the monitor's a [`MonitorSocket`]. When the front door's
//! end closes, the monitor ends.

use std::io::{self, IoSlice, IoSliceMut};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::DiskConfig;

/// Largest message in bytes, console tails included.
pub const MAX_MESSAGE: usize = 96 << 10;

/// What a front door asks for.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Request {
    /// Makes the stream socket that comes with it the host's end of a vsock
    /// connection to this port of the guest. It is closed if the guest refuses.
    Connect {
        /// Port of the guest.
        port: u32,
    },
    /// Asks for [`Event::Stats`].
    Stats {
        /// Comes back with the answer: one that comes late is no answer to the next question.
        question: u64,
    },
    /// Asks for [`Event::Console`].
    Console {
        /// As for [`Request::Stats`].
        question: u64,
    },
    /// Puts the block device that comes with it into a slot, which must be free. Answered by
    /// [`Event::Slot`].
    AttachDisk {
        /// As for [`Request::Stats`].
        question: u64,
        /// Number of the slot, below [`BLOCK_SLOTS`](crate::config::BLOCK_SLOTS).
        slot: u32,
        /// The device.
        disk: DiskConfig,
    },
    /// Takes the block device out of a slot and closes it; harmless for a slot that is free.
    /// Answered by [`Event::Slot`].
    DetachDisk {
        /// As for [`Request::Stats`].
        question: u64,
        /// Number of the slot.
        slot: u32,
    },
}

/// What a monitor reports.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Event {
    /// The jail is closed, devices and memory are there, the vCPUs start now.
    KernelEntered {
        /// When, `CLOCK_MONOTONIC` in nanoseconds.
        at_ns: u64,
        /// When the monitor's `main` began.
        up_ns: u64,
    },
    /// The guest has connected to a port of the host; the stream socket that
    /// comes with it is the host's end.
    Accepted {
        /// Port of the host.
        port: u32,
        /// When, `CLOCK_MONOTONIC` in nanoseconds.
        at_ns: u64,
        /// VM exits until then.
        exits: u64,
    },
    /// Answers [`Request::Stats`].
    Stats {
        /// Number of the question.
        question: u64,
        /// What the machine has used.
        stats: Stats,
    },
    /// Answers [`Request::Console`].
    Console {
        /// Number of the question.
        question: u64,
        /// The newest part of what the guest's kernel wrote to its console. Hostile text.
        text: String,
    },
    /// Answers [`Request::AttachDisk`] and [`Request::DetachDisk`].
    Slot {
        /// Number of the question.
        question: u64,
        /// The number of the slot's device among all devices of the machine, or why nothing
        /// was done.
        answer: Result<u32, String>,
    },
    /// The last message: the virtual machine has ended.
    Exited(ExitReport),
}

/// What a virtual machine has used.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Stats {
    /// VM exits that reached the monitor, of all vCPUs.
    pub exits: ExitCounts,
    /// Bytes of guest memory that the guest or a device has touched.
    pub memory_touched: u64,
}

/// VM exits by reason.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct ExitCounts {
    /// Reads and writes of ports.
    pub pio: u64,
    /// Reads and writes of device registers.
    pub mmio: u64,
    /// Everything else.
    pub other: u64,
}

impl ExitCounts {
    /// All exits. A monitor that its guest has taken over may say any numbers.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.pio
            .saturating_add(self.mmio)
            .saturating_add(self.other)
    }
}

/// How a virtual machine ended.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ExitReport {
    /// Why.
    pub reason: ExitReason,
    /// The newest part of the guest's console. Hostile text.
    pub console: String,
}

/// Why a virtual machine ended.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum ExitReason {
    /// The front door is gone.
    FrontDoorGone,
    /// The guest asked for a reset: an orderly end, or, when the console says
    /// so, a kernel panic.
    GuestReset,
    /// A vCPU shut down (triple fault).
    TripleFault,
    /// It did not start, or KVM could not go on; the text says why.
    Failed(String),
}

/// One end of a control socket, sending `S` and receiving `R`.
#[derive(Debug)]
pub struct ControlSocket<S, R> {
    socket: OwnedFd,
    kinds: PhantomData<fn(S) -> R>,
}

/// The front door's end.
pub type FrontDoorSocket = ControlSocket<Request, Event>;
/// The monitor's end.
pub type MonitorSocket = ControlSocket<Event, Request>;

/// Makes the two ends of a control socket; the front door's does not block.
///
/// # Errors
/// What `socketpair(2)` answers.
pub fn pair() -> io::Result<(FrontDoorSocket, MonitorSocket)> {
    let (front_door, monitor) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::io::ioctl_fionbio(&front_door, true)?;
    Ok((front_door.into(), monitor.into()))
}

impl<S, R> From<OwnedFd> for ControlSocket<S, R> {
    fn from(socket: OwnedFd) -> Self {
        Self {
            socket,
            kinds: PhantomData,
        }
    }
}

impl<S, R> From<ControlSocket<S, R>> for OwnedFd {
    fn from(control: ControlSocket<S, R>) -> Self {
        control.socket
    }
}

impl<S, R> AsFd for ControlSocket<S, R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl<S, R> AsRawFd for ControlSocket<S, R> {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl<S: Serialize, R: DeserializeOwned> ControlSocket<S, R> {
    /// Sends a message, with a descriptor if it takes one.
    ///
    /// # Errors
    /// `WouldBlock` when the other end does not read, `BrokenPipe` when it is gone.
    pub fn send(&self, message: &S, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors: Vec<_> = descriptor.into_iter().collect();
        if !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        sendmsg(&self.socket, &[IoSlice::new(&bytes)], &mut ancillary, flags)?;
        Ok(())
    }

    /// Receives a message and the descriptor that came with it; `None` when the
    /// other end is closed.
    ///
    /// # Errors
    /// `WouldBlock` when nothing waits on a socket that does not block,
    /// `InvalidData` for what is no message.
    pub fn receive(&self) -> io::Result<Option<(R, Option<OwnedFd>)>> {
        let mut bytes = vec![0; MAX_MESSAGE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        let descriptor = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        if received.bytes == 0 {
            return Ok(None);
        }
        let message = serde_json::from_slice(&bytes[..received.bytes])?;
        Ok(Some((message, descriptor)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn hostile_counts_do_not_overflow() {
        let exits = ExitCounts {
            pio: u64::MAX,
            mmio: 1,
            other: 1,
        };
        assert_eq!(exits.total(), u64::MAX);
    }

    #[test]
    fn a_message_arrives_with_its_descriptor() {
        let (front_door, monitor) = pair().unwrap();
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let request = Request::Connect { port: 7 };
        front_door.send(&request, Some(theirs.as_fd())).unwrap();
        drop(theirs);

        let (received, descriptor) = monitor.receive().unwrap().unwrap();
        assert_eq!(received, request);
        UnixStream::from(descriptor.unwrap())
            .write_all(b"hello")
            .unwrap();
        let mut text = String::new();
        ours.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn the_end_of_the_other_side_is_no_message() {
        let (front_door, monitor) = pair().unwrap();
        drop(front_door);
        assert!(monitor.receive().unwrap().is_none());
    }

    #[test]
    fn rubbish_is_an_error_and_not_a_panic() {
        let (front_door, monitor) = pair().unwrap();
        rustix::net::send(&front_door, b"{\"Connect\":", SendFlags::empty()).unwrap();
        assert_eq!(
            monitor.receive().unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }

    #[test]
    fn a_reader_that_sleeps_does_not_block_the_sender() {
        let (_front_door, monitor) = pair().unwrap();
        let event = Event::Console {
            question: u64::MAX,
            text: "x".repeat(MAX_MESSAGE / 2),
        };
        let error = (0..1000)
            .find_map(|_| monitor.send(&event, None).err())
            .unwrap();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
