//! How bytes flow: complete, in order, within everybody's credit and with little
//! memory, whoever is slow.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use super::super::testing::Random;
use super::credit::BUF_ALLOC;
use super::packet::{HEADER_LEN, Header, Op, SHUTDOWN_SEND};
use super::test_driver::{Bench, GuestSocket, Packet, RX_LEN, read_available, spawned};

/// Bytes in each direction.
const TOTAL: usize = 64 << 20;
/// More than a Unix socket takes without a reader.
const SOCKET_BUFFER: usize = 512 << 10;

/// A long sequence of bytes that is the same for writer and reader.
struct Stream {
    random: Random,
    left: usize,
}

impl Stream {
    fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            left: TOTAL,
        }
    }

    /// The next bytes, `max` at most.
    fn take(&mut self, max: usize) -> Vec<u8> {
        let count = max.min(self.left);
        self.left -= count;
        let mut bytes = vec![self.random.next().to_le_bytes()[0]; count];
        // Not every byte needs to be random to find any that is missing or misplaced.
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = byte.wrapping_add((index / 7) as u8);
        }
        bytes
    }
}

/// Reads a [`Stream`] in pieces of any size.
struct Check {
    stream: Stream,
    ahead: Vec<u8>,
    piece: usize,
}

impl Check {
    fn new(seed: u64, piece: usize) -> Self {
        Self {
            stream: Stream::new(seed),
            ahead: Vec::new(),
            piece,
        }
    }

    /// `bytes` are the ones that come next.
    fn accept(&mut self, bytes: &[u8]) {
        while self.ahead.len() < bytes.len() {
            let piece = self.stream.take(self.piece);
            assert!(!piece.is_empty(), "more bytes than were sent");
            self.ahead.extend(piece);
        }
        let expected: Vec<_> = self.ahead.drain(..bytes.len()).collect();
        assert!(expected == bytes, "bytes are lost, repeated or misplaced");
    }

    fn is_complete(&self) -> bool {
        self.ahead.is_empty() && self.stream.left == 0
    }
}

/// Size of the pieces that streams are made of: fits no buffer on the way.
const PIECE: usize = 61_013;

fn write_stream(mut socket: UnixStream, seed: u64) {
    let mut stream = Stream::new(seed);
    while stream.left > 0 {
        socket.write_all(&stream.take(PIECE)).unwrap();
    }
    socket.shutdown(Shutdown::Write).unwrap();
}

fn check_stream(mut socket: UnixStream, seed: u64, pause: Duration) {
    let mut check = Check::new(seed, PIECE);
    let mut bytes = vec![0; 100_000];
    loop {
        let count = socket.read(&mut bytes).unwrap();
        if count == 0 {
            break;
        }
        check.accept(&bytes[..count]);
        thread::sleep(pause);
    }
    assert!(check.is_complete(), "the stream ends early");
}

/// The guest's application: writes a stream, and reads another one slowly.
struct Application {
    socket: GuestSocket,
    output: Stream,
    waiting: Option<Vec<u8>>,
    input: Vec<u8>,
    check: Check,
    /// Most bytes read at a time.
    appetite: usize,
    ended: bool,
    reset: bool,
}

impl Application {
    fn new(socket: GuestSocket, appetite: usize) -> Self {
        Self {
            socket,
            output: Stream::new(1),
            waiting: None,
            input: Vec::new(),
            check: Check::new(2, PIECE),
            appetite,
            ended: false,
            reset: false,
        }
    }

    fn take(&mut self, packet: &Packet) {
        self.socket.take(packet);
        match packet.op() {
            Op::Data => self.input.extend(&packet.payload),
            Op::CreditUpdate => {}
            Op::Shutdown => {
                assert_eq!(packet.header.flags, SHUTDOWN_SEND);
                self.ended = true;
            }
            Op::Reset => self.reset = true,
            op => panic!("{op:?}"),
        }
    }

    /// Reads some input; a packet if the host is to hear of it.
    fn read(&mut self) -> Option<Header> {
        let count = self.appetite.min(self.input.len());
        let bytes: Vec<_> = self.input.drain(..count).collect();
        self.check.accept(&bytes);
        self.socket
            .consume(count)
            .then(|| self.socket.header(Op::CreditUpdate, 0))
    }

    /// The next packet of output that credit allows; at the end a SHUTDOWN, once.
    fn write(&mut self) -> Option<(Header, Vec<u8>)> {
        if self.waiting.is_none() {
            if self.output.left == 0 {
                return None;
            }
            self.waiting = Some(self.output.take(PIECE));
        }
        let mut bytes = self.waiting.take()?;
        let rest = bytes.split_off(bytes.len().min(self.socket.credit()));
        let last = rest.is_empty() && self.output.left == 0;
        if !rest.is_empty() {
            self.waiting = Some(rest);
        }
        if bytes.is_empty() {
            return None;
        }
        let mut header = self.socket.header(Op::Data, bytes.len());
        header.flags = u32::from(last);
        Some((header, bytes))
    }
}

/// Who is slow, and how the driver goes about it.
struct Exchange {
    event_idx: bool,
    rx_buffers: usize,
    /// How long the reader on the host sleeps after each read.
    host_pause: Duration,
    /// Most bytes that the reader in the guest reads at a time.
    guest_appetite: usize,
}

/// Nobody is slow, and the driver is Linux's.
const FAST: Exchange = Exchange {
    event_idx: true,
    rx_buffers: 128,
    host_pause: Duration::ZERO,
    guest_appetite: usize::MAX,
};

/// Runs both directions at once until both have ended.
fn exchange(settings: &Exchange) {
    let (_vsock, connector, mut driver) = spawned(settings.event_idx, settings.rx_buffers);
    let (host, theirs) = UnixStream::pair().unwrap();
    connector.connect(1025, theirs.into()).unwrap();
    let request = driver.wait().remove(0);
    let mut socket = GuestSocket::new(1025, request.header.src_port);
    socket.take(&request);
    driver.send(&socket.header(Op::Response, 0), &[]);

    let writer = host.try_clone().unwrap();
    let writer = thread::spawn(move || write_stream(writer, 2));
    let pause = settings.host_pause;
    let reader = thread::spawn(move || check_stream(host, 1, pause));

    let mut application = Application::new(socket, settings.guest_appetite);
    let mut shut = false;
    while !application.reset {
        driver.want_interrupt();
        let mut progress = false;
        for packet in driver.receive() {
            application.take(&packet);
            progress = true;
        }
        if !application.input.is_empty() && driver.can_send() {
            progress = true;
            if let Some(header) = application.read() {
                driver.send(&header, &[]);
            }
        }
        while driver.can_send()
            && let Some((mut header, bytes)) = application.write()
        {
            shut = header.flags != 0;
            header.flags = 0;
            driver.send(&header, &bytes);
            progress = true;
        }
        if std::mem::take(&mut shut) {
            while !driver.can_send() {
                thread::yield_now();
            }
            let header = Header {
                flags: SHUTDOWN_SEND,
                ..application.socket.header(Op::Shutdown, 0)
            };
            driver.send(&header, &[]);
        }
        if !progress {
            // Whoever waits here for ever has found a lost interrupt or kick, or a deadlock.
            driver.wait_for_interrupt();
        }
    }
    while !application.input.is_empty() {
        application.read();
    }
    assert!(application.ended, "a reset before the end of the stream");
    assert!(application.check.is_complete(), "the stream ends early");
    writer.join().unwrap();
    reader.join().unwrap();
    assert!(!driver.rx.interrupt().has_failed());
}

#[test]
fn both_directions_at_once_with_fast_readers() {
    exchange(&FAST);
}

#[test]
fn both_directions_at_once_with_a_slow_reader_on_the_host() {
    exchange(&Exchange {
        host_pause: Duration::from_micros(500),
        ..FAST
    });
}

#[test]
fn both_directions_at_once_with_a_slow_reader_in_the_guest() {
    exchange(&Exchange {
        guest_appetite: 3000,
        ..FAST
    });
}

#[test]
fn both_directions_at_once_with_slow_readers_on_both_sides() {
    exchange(&Exchange {
        host_pause: Duration::from_micros(500),
        guest_appetite: 5000,
        ..FAST
    });
}

#[test]
fn both_directions_at_once_with_few_rx_buffers() {
    exchange(&Exchange {
        rx_buffers: 3,
        ..FAST
    });
}

#[test]
fn both_directions_at_once_without_event_idx() {
    exchange(&Exchange {
        event_idx: false,
        rx_buffers: 20,
        host_pause: Duration::from_micros(100),
        guest_appetite: 20_000,
    });
}

#[test]
fn a_host_that_does_not_read_costs_no_more_than_one_buffer() {
    let mut bench = Bench::new();
    let (mut guest, mut host) = bench.host_connection(1025);
    let mut sent = 0;
    loop {
        for packet in bench.packets() {
            guest.take(&packet);
        }
        let count = guest.credit().min(9999);
        if count == 0 {
            break;
        }
        bench.send(&mut guest, Op::Data, &vec![1; count]);
        sent += count;
        assert!(bench.event_loop.muxer().buffer_capacity() <= BUF_ALLOC as usize);
    }
    assert!(sent < BUF_ALLOC as usize + SOCKET_BUFFER);
    assert!(bench.event_loop.muxer().buffer_capacity() > 0);

    // Whatever is small and often is no way around it.
    let mut received = 0;
    while received < sent {
        received += read_available(&mut host).0.len();
        bench.poll();
    }
    assert_eq!(received, sent);
    assert_eq!(
        bench.event_loop.muxer().buffer_capacity(),
        0,
        "an idle connection holds no memory"
    );
}

#[test]
fn a_guest_that_does_not_read_stops_the_host() {
    let mut bench = Bench::new();
    let (mut guest, mut host) = bench.host_connection(1025);
    let mut written = 0;
    let mut received = 0;
    loop {
        match host.write(&[2; 10_000]) {
            Ok(count) => written += count,
            Err(_) if received == guest.buf_alloc as usize => break,
            Err(_) => {}
        }
        for packet in bench.packets() {
            guest.take(&packet);
            received += packet.payload.len();
        }
    }
    assert!(written < received + SOCKET_BUFFER);
    assert_eq!(bench.ops(), []);
}

#[test]
fn the_guests_credit_is_used_up_to_the_last_byte_and_not_beyond() {
    for buf_alloc in [1, 44, 1000, 4096, 4097, 5000, 65_537] {
        let mut bench = Bench::new();
        let mut host = bench.request(1025);
        let request = bench.packets().remove(0);
        let mut guest = GuestSocket::new(1025, request.header.src_port);
        guest.buf_alloc = buf_alloc;
        bench.send(&mut guest, Op::Response, &[]);
        host.write_all(&vec![3; 100_000]).unwrap();
        let mut total = 0;
        for _ in 0..5 {
            let packets = bench.packets();
            packets.iter().for_each(|packet| guest.take(packet));
            let len: usize = packets.iter().map(|packet| packet.payload.len()).sum();
            assert_eq!(len, (buf_alloc as usize).min(100_000 - total));
            total += len;
            guest.consume(len);
            bench.send(&mut guest, Op::CreditUpdate, &[]);
        }
    }
}

#[test]
fn the_guest_hears_of_freed_space_when_half_of_the_buffer_is_free() {
    let mut bench = Bench::new();
    let (mut guest, mut host) = bench.host_connection(1025);
    let half = BUF_ALLOC as usize / 2;
    let mut sent = 0;
    while sent < half - 1 {
        let count = (half - 1 - sent).min(30_000);
        bench.send(&mut guest, Op::Data, &vec![4; count]);
        sent += count;
        assert_eq!(bench.ops(), []);
        read_available(&mut host);
    }
    bench.send(&mut guest, Op::Data, &[4]);
    let packets = bench.packets();
    assert_eq!(packets.len(), 1);
    assert_eq!(packets[0].op(), Op::CreditUpdate);
    guest.take(&packets[0]);
    assert_eq!(guest.credit(), BUF_ALLOC as usize);
}

#[test]
fn a_question_for_credit_is_answered() {
    let mut bench = Bench::new();
    let (mut guest, _host) = bench.host_connection(1025);
    bench.send(&mut guest, Op::Data, &[5; 100]);
    for _ in 0..10 {
        bench.send(&mut guest, Op::CreditRequest, &[]);
    }
    let packets = bench.packets();
    assert_eq!(
        packets.len(),
        1,
        "one answer for all that were asked at once"
    );
    assert_eq!(packets[0].op(), Op::CreditUpdate);
    assert_eq!(packets[0].header.buf_alloc, BUF_ALLOC);
    assert_eq!(packets[0].header.fwd_cnt, 100);
}

#[test]
fn every_packet_carries_credit_so_that_none_is_sent_for_it_alone() {
    let mut bench = Bench::new();
    let (mut guest, mut host) = bench.host_connection(1025);
    for _ in 0..3 {
        bench.send(&mut guest, Op::Data, &vec![6; 60_000]);
    }
    host.write_all(b"an answer").unwrap();
    let packets = bench.packets();
    assert_eq!(packets.len(), 1, "{packets:?}");
    assert_eq!(packets[0].op(), Op::Data);
    guest.take(&packets[0]);
    assert_eq!(guest.credit(), BUF_ALLOC as usize);
}

#[test]
fn what_finds_no_rx_buffer_waits_for_one() {
    let mut bench = Bench::inactive();
    bench.driver.refill = false;
    bench.activate();
    let mut host = bench.request(1025);
    assert_eq!(bench.ops(), []);
    bench.driver.offer(&[RX_LEN]);
    let request = bench.packets().remove(0);
    assert_eq!(request.op(), Op::Request);
    let mut guest = GuestSocket::new(1025, request.header.src_port);
    bench.send(&mut guest, Op::Response, &[]);
    host.write_all(&[7; 10_000]).unwrap();
    drop(host);
    assert_eq!(bench.ops(), []);
    let mut bytes = 0;
    let mut ops = Vec::new();
    while bench.connections() > 0 {
        bench.driver.offer(&[RX_LEN]);
        let packet = bench.packets().remove(0);
        bytes += packet.payload.len();
        ops.push(packet.op());
    }
    bench.driver.offer(&[RX_LEN]);
    ops.extend(bench.ops());
    assert_eq!(bytes, 10_000);
    assert_eq!(ops.pop(), Some(Op::Reset));
    assert_eq!(ops.pop(), Some(Op::Shutdown));
}

#[test]
fn rx_buffers_are_used_in_full_whatever_they_consist_of() {
    let mut bench = Bench::inactive();
    bench.driver.refill = false;
    let lens: [&[usize]; 7] = [
        &[HEADER_LEN, 100],
        &[10, 10, 10, 10, 10, 10, 10],
        &[HEADER_LEN + 1],
        &[1, HEADER_LEN + 1000],
        &[HEADER_LEN - 1, 2],
        &[HEADER_LEN, 0, 5],
        &[HEADER_LEN + 70_000],
    ];
    bench.driver.offer(&[HEADER_LEN]);
    for chain in lens {
        bench.driver.offer(chain);
    }
    bench.activate();
    let (mut guest, mut host) = bench.host_connection(1025);
    let bytes = Random::new(8).bytes(90_000);
    host.write_all(&bytes).unwrap();
    let packets = bench.packets();
    let mut received: Vec<u8> = Vec::new();
    for (packet, chain) in packets.iter().zip(lens) {
        guest.take(packet);
        let room = chain.iter().sum::<usize>() - HEADER_LEN;
        assert_eq!(packet.payload.len(), room.min(65_536), "{chain:?}");
        received.extend(&packet.payload);
    }
    assert_eq!(packets.len(), lens.len());
    assert!(received == bytes[..received.len()]);
}

#[test]
fn rx_buffers_without_room_for_payload_lose_none() {
    let mut bench = Bench::inactive();
    bench.driver.refill = false;
    bench.driver.offer(&[HEADER_LEN]);
    bench.activate();
    let (mut guest, mut host) = bench.host_connection(1025);
    for _ in 0..20 {
        bench.driver.offer(&[HEADER_LEN]);
        bench.driver.offer(&[HEADER_LEN + 4]);
    }
    host.write_all(b"complete, whatever comes").unwrap();
    let mut received = Vec::new();
    for packet in bench.packets() {
        guest.take(&packet);
        received.extend(packet.payload);
    }
    assert_eq!(received, b"complete, whatever comes");
}

#[test]
fn connections_take_turns_at_the_rx_queue() {
    let mut bench = Bench::new();
    let mut hosts: Vec<_> = (0..4).map(|port| bench.host_connection(port)).collect();
    for (_, host) in &mut hosts {
        host.write_all(&[9; 150_000]).unwrap();
    }
    bench.turn();
    let packets = bench.driver.receive();
    assert!(packets.len() >= 100, "{}", packets.len());
    for (guest, _) in &mut hosts {
        let mine = packets
            .iter()
            .filter(|packet| packet.header.dst_port == guest.port)
            .count();
        assert!(mine >= packets.len() / 8, "{mine} of {}", packets.len());
    }
}

#[test]
fn a_batch_of_packets_costs_one_interrupt_a_queue() {
    let mut bench = Bench::new();
    let (mut guest, mut host) = bench.host_connection(1025);
    bench.poll();
    bench.driver.receive();
    bench.driver.interrupts();
    bench.driver.want_interrupt();
    host.write_all(&[10; 100_000]).unwrap();
    for _ in 0..20 {
        bench.send(&mut guest, Op::Data, &[11; 1000]);
    }
    bench.poll();
    assert!(bench.driver.interrupts() <= 2);
    assert!(bench.driver.receive().len() >= 25);
    assert_eq!(read_available(&mut host).0.len(), 20_000);
}
