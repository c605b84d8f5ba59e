//! Guests that break the rules, or whose host is slow.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use fuse_backend_rs::abi::fuse_abi::{BatchForgetIn, ForgetOne, InHeader, Opcode, OutHeader};
use vm_memory::{ByteValued, GuestAddress};

use super::driver_test::{Guest, ROOT};
use crate::virtio::device::VirtioDevice;
use crate::virtio::queue::Buffer;
use crate::virtio::testing::{Desc, Random};

fn shared() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("dir")).unwrap();
    fs::write(root.path().join("dir/file"), "content").unwrap();
    root
}

const IN_HEADER: usize = size_of::<InHeader>();
const OUT_HEADER: usize = size_of::<OutHeader>();

#[test]
fn chains_that_are_no_request_fail_the_device_until_it_is_reset() {
    let root = shared();
    let mut guest = Guest::mount(root.path());
    let getattr = guest.message(Opcode::Getattr, ROOT, &[0; 16]);
    let too_long = [&getattr[..], &vec![0; 2 << 20]].concat();
    let cases: [(&[u8], usize); 4] = [
        (&getattr[..IN_HEADER - 1], 4096),
        (&getattr, 0),
        (&getattr, OUT_HEADER - 1),
        (&too_long[..(1 << 20) + 4097], 4096),
    ];
    for (message, room) in cases {
        assert_eq!(guest.exchange(message, room), None);
        // Nothing is served any more.
        assert_eq!(guest.exchange(&getattr, 4096), None);
        guest.reset();
        guest.activate();
        guest.init();
        guest.getattr(ROOT).unwrap();
    }
}

#[test]
fn a_reply_with_more_room_than_was_negotiated_fails_the_device() {
    let root = shared();
    let mut guest = Guest::mount(root.path());
    let getattr = guest.message(Opcode::Getattr, ROOT, &[0; 16]);
    let request = guest.requests.buffer(&getattr);
    let everything = Buffer {
        address: GuestAddress(0),
        len: 16 << 20,
    };
    guest
        .requests
        .offer(&[Desc::readable(request), Desc::writable(everything)]);
    guest.eventually("the device fails", |guest| {
        guest.requests.interrupt().has_failed()
    });
}

#[test]
fn more_descriptors_than_any_request_needs_fail_the_device() {
    let root = shared();
    let mut guest = Guest::mount(root.path());
    let getattr = guest.message(Opcode::Getattr, ROOT, &[0; 16]);
    let mut chain = vec![Desc::readable(guest.requests.buffer(&getattr))];
    let byte = guest.requests.room(1);
    chain.extend([Desc::writable(byte); 600]);
    guest.requests.offer(&chain);
    guest.eventually("the device fails", |guest| {
        guest.requests.interrupt().has_failed()
    });
}

#[test]
fn a_request_cut_in_many_pieces_is_served() {
    let root = shared();
    let mut guest = Guest::mount(root.path());
    let message = guest.message(Opcode::Lookup, ROOT, b"dir\0");
    let mut chain: Vec<_> = message
        .iter()
        .map(|byte| Desc::readable(guest.requests.buffer(&[*byte])))
        .collect();
    let empty = guest.requests.room(0);
    let rooms: Vec<_> = (0..200).map(|_| guest.requests.room(1)).collect();
    chain.push(Desc::writable(empty));
    chain.extend(rooms.iter().map(|room| Desc::writable(*room)));
    guest.requests.offer(&chain);
    let mut used = Vec::new();
    guest.eventually("a reply", |guest| {
        used = guest.requests.used();
        !used.is_empty()
    });
    assert_eq!(used[0].1, 16 + 128);
    let error: Vec<u8> = rooms[4..8]
        .iter()
        .flat_map(|room| guest.requests.read(*room, 1))
        .collect();
    assert_eq!(error, [0; 4]);
}

#[test]
fn requests_that_contradict_themselves_are_refused_one_by_one() {
    let root = shared();
    let mut guest = Guest::mount(root.path());
    for opcode in [
        Opcode::Lookup,
        Opcode::Setxattr,
        Opcode::Write,
        Opcode::Rename2,
        Opcode::Create,
    ] {
        let mut message = guest.message(opcode, ROOT, b"no end of this name");
        // The header promises more than there is.
        message[..4].copy_from_slice(&4000u32.to_le_bytes());
        let written = guest.exchange(&message, 4096).unwrap();
        assert_eq!(written as usize, OUT_HEADER, "{opcode:?}");
    }
    guest.getattr(ROOT).unwrap();
}

#[test]
fn unknown_numbers_are_refused_and_forgetting_them_does_nothing() {
    let root = shared();
    let mut guest = Guest::mount(root.path());
    let dir = guest.lookup(ROOT, b"dir").unwrap().nodeid;
    for unknown in [0, dir + 1, u64::MAX] {
        assert_eq!(guest.getattr(unknown).unwrap_err(), libc::EBADF);
        guest.forget(unknown, 1);
        guest.forget(unknown, u64::MAX);
    }
    guest.forget(ROOT, u64::MAX);
    guest.getattr(ROOT).unwrap();
    guest.getattr(dir).unwrap();
    guest.forget(dir, u64::MAX);
    assert_eq!(guest.getattr(dir).unwrap_err(), libc::EBADF);
}

#[test]
fn many_files_are_forgotten_at_once() {
    let root = shared();
    let mut guest = Guest::mount(root.path());
    let dir = guest.lookup(ROOT, b"dir").unwrap().nodeid;
    let file = guest.lookup(dir, b"file").unwrap().nodeid;
    let one = |nodeid| ForgetOne { nodeid, nlookup: 1 };
    let count = BatchForgetIn { count: 3, dummy: 0 };
    let (first, second, unknown) = (one(dir), one(file), one(999));
    let body = [
        count.as_slice(),
        first.as_slice(),
        unknown.as_slice(),
        second.as_slice(),
    ]
    .concat();
    guest.send_high_priority(Opcode::BatchForget, 0, &body);
    assert_eq!(guest.getattr(dir).unwrap_err(), libc::EBADF);
    assert_eq!(guest.getattr(file).unwrap_err(), libc::EBADF);
}

#[test]
fn after_a_reset_nothing_is_known_and_the_share_can_be_mounted_again() {
    let root = shared();
    let mut guest = Guest::mount(root.path());
    for _ in 0..5 {
        let entry = guest.walk("dir/file").unwrap();
        let fh = guest.open(entry.nodeid, libc::O_RDWR).unwrap();
        guest.reset();
        guest.activate();
        guest.init();
        assert_eq!(guest.getattr(entry.nodeid).unwrap_err(), libc::EBADF);
        assert_eq!(guest.read(entry.nodeid, fh, 0, 1).unwrap_err(), libc::EBADF);
        guest.walk("dir/file").unwrap();
    }
}

#[test]
fn a_goodbye_closes_everything() {
    let root = shared();
    let mut guest = Guest::mount(root.path());
    let entry = guest.walk("dir/file").unwrap();
    guest.open(entry.nodeid, libc::O_RDWR).unwrap();
    guest.call(Opcode::Destroy, 0, &[]).unwrap();
    assert_eq!(guest.getattr(entry.nodeid).unwrap_err(), libc::EBADF);
    guest.init();
    guest.walk("dir/file").unwrap();
}

#[test]
fn a_reset_amid_requests_returns_with_all_of_them_done() {
    let root = shared();
    let mut guest = Guest::mount(root.path());
    for _ in 0..50 {
        let message = guest.message(Opcode::Lookup, ROOT, b"dir\0");
        for _ in 0..40 {
            let request = guest.requests.buffer(&message);
            let reply = guest.requests.room(256);
            guest
                .requests
                .offer(&[Desc::readable(request), Desc::writable(reply)]);
        }
        guest.fs.reset();
        guest.requests.used();
        thread::sleep(Duration::from_millis(1));
        assert_eq!(guest.requests.used(), vec![]);
        guest.requests.restart();
        guest.high_priority.restart();
        guest.activate();
        guest.init();
    }
}

/// `F_SETSIG` of `<fcntl.h>`.
const F_SETSIG: libc::c_int = 10;

/// Takes a lease, so that whoever opens `file` waits for as long as it is held.
fn lease(file: &File, kind: libc::c_int) {
    // SAFETY: plain calls on an open descriptor; the signal is one that nobody heeds.
    unsafe {
        assert_eq!(libc::fcntl(file.as_raw_fd(), F_SETSIG, libc::SIGWINCH), 0);
        assert_eq!(libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind), 0);
    }
}

#[test]
fn a_request_that_the_host_keeps_waiting_holds_up_no_other() {
    let root = shared();
    let mut guest = Guest::mount(root.path());
    let node = guest.walk("dir/file").unwrap().nodeid;
    let other = guest.lookup(ROOT, b"dir").unwrap().nodeid;
    let held = File::open(root.path().join("dir/file")).unwrap();
    lease(&held, libc::F_RDLCK);

    let message = guest.message(Opcode::Open, node, &[2, 0, 0, 0, 0, 0, 0, 0]);
    let request = guest.requests.buffer(&message);
    let reply = guest.requests.room(64);
    let slow = guest
        .requests
        .offer(&[Desc::readable(request), Desc::writable(reply)]);
    let started = Instant::now();
    for _ in 0..20 {
        guest.getattr(other).unwrap();
        guest.forget(999, 1);
    }
    assert!(started.elapsed() < Duration::from_secs(10));
    assert_eq!(guest.requests.used(), vec![]);

    lease(&held, libc::F_UNLCK);
    let mut used = Vec::new();
    guest.eventually("the slow request is done", |guest| {
        used = guest.requests.used();
        !used.is_empty()
    });
    assert_eq!(used, vec![(slow, 32)]);
}

const ALONE: &str = "NACRE_TEST_ALONE";

fn is_alone() -> bool {
    std::env::var_os(ALONE).is_some()
}

/// Runs one test in a process of its own.
fn run_alone(test: &str) {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1 passed"), "no such test: {said}");
}

/// The largest that this process's address space has ever been, in bytes.
fn peak_address_space() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmPeak:"));
    let kib: u64 = line
        .and_then(|line| line.split_whitespace().nth(1))
        .unwrap()
        .parse()
        .unwrap();
    kib << 10
}

#[test]
fn junk_requests_end_in_an_answer_and_take_no_memory() {
    // Other tests map gigabytes in the process that they share with this one.
    if !is_alone() {
        return run_alone(
            "virtio::fs::hostile_test::junk_requests_end_in_an_answer_and_take_no_memory",
        );
    }
    let root = shared();
    let mut guest = Guest::mount(root.path());
    guest.walk("dir/file").unwrap();
    for seed in 0..40_000 {
        let mut random = Random::new(seed);
        let mut message = junk(&mut random);
        let opcode = u32::from_le_bytes(message[4..8].try_into().unwrap());
        // These are not answered, but they are taken.
        if [2, 36, 42].contains(&opcode) {
            message[4] = 3;
        }
        let room = random.pick(&[16, 24, 128, 4096, 1 << 20]);
        let answer = guest.exchange(&message, room);
        assert!(answer.is_some(), "request {seed}");
        if seed % 1000 == 0 {
            guest.init();
        }
    }
    guest.getattr(ROOT).unwrap();
    // A gigabyte asked for once would show here.
    assert!(peak_address_space() < 4 << 30);
}

/// A header with some sense and a body with none.
fn junk(random: &mut Random) -> Vec<u8> {
    let numbers = [
        0,
        1,
        2,
        3,
        4,
        16,
        4096,
        u64::from(u32::MAX),
        u64::MAX,
        1 << 63,
    ];
    let len = random.pick(&[0, 1, 7, 8, 15, 16, 24, 40, 64, 88, 200, 5000]);
    let mut body = random.bytes(len);
    for word in body.chunks_exact_mut(8) {
        if random.below(3) > 0 {
            word.copy_from_slice(&random.pick(&numbers).to_le_bytes());
        }
    }
    if random.below(3) == 0 {
        body.extend(random.pick(&[&b"dir\0"[..], b"file\0", b"..\0", b"a\0b\0", b"\xff\0"]));
    }
    let known = u32::try_from(random.below(64)).unwrap();
    let opcode = match random.pick(&[known, known, known, known, 4096, u32::MAX]) {
        // This one would fill the disk.
        43 => 44,
        opcode => opcode,
    };
    let honest = u32::try_from(IN_HEADER + body.len()).unwrap();
    let header = InHeader {
        len: random.pick(&[honest, honest, honest, 0, 40, 0x0010_1000, u32::MAX]),
        opcode,
        unique: random.next(),
        nodeid: random.pick(&numbers),
        uid: random.pick(&[0, 1000, u32::MAX]),
        gid: random.pick(&[0, 1000, u32::MAX]),
        ..InHeader::default()
    };
    [header.as_slice(), &body].concat()
}
