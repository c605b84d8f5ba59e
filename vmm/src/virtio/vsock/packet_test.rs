use super::super::super::queue::Buffer;
use super::super::super::testing::{Desc, GuestQueue};
use super::*;

const HEADER: Header = Header {
    src_cid: 0x0102_0304_0506_0708,
    dst_cid: 0x1112_1314_1516_1718,
    src_port: 0x2122_2324,
    dst_port: 0x3132_3334,
    len: 0x4142_4344,
    kind: 0x5152,
    op: 0x6162,
    flags: 0x7172_7374,
    buf_alloc: 0x8182_8384,
    fwd_cnt: 0x9192_9394,
};

#[test]
fn a_header_has_the_layout_of_the_specification() {
    let bytes = HEADER.encode();
    let expected = [
        0x08, 0x07, 0x06, 0x05, 0x04, 0x03, 0x02, 0x01, 0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12,
        0x11, 0x24, 0x23, 0x22, 0x21, 0x34, 0x33, 0x32, 0x31, 0x44, 0x43, 0x42, 0x41, 0x52, 0x51,
        0x62, 0x61, 0x74, 0x73, 0x72, 0x71, 0x84, 0x83, 0x82, 0x81, 0x94, 0x93, 0x92, 0x91,
    ];
    assert_eq!(bytes, expected);
    assert_eq!(Header::decode(&bytes), HEADER);
}

#[test]
fn operations_have_the_numbers_of_the_specification() {
    let ops = [
        Op::Request,
        Op::Response,
        Op::Reset,
        Op::Shutdown,
        Op::Data,
        Op::CreditUpdate,
        Op::CreditRequest,
    ];
    for (code, op) in (1..).zip(ops) {
        assert_eq!(op.code(), code);
        assert_eq!(Header { op: code, ..HEADER }.op(), Some(op));
    }
    for code in [0, 8, u16::MAX] {
        assert_eq!(Header { op: code, ..HEADER }.op(), None);
    }
}

/// A TX chain with these bytes, cut into buffers of these lengths.
fn chain_of(guest: &mut GuestQueue, bytes: &[u8], cuts: &[usize]) -> Vec<Desc> {
    let mut rest = bytes;
    let mut chain = Vec::new();
    for cut in cuts.iter().chain([&usize::MAX]) {
        let (piece, tail) = rest.split_at((*cut).min(rest.len()));
        chain.push(Desc::readable(guest.buffer(piece)));
        rest = tail;
        if rest.is_empty() {
            break;
        }
    }
    chain
}

fn packet_bytes(len: u32, payload: &[u8]) -> Vec<u8> {
    let header = Header { len, ..HEADER };
    [&header.encode()[..], payload].concat()
}

#[test]
fn a_packet_may_be_cut_anywhere() {
    let bytes = packet_bytes(5, b"hello");
    let cuts: [&[usize]; 6] = [
        &[],
        &[HEADER_LEN],
        &[1; 48],
        &[HEADER_LEN - 1, 2],
        &[HEADER_LEN + 3],
        &[0, 10, 0, 34, 0],
    ];
    for cut in cuts {
        let mut guest = GuestQueue::new(64);
        let chain = chain_of(&mut guest, &bytes, cut);
        guest.offer(&chain);
        let mut queue = guest.device_side();
        let chain = queue.pop(guest.memory()).unwrap().unwrap();
        let packet = TxPacket::parse(&chain).unwrap();
        assert_eq!(packet.header, Header { len: 5, ..HEADER });
        let mut payload = std::collections::VecDeque::new();
        guest_bytes::append(&packet.payload, &mut payload);
        assert_eq!(payload, b"hello", "{cut:?}");
    }
}

#[test]
fn bytes_behind_the_payload_are_not_part_of_it() {
    let mut guest = GuestQueue::new(64);
    let chain = chain_of(&mut guest, &packet_bytes(3, b"hello"), &[]);
    guest.offer(&chain);
    let mut queue = guest.device_side();
    let chain = queue.pop(guest.memory()).unwrap().unwrap();
    let packet = TxPacket::parse(&chain).unwrap();
    assert_eq!(guest_bytes::len(&packet.payload), 3);
}

#[test]
fn a_header_that_is_changed_after_it_was_read_changes_nothing() {
    let mut guest = GuestQueue::new(64);
    let buffer = guest.buffer(&packet_bytes(5, b"hello"));
    guest.offer(&[Desc::readable(buffer)]);
    let mut queue = guest.device_side();
    let chain = queue.pop(guest.memory()).unwrap().unwrap();
    let packet = TxPacket::parse(&chain).unwrap();
    let evil = Header {
        len: u32::MAX,
        ..HEADER
    };
    vm_memory::Bytes::write_slice(guest.memory(), &evil.encode(), buffer.address).unwrap();
    assert_eq!(packet.header.len, 5);
    assert_eq!(guest_bytes::len(&packet.payload), 5);
}

#[test]
fn tx_chains_that_are_not_what_they_say_are_errors() {
    let mut guest = GuestQueue::new(64);
    let writable = guest.room(100);
    let cases: [(&str, Vec<Desc>); 5] = [
        (
            "shorter than a header",
            chain_of(&mut guest, &HEADER.encode()[1..], &[]),
        ),
        (
            "larger than its TX chain",
            chain_of(&mut guest, &packet_bytes(6, b"hello"), &[]),
        ),
        (
            "larger than 64 KiB",
            chain_of(&mut guest, &packet_bytes(65_537, &[0; 65_537]), &[]),
        ),
        (
            "larger than 64 KiB",
            chain_of(&mut guest, &packet_bytes(u32::MAX, b"hello"), &[]),
        ),
        (
            "writable",
            [
                chain_of(&mut guest, &packet_bytes(5, b"hello"), &[]),
                vec![Desc::writable(writable)],
            ]
            .concat(),
        ),
    ];
    for (expected, descs) in cases {
        guest.restart();
        guest.offer(&descs);
        let mut queue = guest.device_side();
        let chain = queue.pop(guest.memory()).unwrap().unwrap();
        let error = TxPacket::parse(&chain).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn the_largest_packet_is_taken() {
    let mut guest = GuestQueue::new(64);
    let chain = chain_of(&mut guest, &packet_bytes(65_536, &[7; 65_536]), &[]);
    guest.offer(&chain);
    let mut queue = guest.device_side();
    let chain = queue.pop(guest.memory()).unwrap().unwrap();
    let packet = TxPacket::parse(&chain).unwrap();
    assert_eq!(guest_bytes::len(&packet.payload), MAX_PAYLOAD);
}

#[test]
fn rx_chains_that_hold_no_header_are_errors() {
    let mut guest = GuestQueue::new(64);
    let room = |len| Buffer {
        address: vm_memory::GuestAddress(0x20_0000),
        len,
    };
    let cases: [(&str, Vec<Desc>); 3] = [
        ("shorter than a header", vec![Desc::writable(room(43))]),
        ("shorter than a header", vec![Desc::writable(room(0))]),
        (
            "readable",
            vec![Desc::readable(room(1)), Desc::writable(room(44))],
        ),
    ];
    for (expected, descs) in cases {
        guest.restart();
        guest.offer(&descs);
        let mut queue = guest.device_side();
        let chain = queue.pop(guest.memory()).unwrap().unwrap();
        let error = RxBuffer::parse(&chain).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_packet_that_was_put_into_an_rx_chain_can_be_read_there() {
    let mut guest = GuestQueue::new(64);
    let buffers = [guest.room(20), guest.room(30)];
    guest.offer(&buffers.map(Desc::writable));
    let mut queue = guest.device_side();
    let chain = queue.pop(guest.memory()).unwrap().unwrap();
    let buffer = RxBuffer::parse(&chain).unwrap();
    assert_eq!(guest_bytes::len(&buffer.room), 6);
    guest_bytes::write(&buffer.room, b"abcdef");
    assert_eq!(buffer.finish(&Header { len: 6, ..HEADER }), 50);
    let bytes = [guest.read(buffers[0], 20), guest.read(buffers[1], 30)].concat();
    assert_eq!(bytes, packet_bytes(6, b"abcdef"));
}
