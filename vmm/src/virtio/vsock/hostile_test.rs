//! A guest that breaks the rules gains nothing: no memory, no panic, no way
//! around its credit.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use vm_memory::{Bytes, GuestAddress};

use super::super::GuestMemory;
use super::super::queue::Buffer;
use super::super::testing::{Desc, Random};
use super::credit::BUF_ALLOC;
use super::muxer::{MAX_CONNECTIONS, MAX_REPLIES};
use super::packet::{HEADER_LEN, HOST_CID, Header, MAX_PAYLOAD, Op, SHUTDOWN_SEND, TYPE_STREAM};
use super::test_driver::{
    Bench, Driver, GUEST_CID, GuestSocket, OPEN_PORT, RX_LEN, read_available, spawned,
};

/// Where the guest memory of a [`Driver`] ends.
const MEMORY_END: u64 = 16 << 20;

#[test]
fn a_guest_that_exceeds_its_credit_is_reset() {
    let mut bench = Bench::new();
    let (mut guest, mut host) = bench.host_connection(1025);
    let mut sent = 0;
    while sent < BUF_ALLOC as usize {
        bench.send(&mut guest, Op::Data, &[1; 65_536]);
        sent += 65_536;
    }
    // Without having heard of any freed space:
    bench.send(&mut guest, Op::Data, &[2]);
    let ops = bench.ops();
    assert_eq!(ops.last(), Some(&Op::Reset), "{ops:?}");
    let mut received = Vec::new();
    loop {
        let (bytes, ended) = read_available(&mut host);
        received.extend(bytes);
        if ended {
            break;
        }
        bench.poll();
    }
    assert!(
        received == vec![1; sent],
        "what was within credit is delivered"
    );
    assert_eq!(bench.connections(), 0);
}

#[test]
fn a_guest_that_sends_after_it_said_it_would_not_is_reset() {
    let mut bench = Bench::new();
    let (mut guest, mut host) = bench.host_connection(1025);
    bench.shutdown(&mut guest, SHUTDOWN_SEND);
    bench.send(&mut guest, Op::Data, b"x");
    assert_eq!(bench.ops(), [Op::Reset]);
    assert_eq!(read_available(&mut host), (vec![], true));
}

#[test]
fn packets_that_do_not_fit_a_connections_state_reset_it() {
    for op in [Op::Request, Op::Response] {
        let mut bench = Bench::new();
        let (mut guest, _host) = bench.host_connection(1025);
        bench.send(&mut guest, op, &[]);
        assert_eq!(bench.ops(), [Op::Reset], "{op:?} when established");
        assert_eq!(bench.connections(), 0);
    }
    for op in [Op::Request, Op::Data, Op::Shutdown, Op::CreditRequest] {
        let mut bench = Bench::new();
        let _host = bench.request(1025);
        let request = bench.packets().remove(0);
        let mut guest = GuestSocket::new(1025, request.header.src_port);
        bench.send(&mut guest, op, &[]);
        assert_eq!(bench.ops(), [Op::Reset], "{op:?} instead of an answer");
        assert_eq!(bench.connections(), 0);
    }
}

#[test]
fn an_answer_that_was_not_asked_for_makes_no_connection() {
    let mut bench = Bench::inactive();
    bench.activate();
    // No RX buffer, so the request cannot have been sent.
    let _host = bench.request(1025);
    let mut guest = GuestSocket::new(1025, 1 << 30);
    bench.send(&mut guest, Op::Response, &[]);
    bench.poll();
    bench.driver.offer_all();
    assert_eq!(bench.ops(), [Op::Reset]);
    assert_eq!(bench.connections(), 0);
}

#[test]
fn packets_of_no_connection_are_reset() {
    let mut bench = Bench::new();
    for op in [
        Op::Response,
        Op::Shutdown,
        Op::Data,
        Op::CreditUpdate,
        Op::CreditRequest,
    ] {
        let mut guest = GuestSocket::new(5000, OPEN_PORT);
        bench.send(&mut guest, op, &[]);
        let packets = bench.packets();
        assert_eq!(packets.len(), 1, "{op:?}");
        assert_eq!(packets[0].op(), Op::Reset);
        guest.take(&packets[0]);
    }
    let mut guest = GuestSocket::new(5000, OPEN_PORT);
    bench.send(&mut guest, Op::Reset, &[]);
    assert_eq!(bench.ops(), [], "a reset is not answered");
}

#[test]
fn unknown_types_and_operations_are_reset() {
    let mut bench = Bench::new();
    let mut guest = GuestSocket::new(5000, OPEN_PORT);
    let request = guest.header(Op::Request, 0);
    for kind in [0, 2, 3, u16::MAX] {
        bench.driver.send(&Header { kind, ..request }, &[]);
        let packets = bench.packets();
        assert_eq!(packets.len(), 1);
        assert_eq!(packets[0].op(), Op::Reset);
        assert_eq!(packets[0].header.kind, kind);
    }
    for op in [0, 8, u16::MAX] {
        bench.driver.send(&Header { op, ..request }, &[]);
        assert_eq!(bench.ops(), [Op::Reset]);
    }
    assert!(bench.accepted().is_none());
}

#[test]
fn packets_in_the_name_of_others_are_ignored() {
    let mut bench = Bench::new();
    let (mut guest, mut host) = bench.host_connection(1025);
    for src_cid in [0, HOST_CID, GUEST_CID + 1, GUEST_CID | 1 << 32] {
        let header = Header {
            src_cid,
            ..guest.header(Op::Reset, 0)
        };
        bench.driver.send(&header, &[]);
    }
    assert_eq!(bench.ops(), []);
    assert_eq!(bench.driver.unsent(), 0);
    bench.send(&mut guest, Op::Data, b"untouched");
    bench.poll();
    assert_eq!(read_available(&mut host), (b"untouched".to_vec(), false));
}

#[test]
fn a_guest_that_takes_no_replies_is_not_listened_to() {
    let mut bench = Bench::inactive();
    bench.driver.refill = false;
    bench.activate();
    let junk = GuestSocket::new(5000, 1).header(Op::Data, 0);
    let buffer = bench.driver.tx.buffer(&junk.encode());
    let mut sent = 0;
    let mut answered = 0;
    while sent < 10 * MAX_REPLIES || answered < sent {
        while sent < 10 * MAX_REPLIES && bench.driver.unsent() < 200 {
            bench.driver.send_chain(&[Desc::readable(buffer)]);
            sent += 1;
        }
        bench.poll();
        let waiting = bench.event_loop.muxer().waiting_resets();
        assert!(waiting <= MAX_REPLIES, "{waiting}");
        if bench.driver.unsent() == 200 || sent == 10 * MAX_REPLIES {
            // It is stuck until there are RX buffers, and goes on then.
            while bench.driver.has_room_for(1) {
                bench.driver.offer(&[RX_LEN]);
            }
            let packets = bench.packets();
            assert!(!packets.is_empty());
            assert!(packets.iter().all(|packet| packet.op() == Op::Reset));
            answered += packets.len();
        }
    }
    assert_eq!(answered, sent);
    assert_eq!(bench.driver.unsent(), 0);
}

#[test]
fn a_guest_that_takes_its_replies_at_last_is_listened_to_again() {
    let (_vsock, _connector, mut driver) = spawned(true, 0);
    driver.refill = false;
    let junk = GuestSocket::new(5000, 1).header(Op::Data, 0);
    let buffer = driver.tx.buffer(&junk.encode());
    let send = |driver: &mut Driver, count| {
        for _ in 0..count {
            driver.send_chain(&[Desc::readable(buffer)]);
        }
    };
    send(&mut driver, MAX_REPLIES - 10);
    loop {
        driver.want_interrupt();
        if driver.unsent() == 0 {
            break;
        }
        driver.wait_for_interrupt();
    }
    send(&mut driver, 100);
    // The device is woken by nothing but RX buffers from here on.
    let mut answered = 0;
    while answered < MAX_REPLIES + 90 {
        while driver.has_room_for(1) {
            driver.offer(&[RX_LEN]);
        }
        answered += driver.wait().len();
    }
    assert_eq!(driver.unsent(), 0);
}

#[test]
fn a_flood_of_connections_leaves_one_a_port() {
    let mut bench = Bench::new();
    let mut hosts = Vec::new();
    for port in 0..5000 {
        let mut guest = GuestSocket::new(port, OPEN_PORT);
        bench.send(&mut guest, Op::Request, &[]);
        bench.poll();
        bench.driver.receive();
        hosts.extend(bench.accepted());
        assert!(bench.connections() <= 1);
        // Now and then the guest gives up what it has.
        if port % 7 == 0 {
            bench.send(&mut guest, Op::Reset, &[]);
        }
    }
    assert!(hosts.len() <= 5000 / 7 + 1);
}

#[test]
fn connections_that_come_and_go_without_rx_buffers_leave_nothing_behind() {
    let mut bench = Bench::inactive();
    bench.activate();
    // Stays at the head of those that wait for a buffer.
    let _host = bench.request(1025);
    bench.poll();
    for port in 0..2000 {
        let mut guest = GuestSocket::new(port, OPEN_PORT);
        bench.send(&mut guest, Op::Request, &[]);
        bench.turn();
        assert_eq!(bench.connections(), 2);
        bench.send(&mut guest, Op::Reset, &[]);
        bench.turn();
        assert_eq!(bench.connections(), 1);
        assert_eq!(bench.event_loop.muxer().waiting_connections(), 1);
    }
    assert_eq!(bench.event_loop.muxer().waiting_resets(), 0);
}

#[test]
fn a_guest_that_asks_again_and_again_without_rx_buffers_waits_once() {
    let mut bench = Bench::inactive();
    bench.driver.refill = false;
    bench.driver.offer(&[RX_LEN]);
    bench.activate();
    let (mut guest, mut host) = bench.host_connection(1025);
    host.write_all(b"for later").unwrap();
    for _ in 0..2000 {
        bench.send(&mut guest, Op::CreditRequest, &[]);
        bench.turn();
        assert_eq!(bench.event_loop.muxer().waiting_connections(), 1);
    }
}

/// A chain for the TX queue and one for the RX queue.
type Chains = (Vec<Desc>, Vec<Desc>);

/// What is wrong, and how to make it.
type Case = (&'static str, fn(&mut Driver) -> Chains);

#[test]
fn a_driver_that_offers_broken_chains_is_not_served_until_it_resets_the_device() {
    let outside = Buffer {
        address: GuestAddress(MEMORY_END - 10),
        len: 100,
    };
    let cases: [Case; 7] = [
        ("a header that is cut off", |driver| {
            (vec![Desc::readable(driver.tx.buffer(&[0; 43]))], vec![])
        }),
        ("a packet longer than its chain", |driver| {
            let header = GuestSocket::new(1, 1).header(Op::Data, 1);
            (
                vec![Desc::readable(driver.tx.buffer(&header.encode()))],
                vec![],
            )
        }),
        ("a packet longer than any", |driver| {
            let header = GuestSocket::new(1, 1).header(Op::Data, MAX_PAYLOAD + 1);
            let header = driver.tx.buffer(&header.encode());
            let payload = driver.tx.room(MAX_PAYLOAD + 1);
            (
                vec![Desc::readable(header), Desc::readable(payload)],
                vec![],
            )
        }),
        ("a TX buffer that the device would write", |driver| {
            (vec![Desc::writable(driver.tx.room(100))], vec![])
        }),
        ("a TX chain that loops", |driver| {
            let mut desc = Desc::readable(driver.tx.room(10));
            desc.next = Some(0);
            (vec![desc], vec![])
        }),
        ("an RX buffer without room for a header", |driver| {
            (vec![], vec![Desc::writable(driver.rx.room(43))])
        }),
        ("an RX buffer that the device would read", |driver| {
            (vec![], vec![Desc::readable(driver.rx.room(100))])
        }),
    ];
    let mut bench = Bench::new();
    for (what, chains) in cases {
        let (_guest, mut host) = bench.host_connection(1025);
        bench.restart_without_rx();
        let (tx, rx) = chains(&mut bench.driver);
        assert_fails(&mut bench, what, &tx, &rx);
        assert_eq!(read_available(&mut host), (vec![], true));
        bench.restart(Driver::new());
    }
    bench.restart_without_rx();
    assert_fails(
        &mut bench,
        "TX out of memory",
        &[Desc::readable(outside)],
        &[],
    );
    bench.restart_without_rx();
    assert_fails(
        &mut bench,
        "RX out of memory",
        &[],
        &[Desc::writable(outside)],
    );
}

fn assert_fails(bench: &mut Bench, what: &str, tx: &[Desc], rx: &[Desc]) {
    let mut host = bench.request(1025);
    if !tx.is_empty() {
        bench.driver.send_chain(tx);
    }
    if !rx.is_empty() {
        bench.driver.offer_descs(rx);
    }
    bench.poll();
    assert!(bench.driver.has_failed(), "{what}");
    assert_eq!(bench.connections(), 0);
    assert_eq!(read_available(&mut host), (vec![], true), "{what}");
    // Nothing is taken any more, and nobody waits for a device that is no use.
    bench.driver.offer_all();
    let mut host = bench.request(1025);
    bench.poll();
    assert_eq!(read_available(&mut host), (vec![], true));
    assert!(bench.driver.receive().is_empty());
}

#[test]
fn an_available_index_that_runs_ahead_fails_the_device() {
    let mut bench = Bench::new();
    bench.driver.tx.set_available_index(1000);
    bench.poll();
    assert!(bench.driver.has_failed());
}

#[test]
fn packets_at_the_end_of_memory_are_as_good_as_any() {
    let mut bench = Bench::new();
    let (mut guest, mut host) = bench.host_connection(1025);
    let len = 10;
    let bytes = [&guest.header(Op::Data, len).encode()[..], b"0123456789"].concat();
    let address = GuestAddress(MEMORY_END - bytes.len() as u64);
    bench
        .driver
        .tx
        .memory()
        .write_slice(&bytes, address)
        .unwrap();
    bench.driver.send_chain(&[Desc::readable(Buffer {
        address,
        len: u32::try_from(bytes.len()).unwrap(),
    })]);
    bench.poll();
    assert!(!bench.driver.has_failed());
    assert_eq!(read_available(&mut host), (b"0123456789".to_vec(), false));
}

#[test]
fn packets_across_the_border_of_two_regions_fail_the_device_or_are_taken() {
    let half = MEMORY_END / 2;
    for cut in [0, 1, 20, HEADER_LEN as u64, HEADER_LEN as u64 + 5] {
        let size = usize::try_from(half).unwrap();
        let regions = [(GuestAddress(0), size), (GuestAddress(half), size)];
        let memory = GuestMemory::from_ranges(&regions).unwrap();
        let mut bench = Bench::new();
        bench.restart(Driver::in_memory(memory));
        let (mut guest, mut host) = bench.host_connection(1025);
        let bytes = [&guest.header(Op::Data, 10).encode()[..], b"0123456789"].concat();
        let start = GuestAddress(half - cut);
        bench.driver.tx.memory().write_slice(&bytes, start).unwrap();
        let whole = Buffer {
            address: start,
            len: u32::try_from(bytes.len()).unwrap(),
        };
        let below = Buffer {
            len: u32::try_from(cut).unwrap(),
            ..whole
        };
        let above = Buffer {
            address: GuestAddress(half),
            len: whole.len - below.len,
        };
        bench
            .driver
            .send_chain(&[Desc::readable(below), Desc::readable(above)]);
        bench.poll();
        assert!(!bench.driver.has_failed());
        assert_eq!(read_available(&mut host), (b"0123456789".to_vec(), false));
        // No Linux guest has one buffer in two regions.
        bench.driver.send_chain(&[Desc::readable(whole)]);
        bench.poll();
        assert_eq!(bench.driver.has_failed(), cut > 0);
    }
}

/// A header whose fields are near to what means something, or far from it.
fn random_header(random: &mut Random, ports: &[(u32, u32)]) -> Header {
    let (src_port, dst_port) = random.pick(ports);
    let any = random.next();
    let mut header = Header {
        src_cid: GUEST_CID,
        dst_cid: HOST_CID,
        src_port,
        dst_port,
        len: 0,
        kind: TYPE_STREAM,
        op: u16::try_from(random.below(9)).unwrap(),
        flags: u32::try_from(random.below(4)).unwrap(),
        buf_alloc: random.pick(&[0, 1, 4096, 1 << 18, u32::MAX]),
        fwd_cnt: random.pick(&[0, 1, 4096, 1 << 31, u32::MAX]),
    };
    match random.below(40) {
        0 => header.src_cid = any,
        1 => header.dst_cid = any,
        2 => header.src_port = any as u32,
        3 => header.dst_port = any as u32,
        4 => header.kind = any as u16,
        5 => header.op = any as u16,
        6 => header.flags = any as u32,
        7 => header.fwd_cnt = any as u32,
        _ => {}
    }
    header
}

/// Sends a packet cut into pieces at random; now and then one that lies about
/// its length, or descriptors that make no sense.
fn send_random(random: &mut Random, driver: &mut Driver, ports: &[(u32, u32)], honest: bool) {
    let mut header = random_header(random, ports);
    let mut len = 0;
    if random.below(2) == 0 {
        len = random.pick(&[1, 43, 44, 45, 100, 4096, 30_000, MAX_PAYLOAD]);
    }
    header.len = u32::try_from(len).unwrap();
    let mut bytes = [&header.encode()[..], &vec![len as u8; len]].concat();
    if !honest {
        match random.below(3) {
            0 => header.len = random.next() as u32,
            1 => bytes.truncate(random.below(bytes.len() as u64) as usize),
            _ => header.len += 1,
        }
        let cut = HEADER_LEN.min(bytes.len());
        bytes[..cut].copy_from_slice(&header.encode()[..cut]);
    }
    // Somewhere in memory that nothing else uses, often at its very end.
    let room = bytes.len() as u64 + 64;
    let mut address = random.pick(&[MEMORY_END - 0x40_0000, MEMORY_END - room]);
    let mut chain = Vec::new();
    while !bytes.is_empty() || chain.is_empty() {
        let most = if chain.len() < 6 { bytes.len() } else { 0 };
        let count = match random.below(3) {
            0 => most.min(random.below(60) as usize),
            1 => most.min(random.below(70_000) as usize),
            _ => bytes.len(),
        };
        let count = if chain.len() < 6 { count } else { bytes.len() };
        let piece: Vec<_> = bytes.drain(..count).collect();
        let at = GuestAddress(address);
        driver.tx.memory().write_slice(&piece, at).unwrap();
        let mut desc = Desc::readable(Buffer {
            address: at,
            len: u32::try_from(count).unwrap(),
        });
        if !honest && random.below(20) == 0 {
            desc.next = Some(random.below(300) as u16);
        }
        if !honest && random.below(20) == 0 {
            desc.writable = true;
        }
        if !honest && random.below(20) == 0 {
            desc.buffer.address.0 = random.next();
        }
        chain.push(desc);
        address += count as u64;
    }
    driver.send_chain(&chain);
}

/// What the host does meanwhile.
fn host_acts(random: &mut Random, bench: &mut Bench, hosts: &mut Vec<UnixStream>) {
    hosts.extend(bench.accepted());
    if hosts.len() < 6 && random.below(8) == 0 {
        hosts.push(bench.request(1025));
    }
    if hosts.is_empty() {
        return;
    }
    let which = random.below(hosts.len() as u64) as usize;
    match random.below(12) {
        0..4 => drop(hosts[which].write(&vec![1; random.below(50_000) as usize])),
        4..8 => drop(hosts[which].read(&mut vec![0; random.below(100_000) as usize])),
        8 => drop(hosts[which].shutdown(random.pick(&[
            std::net::Shutdown::Read,
            std::net::Shutdown::Write,
            std::net::Shutdown::Both,
        ]))),
        9 => drop(hosts.swap_remove(which)),
        _ => {}
    }
}

/// Plays a guest that sends junk; `lies` of 1000 packets are malformed.
fn junk(seed: u64, steps: usize, lies: u64) {
    let random = &mut Random::new(seed);
    let mut bench = Bench::new();
    let mut hosts = Vec::new();
    let mut seen = vec![(5000, OPEN_PORT), (5001, OPEN_PORT + 1), (5002, 7)];
    for _ in 0..steps {
        if bench.driver.unsent() < 20 {
            let honest = random.below(1000) >= lies;
            send_random(random, &mut bench.driver, &seen, honest);
        }
        host_acts(random, &mut bench, &mut hosts);
        bench.driver.refill = random.below(4) > 0;
        if bench.driver.has_room_for(1) && random.below(4) == 0 {
            bench.driver.offer(&[RX_LEN]);
        }
        bench.turn();
        for packet in bench.driver.receive() {
            if packet.op() == Op::Request {
                let ports = (packet.header.dst_port, packet.header.src_port);
                seen.push(ports);
                if seen.len() > 8 {
                    seen.remove(3);
                }
                let mut guest = GuestSocket::new(ports.0, ports.1);
                bench.send(&mut guest, Op::Response, &[]);
            }
        }
        let connections = bench.connections();
        let muxer = bench.event_loop.muxer();
        assert!(connections <= MAX_CONNECTIONS);
        assert!(muxer.waiting_connections() <= connections);
        assert!(muxer.waiting_resets() <= MAX_REPLIES + MAX_CONNECTIONS);
        assert!(muxer.buffer_capacity() <= connections * BUF_ALLOC as usize);
        assert!(lies > 0 || !bench.driver.has_failed());
        if bench.driver.has_failed() || bench.driver.is_worn_out() {
            bench.restart(Driver::new());
            seen.truncate(3);
        }
    }
    // Whatever has happened, the next driver finds a device that works.
    hosts.clear();
    bench.restart(Driver::new());
    while bench.accepted().is_some() {}
    let (mut guest, mut host) = bench.guest_connection(6000);
    bench.send(&mut guest, Op::Data, b"alive");
    bench.poll();
    assert_eq!(read_available(&mut host), (b"alive".to_vec(), false));
}

#[test]
fn junk_packets_do_no_harm() {
    for seed in 0..40 {
        junk(seed, 1500, 0);
    }
}

#[test]
fn malformed_chains_do_no_harm() {
    for seed in 100..140 {
        junk(seed, 1000, 50);
    }
}

#[test]
fn nothing_but_malformed_chains_does_no_harm() {
    for seed in 200..220 {
        junk(seed, 300, 1000);
    }
}
