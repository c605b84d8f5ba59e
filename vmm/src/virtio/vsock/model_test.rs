//! Random but lawful traffic on many connections at once, compared with what
//! must come out at the other end.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use super::super::testing::Random;
use super::packet::{HEADER_LEN, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::test_driver::{Bench, GuestSocket, OPEN_PORT, Packet};

const BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// Both ends of a connection, and what is on the way between them.
struct Pair {
    guest: GuestSocket,
    host: Option<UnixStream>,
    /// Bytes that the guest has sent and the host not read.
    to_host: Vec<u8>,
    /// Bytes that the host has written and the guest not received.
    to_guest: Vec<u8>,
    /// Received, and not consumed by the guest's application.
    unread: usize,
    /// Flags of the guest's SHUTDOWN packets.
    guest_shut: u32,
    /// Flags of the device's SHUTDOWN packets.
    host_shut: u32,
    /// The host has shut its writing side, or closed the socket.
    host_ended: bool,
    /// The device has ended the connection.
    reset: bool,
}

impl Pair {
    fn new(guest: GuestSocket, host: UnixStream) -> Self {
        Self {
            guest,
            host: Some(host),
            to_host: Vec::new(),
            to_guest: Vec::new(),
            unread: 0,
            guest_shut: 0,
            host_shut: 0,
            host_ended: false,
            reset: false,
        }
    }

    fn on_packet(&mut self, packet: &Packet) {
        assert!(!self.reset, "a packet after the reset: {packet:?}");
        self.guest.take(packet);
        match packet.op() {
            Op::Data => {
                assert_eq!(self.host_shut & SHUTDOWN_SEND, 0, "data after the end");
                let count = packet.payload.len();
                assert!(packet.payload == self.to_guest[..count], "other bytes");
                self.to_guest.drain(..count);
                self.unread += count;
            }
            Op::Shutdown => {
                self.host_shut |= packet.header.flags;
                if packet.header.flags & SHUTDOWN_SEND != 0 {
                    assert!(self.host_ended);
                    assert!(self.to_guest.is_empty(), "bytes are lost");
                }
                if packet.header.flags & SHUTDOWN_RECEIVE != 0 {
                    assert!(self.host.is_none(), "the host has not closed");
                }
            }
            Op::Reset => {
                self.reset = true;
                assert!(self.to_guest.is_empty() || self.guest_shut & SHUTDOWN_RECEIVE != 0);
                assert!(self.host.is_none() || self.guest_shut & SHUTDOWN_SEND != 0);
            }
            Op::CreditUpdate => {}
            op => panic!("{op:?}"),
        }
    }

    fn host_writes(&mut self, bytes: &[u8]) {
        if let Some(host) = &mut self.host
            && !self.host_ended
        {
            match host.write(bytes) {
                Ok(count) => self.to_guest.extend(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => assert_ne!(self.guest_shut & SHUTDOWN_RECEIVE, 0),
            }
        }
    }

    fn host_reads(&mut self, max: usize) {
        let Some(host) = &mut self.host else { return };
        let mut bytes = vec![0; max];
        match host.read(&mut bytes) {
            Ok(0) if max > 0 => {
                assert_ne!(self.guest_shut & SHUTDOWN_SEND, 0, "the stream ends early");
                assert!(self.to_host.is_empty(), "bytes are lost");
            }
            Ok(count) => {
                assert!(bytes[..count] == self.to_host[..count], "other bytes");
                self.to_host.drain(..count);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            // The guest has not taken all that the host wrote.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                assert_eq!(self.guest_shut, BOTH);
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn is_over(&self) -> bool {
        self.reset && self.to_host.is_empty()
    }
}

struct Model {
    bench: Bench,
    random: Random,
    pairs: BTreeMap<u32, Pair>,
    /// Ports of the guest of connections that wait for an answer.
    asked: BTreeMap<u32, UnixStream>,
    next_port: u32,
    /// Connections that have ended.
    ended: usize,
}

impl Model {
    fn step(&mut self) {
        self.act();
        if self.random.below(3) == 0 {
            self.offer();
        }
        self.bench.turn();
        for packet in self.bench.driver.receive() {
            self.on_packet(&packet);
        }
        self.forget_ended();
        assert!(!self.bench.driver.has_failed());
    }

    fn on_packet(&mut self, packet: &Packet) {
        let port = packet.header.dst_port;
        match packet.op() {
            Op::Request => {
                let host = self.asked.remove(&port).expect("a wish of the host");
                let mut guest = GuestSocket::new(port, packet.header.src_port);
                guest.buf_alloc = self.random.pick(&[100, 5000, 65_536, 262_144]);
                guest.take(packet);
                self.bench.send(&mut guest, Op::Response, &[]);
                self.pairs.insert(port, Pair::new(guest, host));
            }
            Op::Response => {
                let host = self.bench.accepted().expect("an accepted connection");
                let mut guest = GuestSocket::new(port, OPEN_PORT);
                guest.take(packet);
                self.pairs.insert(port, Pair::new(guest, host));
            }
            // Of a request to a port that is in use.
            Op::Reset if !self.pairs.contains_key(&port) => {
                assert_eq!(packet.header.src_port, OPEN_PORT);
            }
            _ => self
                .pairs
                .get_mut(&port)
                .expect("a connection")
                .on_packet(packet),
        }
    }

    /// Somebody does something.
    fn act(&mut self) {
        let bytes = self.random.bytes(64);
        let count = self.random.pick(&[1, 10, 1000, 5000, 70_000]);
        let bytes: Vec<u8> = bytes.into_iter().cycle().take(count).collect();
        if self.pairs.len() + self.asked.len() < 5 && self.random.below(4) == 0 {
            self.connect();
            return;
        }
        let ports: Vec<_> = self.pairs.keys().copied().collect();
        if ports.is_empty() || !self.bench.driver.can_send() {
            return;
        }
        let pair = self.pairs.get_mut(&self.random.pick(&ports)).unwrap();
        let bench = &mut self.bench;
        match self.random.below(24) {
            0..6 => pair.host_writes(&bytes),
            6..10 => pair.host_reads(count),
            _ if pair.reset => {}
            10..16 if pair.guest_shut & SHUTDOWN_SEND == 0 => {
                let count = count.min(pair.guest.credit()).min(65_536);
                bench.send(&mut pair.guest, Op::Data, &bytes[..count]);
                if pair.host.is_some() {
                    pair.to_host.extend(&bytes[..count]);
                }
            }
            16..20 => {
                let count = count.min(pair.unread);
                pair.unread -= count;
                pair.guest.consume(count);
                bench.send(&mut pair.guest, Op::CreditUpdate, &[]);
            }
            20 => bench.send(&mut pair.guest, Op::CreditRequest, &[]),
            21 if self.random.below(4) == 0 => {
                pair.guest_shut |= self.random.pick(&[SHUTDOWN_SEND, SHUTDOWN_RECEIVE, BOTH]);
                bench.shutdown(&mut pair.guest, pair.guest_shut);
            }
            22 if self.random.below(4) == 0 => {
                if let Some(host) = &pair.host {
                    // Fails when the guest has ended the connection already.
                    let _ = host.shutdown(Shutdown::Write);
                    pair.host_ended = true;
                }
            }
            23 if self.random.below(4) == 0 => {
                pair.host = None;
                pair.host_ended = true;
                pair.to_host.clear();
            }
            _ => {}
        }
    }

    fn connect(&mut self) {
        self.next_port += 1;
        let port = self.next_port;
        if self.random.below(3) > 0 {
            self.asked.insert(port, self.bench.request(port));
        } else if self.bench.driver.can_send() {
            let mut guest = GuestSocket::new(port, OPEN_PORT);
            self.bench.send(&mut guest, Op::Request, &[]);
        }
    }

    fn offer(&mut self) {
        let len = self.random.pick(&[0, 1, 100, 4096, 4096, 20_000]);
        let chain = match self.random.below(4) {
            0 => vec![HEADER_LEN, len],
            1 => vec![20, 30, len],
            _ => vec![HEADER_LEN + len],
        };
        if self.bench.driver.has_room_for(chain.len()) && !self.bench.driver.is_worn_out() {
            self.bench.driver.offer(&chain);
        }
    }

    fn forget_ended(&mut self) {
        let before = self.pairs.len();
        self.pairs.retain(|_, pair| !pair.is_over());
        self.ended += before - self.pairs.len();
    }

    /// Everybody reads what there is and closes: nothing may be left.
    fn finish(&mut self) {
        for _ in 0..3000 {
            while self.bench.driver.can_send()
                && let Some(pair) = self
                    .pairs
                    .values_mut()
                    .find(|pair| pair.unread > 0 && !pair.reset)
            {
                pair.guest.consume(std::mem::take(&mut pair.unread));
                self.bench.send(&mut pair.guest, Op::CreditUpdate, &[]);
            }
            for pair in self.pairs.values_mut() {
                pair.host_reads(100_000);
                if let Some(host) = &pair.host {
                    let _ = host.shutdown(Shutdown::Write);
                }
                pair.host_ended = true;
                if pair.guest_shut & SHUTDOWN_SEND == 0
                    && self.bench.driver.can_send()
                    && !pair.reset
                {
                    pair.guest_shut |= SHUTDOWN_SEND;
                    self.bench.shutdown(&mut pair.guest, pair.guest_shut);
                }
            }
            self.offer();
            self.bench.turn();
            for packet in self.bench.driver.receive() {
                self.on_packet(&packet);
            }
            self.forget_ended();
            if self.pairs.is_empty() && self.asked.is_empty() {
                break;
            }
        }
        assert!(self.pairs.is_empty(), "connections are stuck");
        assert_eq!(self.bench.connections(), 0);
        assert_eq!(self.bench.event_loop.muxer().buffer_capacity(), 0);
    }
}

#[test]
fn lawful_traffic_arrives_as_it_was_sent() {
    let mut ended = 0;
    for seed in 0..60 {
        let mut model = Model {
            bench: Bench::new(),
            random: Random::new(seed),
            pairs: BTreeMap::new(),
            asked: BTreeMap::new(),
            next_port: 2000,
            ended: 0,
        };
        for _ in 0..2000 {
            model.step();
        }
        model.finish();
        ended += model.ended;
    }
    assert!(ended > 500, "too little was tried: {ended}");
}
