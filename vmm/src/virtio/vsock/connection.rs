//! One connection: a Unix socket of the host, and what both sides said so far.
//!
//! The states are drawn in the [module's head](super).

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::Shutdown;
use vm_memory::VolatileSlice;
use vmm_sys_util::epoll::EventSet;

use super::credit::{BUF_ALLOC, Credit};
use super::guest_bytes;
use super::packet::{HOST_CID, Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM, TxPacket};

/// Most chains of the RX queue that one read of the socket fills: with the
/// 4 KiB that Linux offers a chain, as much as the largest packet.
const MAX_BURST: usize = 16;
/// First allocation of a buffer in bytes.
const MIN_BUFFER: usize = 4096;

/// The two ports of a connection, which name it.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Ports {
    pub(super) guest: u32,
    pub(super) host: u32,
}

/// How far the two sides have got in agreeing to the connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Handshake {
    /// The host asks, the packet has not been sent.
    RequestDue,
    /// The guest has been asked.
    AwaitingResponse,
    /// The guest asked and the host agreed, the packet has not been sent.
    ResponseDue,
    /// Data may flow.
    Established,
    /// The guest has ended the connection; what it sent before still goes to the host.
    Detached,
}

/// What a packet of the guest means for the connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    /// It goes on.
    Keep,
    /// The guest broke the rules: it gets a reset.
    Reset,
    /// The guest has ended it.
    Detach,
}

/// What a connection has to say to the guest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Next {
    /// Nothing now.
    Nothing,
    /// A packet without payload, with these flags.
    Control(Op, u32),
    /// Maybe payload: the socket seems to have some, and the guest has room.
    Data,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    guest_cid: u64,
    ports: Ports,
    socket: OwnedFd,
    handshake: Handshake,
    credit: Credit,
    /// What the guest sent and the host has not taken, at most [`BUF_ALLOC`] bytes.
    buffer: VecDeque<u8>,
    /// The socket may have bytes, or the end of the stream, to read.
    readable: bool,
    /// All that the host will ever send has been read.
    ended: bool,
    /// The host will not read any more.
    reader_gone: bool,
    /// The host has been told that the guest will not send any more.
    end_told: bool,
    /// Shutdown flags that the guest has sent.
    guest_shutdown: u32,
    /// Shutdown flags that the guest has been sent.
    shutdown_sent: u32,
    /// The guest wants to hear its credit.
    credit_requested: bool,
    /// How many chains the next read of the socket is to fill.
    burst: usize,
    /// The connection waits in the muxer's queue of those that have to say something.
    pub(super) queued: bool,
    /// The muxer has asked for the event that the socket can be written.
    pub(super) write_watched: bool,
}

impl Connection {
    /// A connection that the host asks for.
    pub(super) fn outgoing(guest_cid: u64, ports: Ports, socket: OwnedFd) -> Self {
        Self::new(guest_cid, ports, socket, Handshake::RequestDue)
    }

    /// A connection that the guest asked for with `request` and the host agreed to.
    pub(super) fn incoming(guest_cid: u64, request: &Header, socket: OwnedFd) -> Self {
        let ports = Ports {
            guest: request.src_port,
            host: request.dst_port,
        };
        let mut connection = Self::new(guest_cid, ports, socket, Handshake::ResponseDue);
        connection.credit.update(request.buf_alloc, request.fwd_cnt);
        connection
    }

    fn new(guest_cid: u64, ports: Ports, socket: OwnedFd, handshake: Handshake) -> Self {
        Self {
            guest_cid,
            ports,
            socket,
            handshake,
            credit: Credit::default(),
            buffer: VecDeque::new(),
            readable: false,
            ended: false,
            reader_gone: false,
            end_told: false,
            guest_shutdown: 0,
            shutdown_sent: 0,
            credit_requested: false,
            burst: 1,
            queued: false,
            write_watched: false,
        }
    }

    /// The connection's name.
    pub(super) fn ports(&self) -> Ports {
        self.ports
    }

    /// The socket to be watched.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The guest has not answered the host's wish yet.
    pub(super) fn is_connecting(&self) -> bool {
        matches!(
            self.handshake,
            Handshake::RequestDue | Handshake::AwaitingResponse
        )
    }

    /// The guest has heard of the connection and not ended it, so that it needs
    /// a reset when the host ends it.
    pub(super) fn is_known_to_guest(&self) -> bool {
        !matches!(self.handshake, Handshake::RequestDue | Handshake::Detached)
    }

    /// Bytes wait for the host to take them.
    pub(super) fn has_buffered(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Bytes that the buffer occupies.
    #[cfg(test)]
    pub(super) fn buffer_capacity(&self) -> usize {
        self.buffer.capacity()
    }

    /// Nothing more can come of the connection.
    pub(super) fn is_finished(&self) -> bool {
        let to_host = self.reader_gone || self.end_told;
        match self.handshake {
            Handshake::Established => {
                let to_guest =
                    (self.shutdown_sent & SHUTDOWN_SEND) | (self.guest_shutdown & SHUTDOWN_RECEIVE);
                to_host && to_guest != 0
            }
            Handshake::Detached => to_host,
            _ => false,
        }
    }

    /// Takes a packet of the guest.
    pub(super) fn on_packet(&mut self, packet: &TxPacket<'_>) -> Verdict {
        let header = &packet.header;
        self.credit.update(header.buf_alloc, header.fwd_cnt);
        match (self.handshake, header.op()) {
            (_, Some(Op::Reset)) => return Verdict::Detach,
            (Handshake::AwaitingResponse, Some(Op::Response)) => {
                self.handshake = Handshake::Established;
            }
            (Handshake::Established, Some(Op::Data)) => return self.on_data(packet),
            (Handshake::Established, Some(Op::CreditUpdate)) => {}
            (Handshake::Established, Some(Op::CreditRequest)) => self.credit_requested = true,
            (Handshake::Established, Some(Op::Shutdown)) => self.on_shutdown(header.flags),
            _ => return Verdict::Reset,
        }
        Verdict::Keep
    }

    fn on_data(&mut self, packet: &TxPacket<'_>) -> Verdict {
        if self.guest_shutdown & SHUTDOWN_SEND != 0 || !self.credit.receive(packet.header.len) {
            return Verdict::Reset;
        }
        let payload = &packet.payload;
        let len = guest_bytes::len(payload);
        let mut sent = 0;
        if self.buffer.is_empty() && !self.reader_gone && len > 0 {
            let result = guest_bytes::send(self.socket.as_fd(), payload);
            sent = self.count_sent(result);
        }
        if self.reader_gone {
            // It has crossed our word that nobody reads it.
            self.credit.forward(len);
        } else {
            self.credit.forward(sent);
            if sent < len {
                self.reserve(len - sent);
                guest_bytes::append(&guest_bytes::part(payload, sent, len), &mut self.buffer);
            }
        }
        Verdict::Keep
    }

    fn on_shutdown(&mut self, flags: u32) {
        self.guest_shutdown |= flags & (SHUTDOWN_RECEIVE | SHUTDOWN_SEND);
        if self.guest_shutdown & SHUTDOWN_RECEIVE != 0 {
            self.shut(Shutdown::Read);
        }
        self.flush();
    }

    /// The guest has ended the connection, or is gone itself.
    pub(super) fn detach(&mut self) {
        self.handshake = Handshake::Detached;
        self.shut(Shutdown::Read);
        self.flush();
    }

    /// Takes what epoll says of the socket.
    pub(super) fn on_events(&mut self, events: EventSet) {
        let gone = EventSet::HANG_UP | EventSet::ERROR;
        if events.intersects(EventSet::IN | EventSet::READ_HANG_UP | gone) {
            self.readable = true;
        }
        if events.intersects(gone) {
            self.on_reader_gone();
        } else if events.contains(EventSet::OUT) {
            self.flush();
        }
    }

    /// Gives the host what it takes of the buffered bytes, and then their end.
    fn flush(&mut self) {
        while !self.buffer.is_empty() {
            let result = guest_bytes::send_buffer(self.socket.as_fd(), &self.buffer);
            let sent = self.count_sent(result);
            if sent == 0 {
                return;
            }
            self.credit.forward(sent);
            self.buffer.drain(..sent);
        }
        // An idle connection holds no memory.
        self.buffer = VecDeque::new();
        let guest_done =
            self.guest_shutdown & SHUTDOWN_SEND != 0 || self.handshake == Handshake::Detached;
        if guest_done && !self.end_told {
            self.shut(Shutdown::Write);
            self.end_told = true;
        }
    }

    /// Bytes that a send has moved; an error other than a full socket means
    /// that nobody reads them.
    fn count_sent(&mut self, result: std::io::Result<usize>) -> usize {
        match result {
            Ok(count) => count,
            Err(error) => {
                if error.kind() != std::io::ErrorKind::WouldBlock {
                    self.on_reader_gone();
                }
                0
            }
        }
    }

    fn on_reader_gone(&mut self) {
        self.reader_gone = true;
        self.credit.forward(self.buffer.len());
        self.buffer = VecDeque::new();
    }

    /// Makes room for `count` more bytes: by doubling, but never beyond what
    /// credit allows.
    fn reserve(&mut self, count: usize) {
        let needed = self.buffer.len() + count;
        if needed > self.buffer.capacity() {
            let capacity = (2 * self.buffer.capacity())
                .clamp(MIN_BUFFER, BUF_ALLOC as usize)
                .max(needed);
            self.buffer.reserve_exact(capacity - self.buffer.len());
        }
    }

    fn shut(&self, how: Shutdown) {
        // Fails only when the host peer is gone, which epoll tells, too.
        let _ = rustix::net::shutdown(&self.socket, how);
    }

    /// What there is to say to the guest.
    pub(super) fn next(&self) -> Next {
        match self.handshake {
            Handshake::RequestDue => Next::Control(Op::Request, 0),
            Handshake::ResponseDue => Next::Control(Op::Response, 0),
            Handshake::AwaitingResponse | Handshake::Detached => Next::Nothing,
            Handshake::Established => self.next_established(),
        }
    }

    fn next_established(&self) -> Next {
        let shutdown = self.shutdown_due();
        if shutdown & !self.shutdown_sent != 0 {
            Next::Control(Op::Shutdown, shutdown)
        } else if self.readable && !self.ends_to_guest() && self.credit.available() > 0 {
            Next::Data
        } else if self.credit_requested || self.credit.update_due() {
            Next::Control(Op::CreditUpdate, 0)
        } else {
            Next::Nothing
        }
    }

    /// Shutdown flags that are true of the host and news for the guest.
    fn shutdown_due(&self) -> u32 {
        let mut flags = 0;
        if self.ended && self.guest_shutdown & SHUTDOWN_RECEIVE == 0 {
            flags |= SHUTDOWN_SEND;
        }
        if self.reader_gone && self.guest_shutdown & SHUTDOWN_SEND == 0 {
            flags |= SHUTDOWN_RECEIVE;
        }
        flags
    }

    fn ends_to_guest(&self) -> bool {
        self.ended || self.guest_shutdown & SHUTDOWN_RECEIVE != 0
    }

    /// How many chains a read of the socket should fill.
    pub(super) fn burst(&self) -> usize {
        self.burst
    }

    /// Bytes of payload that the guest can take.
    pub(super) fn guest_room(&self) -> usize {
        self.credit.available() as usize
    }

    /// Reads the socket into `room`, which is not empty and at most
    /// [`guest_room`](Self::guest_room) bytes; returns how many there were.
    pub(super) fn receive(&mut self, room: &[VolatileSlice<'_>]) -> usize {
        let room = guest_bytes::at_once(room);
        let wanted = guest_bytes::len(room);
        match guest_bytes::receive(self.socket.as_fd(), room) {
            Ok(0) => {
                self.ended = true;
                0
            }
            Ok(count) => {
                self.burst = if count == wanted {
                    (2 * self.burst).min(MAX_BURST)
                } else {
                    1
                };
                count
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                self.readable = false;
                0
            }
            Err(_) => {
                self.ended = true;
                0
            }
        }
    }

    /// The header of a packet to the guest, which counts as sent from now on.
    pub(super) fn header(&mut self, op: Op, flags: u32, len: u32) -> Header {
        match op {
            Op::Request => self.handshake = Handshake::AwaitingResponse,
            Op::Response => self.handshake = Handshake::Established,
            Op::Shutdown => self.shutdown_sent |= flags,
            Op::Data => self.credit.send(len),
            Op::Reset | Op::CreditUpdate | Op::CreditRequest => {}
        }
        self.credit_requested = false;
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            len,
            kind: TYPE_STREAM,
            op: op.code(),
            flags,
            buf_alloc: BUF_ALLOC,
            fwd_cnt: self.credit.announce(),
        }
    }
}

impl Drop for Connection {
    /// Ends the stream for the host peer even if another process still holds
    /// our end of the socket.
    fn drop(&mut self) {
        self.shut(Shutdown::Both);
    }
}
