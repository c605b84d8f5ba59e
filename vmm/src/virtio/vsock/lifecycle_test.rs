//! How connections begin and end.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use super::super::device::VirtioDevice;
use super::muxer::{CONNECT_TIMEOUT, MAX_CONNECTIONS};
use super::packet::{Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::test_driver::{Bench, Driver, GuestSocket, OPEN_PORT, Packet, read_available, spawned};
use super::{ConnectError, Connector, Vsock};

const BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

#[test]
fn the_configuration_space_holds_the_guests_cid() {
    let (vsock, _connector) = Vsock::spawn(0x1234, &[], |_, _| Ok(())).unwrap();
    let mut config = [0xff; 8];
    vsock.read_config(0, &mut config);
    assert_eq!(u64::from_le_bytes(config), 0x1234);
    let mut byte = [0xff];
    vsock.read_config(1, &mut byte);
    assert_eq!(byte, [0x12]);
    let mut tail = [0; 8];
    vsock.read_config(7, &mut tail);
    vsock.read_config(8, &mut tail);
    vsock.read_config(u64::MAX, &mut tail);
    assert_eq!(tail, [0; 8]);
}

#[test]
fn the_host_connects_and_bytes_go_both_ways() {
    let mut bench = Bench::new();
    let (mut guest, mut host) = bench.host_connection(1025);
    host.write_all(b"to the guest").unwrap();
    let packets = bench.packets();
    assert_eq!(packets.len(), 1);
    guest.take(&packets[0]);
    assert_eq!(packets[0].op(), Op::Data);
    assert_eq!(packets[0].payload, b"to the guest");

    bench.send(&mut guest, Op::Data, b"to the host");
    assert_eq!(bench.ops(), []);
    assert_eq!(read_available(&mut host), (b"to the host".to_vec(), false));
}

#[test]
fn the_guest_connects_and_bytes_go_both_ways() {
    let mut bench = Bench::new();
    let (mut guest, mut host) = bench.guest_connection(5000);
    bench.send(&mut guest, Op::Data, b"ready");
    bench.poll();
    assert_eq!(read_available(&mut host), (b"ready".to_vec(), false));
    host.write_all(b"fine").unwrap();
    let packets = bench.packets();
    guest.take(&packets[0]);
    assert_eq!(packets[0].payload, b"fine");
}

#[test]
fn what_the_host_writes_before_the_guest_answers_is_kept() {
    let mut bench = Bench::new();
    let mut host = bench.request(1025);
    host.write_all(b"early").unwrap();
    let packets = bench.packets();
    assert_eq!(packets.len(), 1, "nothing but the request: {packets:?}");
    let mut guest = GuestSocket::new(1025, packets[0].header.src_port);
    bench.send(&mut guest, Op::Response, &[]);
    assert_eq!(bench.packets()[0].payload, b"early");
}

#[test]
fn a_refused_connection_closes_the_hosts_socket() {
    let mut bench = Bench::new();
    let mut host = bench.request(1025);
    let request = bench.packets().remove(0);
    let mut guest = GuestSocket::new(1025, request.header.src_port);
    bench.send(&mut guest, Op::Reset, &[]);
    assert_eq!(bench.ops(), []);
    assert_eq!(read_available(&mut host), (vec![], true));
    assert_eq!(bench.connections(), 0);
}

#[test]
fn a_guest_that_does_not_answer_is_given_up() {
    let mut bench = Bench::new();
    let mut host = bench.request(1025);
    assert_eq!(bench.ops(), [Op::Request]);
    let start = std::time::Instant::now();
    bench.event_loop.muxer().expire(start + CONNECT_TIMEOUT / 2);
    assert_eq!(read_available(&mut host), (vec![], false));
    bench.event_loop.muxer().expire(start + CONNECT_TIMEOUT * 2);
    assert_eq!(bench.ops(), [Op::Reset]);
    assert_eq!(read_available(&mut host), (vec![], true));
    assert_eq!(bench.connections(), 0);
}

#[test]
fn the_guest_reaches_open_ports_of_the_host_only() {
    let mut bench = Bench::new();
    for port in [0, 1, OPEN_PORT - 1, OPEN_PORT + 2, u32::MAX] {
        let mut guest = GuestSocket::new(5000, port);
        bench.send(&mut guest, Op::Request, &[]);
        let packets = bench.packets();
        assert_eq!(packets.len(), 1);
        guest.take(&packets[0]);
        assert_eq!(packets[0].op(), Op::Reset);
    }
    assert!(bench.accepted().is_none());
    assert_eq!(bench.connections(), 0);
}

#[test]
fn the_guest_reaches_no_host_but_its_own() {
    let mut bench = Bench::new();
    for cid in [0, 1, 4, 1 << 40] {
        let mut guest = GuestSocket::new(5000, OPEN_PORT);
        let request = Header {
            dst_cid: cid,
            ..guest.header(Op::Request, 0)
        };
        bench.driver.send(&request, &[]);
        let packets = bench.packets();
        assert_eq!(packets.len(), 1);
        assert_eq!(packets[0].op(), Op::Reset);
        assert_eq!(packets[0].header.src_cid, cid);
    }
    assert!(bench.accepted().is_none());
}

#[test]
fn a_port_of_the_host_has_one_connection_at_a_time() {
    let mut bench = Bench::new();
    let (_first, host) = bench.guest_connection(5000);
    let mut second = GuestSocket::new(5001, OPEN_PORT);
    bench.send(&mut second, Op::Request, &[]);
    assert_eq!(bench.ops(), [Op::Reset]);
    drop(host);
    assert_ended(&bench.packets());
    bench.guest_connection(5001);
}

#[test]
fn a_connection_that_accept_refuses_is_reset() {
    let mut bench = Bench::inactive();
    bench.driver.offer_all();
    bench.close_accept();
    bench.activate();
    let mut guest = GuestSocket::new(5000, OPEN_PORT);
    bench.send(&mut guest, Op::Request, &[]);
    assert_eq!(bench.ops(), [Op::Reset]);
    assert_eq!(bench.connections(), 0);
}

#[test]
fn the_guest_ends_its_direction_first() {
    let mut bench = Bench::new();
    let (mut guest, mut host) = bench.host_connection(1025);
    bench.send(&mut guest, Op::Data, b"last words");
    bench.shutdown(&mut guest, SHUTDOWN_SEND);
    assert_eq!(bench.ops(), []);
    assert_eq!(read_available(&mut host), (b"last words".to_vec(), true));

    host.write_all(b"still heard").unwrap();
    assert_eq!(bench.packets()[0].payload, b"still heard");
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(bench.ops(), [Op::Shutdown, Op::Reset]);
    assert_eq!(bench.connections(), 0);
}

#[test]
fn the_host_ends_its_direction_first() {
    let mut bench = Bench::new();
    let (mut guest, mut host) = bench.host_connection(1025);
    host.write_all(b"last words").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    let packets = bench.packets();
    assert_eq!(packets[0].payload, b"last words");
    assert_eq!(packets[1].op(), Op::Shutdown);
    assert_eq!(packets[1].header.flags, SHUTDOWN_SEND);
    assert_eq!(packets.len(), 2);

    bench.send(&mut guest, Op::Data, b"still heard");
    assert_eq!(bench.ops(), []);
    assert_eq!(read_available(&mut host), (b"still heard".to_vec(), false));
    bench.shutdown(&mut guest, SHUTDOWN_SEND);
    assert_eq!(bench.ops(), [Op::Reset]);
    assert_eq!(read_available(&mut host), (vec![], true));
    assert_eq!(bench.connections(), 0);
}

#[test]
fn a_guest_that_closes_delivers_its_bytes_first() {
    let mut bench = Bench::new();
    let (mut guest, mut host) = bench.host_connection(1025);
    let bytes = fill_host(&mut bench, &mut guest);
    bench.shutdown(&mut guest, BOTH);
    assert_eq!(
        bench.ops(),
        [],
        "the reset comes when the bytes are delivered"
    );
    let received = drain_host(&mut bench, &mut host);
    assert!(received == bytes);
    assert_eq!(bench.ops(), [Op::Reset]);
    assert_eq!(bench.connections(), 0);
}

#[test]
fn a_reset_by_the_guest_leaves_its_bytes_to_the_host() {
    let mut bench = Bench::new();
    let (mut guest, mut host) = bench.guest_connection(5000);
    let bytes = fill_host(&mut bench, &mut guest);
    bench.send(&mut guest, Op::Reset, &[]);
    assert_eq!(bench.ops(), []);
    // The tuple is free, but the port of the host is in use until the bytes are delivered.
    bench.send(&mut guest, Op::Request, &[]);
    assert_eq!(bench.ops(), [Op::Reset]);
    assert!(drain_host(&mut bench, &mut host) == bytes);
    assert_eq!(bench.connections(), 0);
    bench.guest_connection(5000);
}

#[test]
fn a_guest_that_stops_receiving_stops_the_hosts_writer() {
    let mut bench = Bench::new();
    let (mut guest, mut host) = bench.host_connection(1025);
    bench.shutdown(&mut guest, SHUTDOWN_RECEIVE);
    assert_eq!(bench.ops(), []);
    let error = host.write_all(b"x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    bench.send(&mut guest, Op::Data, b"still sending");
    bench.poll();
    assert_eq!(
        read_available(&mut host),
        (b"still sending".to_vec(), false)
    );
    bench.shutdown(&mut guest, SHUTDOWN_SEND);
    assert_eq!(bench.ops(), [Op::Reset]);
}

#[test]
fn a_host_that_stops_reading_stops_the_guest() {
    let mut bench = Bench::new();
    let (mut guest, host) = bench.host_connection(1025);
    host.shutdown(Shutdown::Read).unwrap();
    bench.send(&mut guest, Op::Data, b"for nobody");
    let packets = bench.packets();
    assert_eq!(packets.len(), 1);
    assert_eq!(packets[0].op(), Op::Shutdown);
    assert_eq!(packets[0].header.flags, SHUTDOWN_RECEIVE);
    // What was on its way is no breach, and the other direction lives on.
    bench.send(&mut guest, Op::Data, b"on its way");
    assert_eq!(bench.ops(), []);
    (&host).write_all(b"alive").unwrap();
    assert_eq!(bench.packets()[0].payload, b"alive");
}

#[test]
fn a_host_that_closes_delivers_its_bytes_first() {
    let mut bench = Bench::new();
    let (_guest, mut host) = bench.host_connection(1025);
    let bytes = vec![7; 100_000];
    host.write_all(&bytes).unwrap();
    drop(host);
    let packets = bench.packets();
    assert!(payload(&packets) == bytes);
    assert_ended(&packets);
    assert_eq!(bench.connections(), 0);
}

#[test]
fn a_host_that_closes_before_the_guest_answers_is_connected_and_ended() {
    let mut bench = Bench::new();
    let mut host = bench.request(1025);
    host.write_all(b"hello and good bye").unwrap();
    drop(host);
    let request = bench.packets().remove(0);
    assert_eq!(request.op(), Op::Request);
    let mut guest = GuestSocket::new(1025, request.header.src_port);
    bench.send(&mut guest, Op::Response, &[]);
    let packets = bench.packets();
    assert_eq!(payload(&packets), b"hello and good bye");
    assert_ended(&packets);
    assert_eq!(bench.connections(), 0);
}

#[test]
fn a_host_that_closes_with_bytes_buffered_for_it_frees_them() {
    let mut bench = Bench::new();
    let (mut guest, host) = bench.host_connection(1025);
    fill_host(&mut bench, &mut guest);
    drop(host);
    assert_ended(&bench.packets());
    assert_eq!(bench.connections(), 0);
}

#[test]
fn a_host_that_closes_after_the_guest_has_ended_ends_the_connection() {
    for flags in [SHUTDOWN_SEND, SHUTDOWN_RECEIVE] {
        let mut bench = Bench::new();
        let (mut guest, host) = bench.host_connection(1025);
        bench.shutdown(&mut guest, flags);
        assert_eq!(bench.ops(), []);
        drop(host);
        let ops = bench.ops();
        assert_eq!(ops.last(), Some(&Op::Reset), "{ops:?}");
        assert_eq!(bench.connections(), 0);
    }
}

#[test]
fn connections_asked_for_before_the_driver_is_ready_are_made_then() {
    let mut bench = Bench::inactive();
    let mut early = bench.request(1024);
    let _other = bench.request(1025);
    bench.poll();
    assert_eq!(read_available(&mut early), (vec![], false));
    bench.driver.offer_all();
    bench.activate();
    let packets = bench.packets();
    let ports: Vec<_> = packets
        .iter()
        .map(|packet| packet.header.dst_port)
        .collect();
    assert_eq!(ports, [1024, 1025]);
    assert_ne!(packets[0].header.src_port, packets[1].header.src_port);
}

#[test]
fn a_bounded_number_of_connections_waits_for_the_driver() {
    let mut bench = Bench::inactive();
    let _waiting: Vec<_> = (0..super::MAX_WAITING)
        .map(|_| bench.request(1024))
        .collect();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let error = bench.connector.connect(1024, theirs.into()).unwrap_err();
    assert!(matches!(error, ConnectError::TooMany));
    assert_eq!(ours.read(&mut [0]).unwrap(), 0, "the socket is closed");
}

#[test]
fn a_connector_whose_device_is_gone_says_so() {
    let (connector, requests) = Connector::pair().unwrap();
    drop(requests);
    let (_ours, theirs) = UnixStream::pair().unwrap();
    let error = connector.connect(1024, theirs.into()).unwrap_err();
    assert!(matches!(error, ConnectError::WorkerGone));
}

#[test]
fn a_bounded_number_of_connections_exists() {
    let mut bench = Bench::new();
    let mut hosts = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        hosts.push(bench.request(1024));
        assert_eq!(bench.ops(), [Op::Request]);
    }
    let mut refused = bench.request(1024);
    assert_eq!(bench.ops(), []);
    assert_eq!(read_available(&mut refused), (vec![], true));
    let mut guest = GuestSocket::new(5000, OPEN_PORT);
    bench.send(&mut guest, Op::Request, &[]);
    assert_eq!(bench.ops(), [Op::Reset]);
    assert_eq!(bench.connections(), MAX_CONNECTIONS);
}

#[test]
fn a_reset_closes_all_connections_and_the_device_lives_again() {
    let mut bench = Bench::new();
    let (mut first, mut first_host) = bench.host_connection(1025);
    let (_second, mut second_host) = bench.guest_connection(5000);
    let mut connecting = bench.request(1026);
    assert_eq!(bench.ops(), [Op::Request]);
    let bytes = fill_host(&mut bench, &mut first);

    bench.reset();
    assert_eq!(read_available(&mut second_host), (vec![], true));
    assert_eq!(read_available(&mut connecting), (vec![], true));
    assert!(drain_host(&mut bench, &mut first_host) == bytes);
    assert_eq!(bench.connections(), 0);

    // What the driver offers to a device that is reset is not looked at.
    bench.driver.offer_all();
    bench.send(&mut first, Op::Request, &[]);
    bench.poll();
    assert_eq!(bench.driver.unsent(), 1);

    bench.restart(Driver::new());
    let (mut guest, mut host) = bench.host_connection(1025);
    bench.send(&mut guest, Op::Data, b"anew");
    bench.poll();
    assert_eq!(read_available(&mut host), (b"anew".to_vec(), false));
}

#[test]
fn a_reset_of_the_devices_thread_returns_when_it_is_done() {
    let (mut vsock, connector, mut driver) = spawned(true, 1);
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    connector.connect(1024, theirs.into()).unwrap();
    let packets = driver.wait();
    assert_eq!(packets[0].op(), Op::Request);
    vsock.reset();
    assert_eq!(ours.read(&mut [0]).unwrap(), 0);
    vsock.reset();
}

#[test]
fn a_driver_without_the_queues_gets_no_device_and_lets_nobody_wait() {
    let mut bench = Bench::inactive();
    let mut host = bench.request(1024);
    let mut active = bench.driver.active_device();
    active.queues[1] = None;
    bench.worker.activate(active).unwrap();
    bench.poll();
    assert!(bench.driver.has_failed());
    assert_eq!(read_available(&mut host), (vec![], true));
}

#[test]
fn a_device_that_is_reset_is_not_woken_by_kicks() {
    let mut bench = Bench::new();
    bench.poll();
    bench.reset();
    bench.driver.kick_always();
    assert!(bench.event_loop.is_idle());
    bench.activate();
    bench.driver.kick_always();
    assert!(!bench.event_loop.is_idle());
}

#[test]
fn the_end_of_the_device_closes_all_sockets() {
    let (vsock, connector, mut driver) = spawned(true, 1);
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    connector.connect(1024, theirs.into()).unwrap();
    driver.wait();
    drop(vsock);
    assert_eq!(ours.read(&mut [0]).unwrap(), 0);
}

/// The last packets end both directions, and then the connection.
fn assert_ended(packets: &[Packet]) {
    let (last, others) = packets.split_last().unwrap();
    assert_eq!(last.op(), Op::Reset, "{packets:?}");
    let said = others
        .iter()
        .skip_while(|packet| packet.op() != Op::Shutdown)
        .fold(0, |flags, packet| flags | packet.header.flags);
    assert_eq!(said, BOTH, "{packets:?}");
}

fn payload(packets: &[Packet]) -> Vec<u8> {
    packets
        .iter()
        .flat_map(|packet| packet.payload.clone())
        .collect()
}

/// Sends to a host that does not read until credit is used up.
fn fill_host(bench: &mut Bench, guest: &mut GuestSocket) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        for packet in bench.packets() {
            guest.take(&packet);
        }
        let count = guest.credit().min(40_000);
        if count == 0 {
            return bytes;
        }
        let part: Vec<u8> = (bytes.len()..bytes.len() + count)
            .map(|index| (index % 251) as u8)
            .collect();
        bench.send(guest, Op::Data, &part);
        bytes.extend(part);
    }
}

/// Reads all that is to come to the host.
fn drain_host(bench: &mut Bench, host: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let (part, ended) = read_available(host);
        bytes.extend(part);
        if ended {
            return bytes;
        }
        bench.poll();
    }
}
