use std::fs::{self, File};
use std::os::fd::OwnedFd;

use super::*;
use crate::config::DiskConfig;
use crate::virtio::testing::{Desc, GuestQueue, Random};

const SECTORS: u64 = 64;

/// A disk whose every sector is filled with its number, and a queue to ask it by.
struct Bench {
    file: tempfile::NamedTempFile,
    disk: Disk,
    guest: GuestQueue,
}

fn bench(read_only: bool) -> Bench {
    let file = tempfile::NamedTempFile::new().unwrap();
    let content: Vec<u8> = (0..SECTORS)
        .flat_map(|sector| [u8::try_from(sector).unwrap(); SECTOR as usize])
        .collect();
    fs::write(file.path(), content).unwrap();
    let fd: OwnedFd = File::options()
        .read(true)
        .write(!read_only)
        .open(file.path())
        .unwrap()
        .into();
    let config = DiskConfig {
        bytes: SECTORS * SECTOR,
        block_size: 512,
        read_only,
        serial: "7:0".to_owned(),
    };
    Bench {
        file,
        disk: Disk::new(fd, &config),
        guest: GuestQueue::new(256),
    }
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()[..]].concat()
}

impl Bench {
    /// Serves a chain of a header, these descriptors and a status; returns the status and what
    /// is written.
    fn ask(&mut self, kind: u32, sector: u64, data: &[Desc]) -> (u8, u32) {
        let header = self.guest.buffer(&header(kind, sector));
        let status = self.guest.buffer(&[0xff]);
        let chain = [&[Desc::readable(header)], data, &[Desc::writable(status)]].concat();
        let written = self.serve(&chain).unwrap();
        (self.guest.read(status, 1)[0], written)
    }

    fn serve(&mut self, chain: &[Desc]) -> Result<u32, QueueError> {
        self.guest.restart();
        self.guest.offer(chain);
        let mut queue = self.guest.device_side();
        let chain = queue.pop(self.guest.memory())?.unwrap();
        serve(&self.disk, false, &chain)
    }

    fn content(&self) -> Vec<u8> {
        fs::read(self.file.path()).unwrap()
    }
}

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

#[test]
fn sectors_are_read_into_buffers_of_any_lengths() {
    let mut bench = bench(false);
    let rooms = [100, 412, 1024].map(|len| bench.guest.room(len));
    let data = rooms.map(Desc::writable);
    assert_eq!(bench.ask(VIRTIO_BLK_T_IN, 5, &data), (OK, 1537));
    let read: Vec<u8> = rooms
        .iter()
        .flat_map(|room| bench.guest.read(*room, room.len as usize))
        .collect();
    let expected = [[5; 512], [6; 512], [7; 512]].concat();
    assert_eq!(read, expected);
}

#[test]
fn what_is_written_is_on_the_device_and_nowhere_else() {
    let mut bench = bench(false);
    let before = bench.content();
    let bytes = Random::new(1).bytes(1024);
    let data = [&bytes[..700], &bytes[700..]].map(|part| Desc::readable(bench.guest.buffer(part)));
    assert_eq!(bench.ask(VIRTIO_BLK_T_OUT, 10, &data), (OK, 1));
    let after = bench.content();
    assert_eq!(after[5120..6144], bytes);
    assert_eq!(after[..5120], before[..5120]);
    assert_eq!(after[6144..], before[6144..]);
    assert_eq!(bench.ask(VIRTIO_BLK_T_FLUSH, 0, &[]), (OK, 1));
}

#[test]
fn header_data_and_status_may_share_buffers() {
    let mut bench = bench(false);
    let mut bytes = header(VIRTIO_BLK_T_OUT, 3);
    bytes.extend([0xaa; 512]);
    let (head, tail) = bytes.split_at(7);
    let readable = [head, tail].map(|part| Desc::readable(bench.guest.buffer(part)));
    let status = bench.guest.room(1);
    let chain = [&readable[..], &[Desc::writable(status)]].concat();
    bench.serve(&chain).unwrap();
    assert_eq!(bench.content()[3 * 512..4 * 512], [0xaa; 512]);

    let header = bench.guest.buffer(&header(VIRTIO_BLK_T_IN, 4));
    let room = bench.guest.room(513);
    bench
        .serve(&[Desc::readable(header), Desc::writable(room)])
        .unwrap();
    let read = bench.guest.read(room, 513);
    assert_eq!(read[..512], [4; 512]);
    assert_eq!(read[512], OK);
}

#[test]
fn no_write_reaches_a_device_that_is_read_only() {
    let mut bench = bench(true);
    let before = bench.content();
    let data = [Desc::readable(bench.guest.buffer(&[0xaa; 512]))];
    assert_eq!(bench.ask(VIRTIO_BLK_T_OUT, 0, &data), (IO_ERROR, 1));
    assert_eq!(bench.content(), before);
    let room = bench.guest.room(512);
    let data = [Desc::writable(room)];
    assert_eq!(bench.ask(VIRTIO_BLK_T_IN, 9, &data), (OK, 513));
    assert_eq!(bench.guest.read(room, 512), [9; 512]);
    assert_eq!(bench.ask(VIRTIO_BLK_T_FLUSH, 0, &[]), (OK, 1));
}

#[test]
fn what_is_not_all_on_the_device_is_an_error() {
    for kind in [VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT] {
        let mut bench = bench(false);
        let before = bench.content();
        for sector in [
            SECTORS - 1,
            SECTORS,
            u64::MAX,
            u64::MAX / 512,
            u64::MAX / 512 + 1,
        ] {
            let buffer = bench.guest.buffer(&[0xaa; 1024]);
            let data = if kind == VIRTIO_BLK_T_IN {
                Desc::writable(buffer)
            } else {
                Desc::readable(buffer)
            };
            assert_eq!(bench.ask(kind, sector, &[data]), (IO_ERROR, 1), "{sector}");
            assert_eq!(bench.guest.read(buffer, 1024), [0xaa; 1024]);
        }
        assert_eq!(bench.content(), before);
    }
}

#[test]
fn parts_of_sectors_are_an_error() {
    let mut bench = bench(false);
    for len in [1, 511, 513] {
        let data = [Desc::writable(bench.guest.room(len))];
        assert_eq!(bench.ask(VIRTIO_BLK_T_IN, 0, &data), (IO_ERROR, 1), "{len}");
    }
}

#[test]
fn data_in_the_wrong_direction_is_not_moved() {
    let mut bench = bench(false);
    let before = bench.content();
    let buffer = bench.guest.buffer(&[0xaa; 512]);
    // A read without room, a write without data: nothing is asked for.
    let read = bench.ask(VIRTIO_BLK_T_IN, 1, &[Desc::readable(buffer)]);
    assert_eq!(read, (OK, 1));
    let write = bench.ask(VIRTIO_BLK_T_OUT, 1, &[Desc::writable(buffer)]);
    assert_eq!(write, (OK, 1));
    assert_eq!(bench.guest.read(buffer, 512), [0xaa; 512]);
    assert_eq!(bench.content(), before);
}

#[test]
fn the_serial_number_is_given_as_far_as_there_is_room() {
    let mut bench = bench(false);
    let rooms = [2, 30].map(|len| bench.guest.room(len));
    let data = rooms.map(Desc::writable);
    assert_eq!(bench.ask(VIRTIO_BLK_T_GET_ID, 0, &data), (OK, 21));
    assert_eq!(bench.guest.read(rooms[0], 2), b"7:");
    assert_eq!(bench.guest.read(rooms[1], 3), b"0\0\0");
    assert_eq!(bench.ask(VIRTIO_BLK_T_GET_ID, 0, &[]), (OK, 1));
}

#[test]
fn what_was_not_offered_is_not_supported() {
    let mut bench = bench(false);
    for kind in [2, 11, 13, 14, u32::MAX] {
        assert_eq!(bench.ask(kind, 0, &[]), (UNSUPPORTED, 1), "{kind}");
    }
}

#[test]
fn chains_that_are_no_requests_fail_the_device() {
    let mut bench = bench(false);
    let header = bench.guest.buffer(&header(VIRTIO_BLK_T_IN, 0));
    let short = bench.guest.buffer(&[0; 15]);
    let status = bench.guest.room(1);
    let empty = bench.guest.room(0);
    for chain in [
        vec![Desc::readable(header)],
        vec![Desc::writable(status)],
        vec![Desc::readable(short), Desc::writable(status)],
        vec![Desc::readable(header), Desc::writable(empty)],
    ] {
        bench.serve(&chain).unwrap_err();
    }
    let mut many = vec![Desc::readable(header)];
    many.extend((0..128).map(|_| Desc::writable(status)));
    bench.serve(&many).unwrap_err();
}

#[test]
fn random_requests_never_reach_beyond_the_device() {
    let mut bench = bench(false);
    let mut random = Random::new(7);
    for _ in 0..2000 {
        let kind = random.pick(&[VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT]);
        let sector = random.pick(&[0, 1, SECTORS - 1, SECTORS, u64::MAX - 1, u64::MAX]);
        bench.guest = GuestQueue::new(256);
        let data: Vec<_> = (0..random.below(5))
            .map(|_| {
                let len = random.pick(&[1, 511, 512, 1024, 4096, 64 << 10]);
                let room = bench.guest.room(len);
                if kind == VIRTIO_BLK_T_IN {
                    Desc::writable(room)
                } else {
                    Desc::readable(room)
                }
            })
            .collect();
        let len: u64 = data.iter().map(|desc| u64::from(desc.buffer.len)).sum();
        let fits = len.is_multiple_of(512) && sector.saturating_add(len / 512) <= SECTORS;
        let (status, _) = bench.ask(kind, sector, &data);
        assert_eq!(status == OK, fits, "{kind} {sector} {len}");
        assert_eq!(bench.content().len() as u64, SECTORS * SECTOR);
    }
}
