use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;

use super::in_process::move_frames;
use super::receive::{Received, Receiver};
use super::transmit::{Sent, Transmitter};
use super::*;
use crate::virtio::activation::run_with;
use crate::virtio::queue::Buffer;
use crate::virtio::testing::{Desc, GuestQueue, Random};

/// What stands in for a tap, and the far end of its wire. Each message is one
/// frame with its header, as on a tap.
fn wire() -> (OwnedFd, std::fs::File) {
    let (near, far) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    (near, far.into())
}

/// A frame of `len` bytes whose header asks for checksumming.
fn frame(len: usize) -> Vec<u8> {
    let mut frame = vec![1, 0, 0, 0, 0, 0, 14, 0, 16, 0, 0, 0];
    frame.extend((0..len).map(|index| (index % 251) as u8));
    frame
}

/// The frame as the guest sees it, in so many chains.
fn seen(mut frame: Vec<u8>, chains: u8) -> Vec<u8> {
    frame[10] = chains;
    frame
}

mod receiving {
    use super::*;

    struct Guest {
        queue: GuestQueue,
        rooms: Vec<Buffer>,
    }

    impl Guest {
        fn new(rooms: &[usize]) -> Self {
            let mut guest = Self {
                queue: GuestQueue::new(256),
                rooms: Vec::new(),
            };
            guest.offer(rooms);
            guest
        }

        fn offer(&mut self, rooms: &[usize]) {
            for len in rooms {
                let room = self.queue.room(*len);
                self.queue.offer(&[Desc::writable(room)]);
                self.rooms.push(room);
            }
        }

        /// What was received since the last call, chains put together.
        fn received(&mut self) -> (usize, Vec<u8>) {
            let used = self.queue.used();
            let bytes = used
                .iter()
                .flat_map(|(head, len)| {
                    let room = self.rooms[usize::from(*head)];
                    self.queue.read(room, *len as usize)
                })
                .collect();
            (used.len(), bytes)
        }
    }

    fn receiver<'m>(memory: &'m crate::virtio::GuestMemory, guest: &Guest) -> Receiver<'m> {
        Receiver::new(memory, guest.queue.device_side(), true)
    }

    #[test]
    fn a_frame_arrives_with_its_offload_header() {
        let (tap, mut far) = wire();
        let mut guest = Guest::new(&[2048; 4]);
        let memory = guest.queue.shared_memory();
        let mut receiver = receiver(&memory, &guest);
        far.write_all(&frame(100)).unwrap();
        far.write_all(&frame(200)).unwrap();
        assert!(matches!(
            receiver.receive(tap.as_fd()).unwrap(),
            Received::All
        ));
        let both = [seen(frame(100), 1), seen(frame(200), 1)].concat();
        assert_eq!(guest.received(), (2, both));
        assert_eq!(guest.queue.interrupt().irqfd().read().unwrap(), 1);
    }

    #[test]
    fn a_long_frame_is_spread_over_as_many_chains_as_it_needs() {
        let (tap, mut far) = wire();
        let mut guest = Guest::new(&[1536; 60]);
        let memory = guest.queue.shared_memory();
        let mut receiver = receiver(&memory, &guest);
        for len in [1524, 1525, 65536] {
            far.write_all(&frame(len)).unwrap();
            receiver.receive(tap.as_fd()).unwrap();
            let chains = (12 + len).div_ceil(1536);
            assert_eq!(
                guest.received(),
                (chains, seen(frame(len), u8::try_from(chains).unwrap()))
            );
        }
    }

    #[test]
    fn a_header_that_two_descriptors_share_counts_chains_too() {
        let (tap, mut far) = wire();
        let mut queue = GuestQueue::new(16);
        let (head, tail) = (queue.room(11), queue.room(500));
        queue.offer(&[Desc::writable(head), Desc::writable(tail)]);
        let memory = queue.shared_memory();
        let mut receiver = Receiver::new(&memory, queue.device_side(), true);
        far.write_all(&frame(100)).unwrap();
        receiver.receive(tap.as_fd()).unwrap();
        assert_eq!(queue.used(), vec![(0, 112)]);
        assert_eq!(queue.read(head, 11)[10], 1);
        assert_eq!(queue.read(tail, 1), [0]);
    }

    #[test]
    fn a_frame_without_room_waits_for_the_guest_and_loses_nothing() {
        let (tap, mut far) = wire();
        let mut guest = Guest::new(&[1536; 2]);
        let memory = guest.queue.shared_memory();
        let mut receiver = receiver(&memory, &guest);
        far.write_all(&frame(9000)).unwrap();
        far.write_all(&frame(60)).unwrap();
        assert!(matches!(
            receiver.receive(tap.as_fd()).unwrap(),
            Received::Starved
        ));
        assert_eq!(guest.received(), (0, vec![]));
        guest.offer(&[1536; 10]);
        receiver.receive(tap.as_fd()).unwrap();
        let both = [seen(frame(9000), 6), seen(frame(60), 1)].concat();
        assert_eq!(guest.received(), (7, both));
    }

    #[test]
    fn without_buffers_frames_stay_on_the_tap() {
        let (tap, mut far) = wire();
        let mut guest = Guest::new(&[]);
        let memory = guest.queue.shared_memory();
        let mut receiver = receiver(&memory, &guest);
        far.write_all(&frame(60)).unwrap();
        assert!(matches!(
            receiver.receive(tap.as_fd()).unwrap(),
            Received::Starved
        ));
        let mut bytes = [0; 128];
        let (_, kept) = rustix::net::recv(&tap, &mut bytes, rustix::net::RecvFlags::PEEK).unwrap();
        assert_eq!(kept, 72);
        guest.offer(&[1536]);
        receiver.receive(tap.as_fd()).unwrap();
        assert_eq!(guest.received(), (1, seen(frame(60), 1)));
    }

    #[test]
    fn a_frame_that_a_full_ring_has_no_room_for_is_dropped() {
        let (tap, mut far) = wire();
        let mut guest = Guest::new(&[100; 256]);
        let memory = guest.queue.shared_memory();
        let mut receiver = receiver(&memory, &guest);
        far.write_all(&frame(60_000)).unwrap();
        far.write_all(&frame(60)).unwrap();
        receiver.receive(tap.as_fd()).unwrap();
        assert_eq!(guest.received(), (1, seen(frame(60), 1)));
    }

    #[test]
    fn a_driver_that_does_not_merge_gets_no_frame_that_one_chain_cannot_hold() {
        let (tap, mut far) = wire();
        let mut guest = Guest::new(&[1536; 8]);
        let memory = guest.queue.shared_memory();
        let mut receiver = Receiver::new(&memory, guest.queue.device_side(), false);
        far.write_all(&frame(9000)).unwrap();
        far.write_all(&frame(60)).unwrap();
        receiver.receive(tap.as_fd()).unwrap();
        assert_eq!(guest.received(), (1, seen(frame(60), 1)));
    }

    #[test]
    fn buffers_that_cannot_hold_a_frame_are_malformed() {
        let (tap, _far) = wire();
        for (expected, writable, len) in [
            ("readable", false, 2048),
            ("no room for the header", true, 11),
        ] {
            let mut queue = GuestQueue::new(16);
            let room = queue.room(len);
            queue.offer(&[Desc {
                writable,
                ..Desc::writable(room)
            }]);
            let memory = queue.shared_memory();
            let mut receiver = Receiver::new(&memory, queue.device_side(), true);
            let error = receiver.receive(tap.as_fd()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn buffers_that_are_offered_again_before_they_were_used_are_malformed() {
        let (tap, _far) = wire();
        let mut queue = GuestQueue::new(16);
        let room = queue.room(12);
        let memory = queue.shared_memory();
        let mut receiver = Receiver::new(&memory, queue.device_side(), true);
        for _ in 0..16 {
            queue.offer(&[Desc::writable(room)]);
        }
        receiver.receive(tap.as_fd()).unwrap();
        queue.offer(&[Desc::writable(room)]);
        let error = receiver.receive(tap.as_fd()).unwrap_err().to_string();
        assert!(error.contains("not given back"), "{error}");
    }

    #[test]
    fn a_tap_that_is_gone_is_told_from_one_without_frames() {
        // Reading a directory fails for good, as reading a deleted tap does.
        let gone = std::fs::File::open("/").unwrap();
        let guest = Guest::new(&[1536]);
        let memory = guest.queue.shared_memory();
        let mut receiver = receiver(&memory, &guest);
        assert!(matches!(
            receiver.receive(gone.as_fd()).unwrap(),
            Received::Gone(_)
        ));
    }
}

mod sending {
    use super::*;

    #[test]
    fn a_frame_leaves_as_it_is_however_it_is_cut() {
        let (tap, mut far) = wire();
        let mut queue = GuestQueue::new(16);
        let bytes = frame(3000);
        let parts = [&bytes[..5], &bytes[5..12], &bytes[12..100], &bytes[100..]];
        let chain = parts.map(|part| Desc::readable(queue.buffer(part)));
        queue.offer(&chain);
        let memory = queue.shared_memory();
        let mut transmitter = Transmitter::new(&memory, queue.device_side());
        assert_eq!(transmitter.send(tap.as_fd()).unwrap(), Sent::All);
        let mut sent = vec![0; 4096];
        let len = far.read(&mut sent).unwrap();
        assert_eq!(&sent[..len], bytes);
        assert_eq!(queue.used(), vec![(0, 0)]);
    }

    #[test]
    fn the_longest_frame_is_sent_and_a_longer_one_dropped() {
        let (tap, mut far) = wire();
        let mut queue = GuestQueue::new(16);
        let memory = queue.shared_memory();
        let mut transmitter = Transmitter::new(&memory, queue.device_side());
        for len in [MAX_FRAME, MAX_FRAME + 1] {
            let buffer = queue.buffer(&frame(len));
            queue.offer(&[Desc::readable(buffer)]);
        }
        transmitter.send(tap.as_fd()).unwrap();
        assert_eq!(queue.used().len(), 2);
        let mut sent = vec![0; 2 * MAX_MESSAGE];
        assert_eq!(far.read(&mut sent).unwrap(), MAX_MESSAGE);
        far.read(&mut sent).unwrap_err();
    }

    #[test]
    fn a_full_wire_holds_frames_back_in_order() {
        let (tap, mut far) = wire();
        let mut queue = GuestQueue::new(256);
        for index in 0..100u8 {
            let mut bytes = frame(8000);
            bytes[12] = index;
            let buffer = queue.buffer(&bytes);
            queue.offer(&[Desc::readable(buffer)]);
        }
        let memory = queue.shared_memory();
        let mut transmitter = Transmitter::new(&memory, queue.device_side());
        let mut order = Vec::new();
        let mut blocked = 0;
        let mut bytes = vec![0; 10_000];
        loop {
            let sent = transmitter.send(tap.as_fd()).unwrap();
            while far.read(&mut bytes).is_ok() {
                order.push(bytes[12]);
            }
            match sent {
                Sent::Blocked => blocked += 1,
                _ => break,
            }
        }
        assert!(blocked > 0);
        assert_eq!(order, (0..100).collect::<Vec<u8>>());
        assert_eq!(queue.used().len(), 100);
    }

    #[test]
    fn what_is_no_frame_is_malformed() {
        let (tap, _far) = wire();
        for (expected, writable, len) in [("writable", true, 64), ("without a header", false, 11)] {
            let mut queue = GuestQueue::new(16);
            let room = queue.room(len);
            queue.offer(&[Desc {
                writable,
                ..Desc::readable(room)
            }]);
            let memory = queue.shared_memory();
            let mut transmitter = Transmitter::new(&memory, queue.device_side());
            let error = transmitter.send(tap.as_fd()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_ring_that_never_empties_gives_way() {
        let (tap, _far) = wire();
        let mut queue = GuestQueue::new(256);
        let memory = queue.shared_memory();
        let mut transmitter = Transmitter::new(&memory, queue.device_side());
        // Too long to be sent, so that the wire does not fill up.
        let buffer = queue.room(MAX_MESSAGE + 1);
        for _ in 0..256 {
            queue.offer(&[Desc::readable(buffer)]);
        }
        assert_eq!(transmitter.send(tap.as_fd()).unwrap(), Sent::Budget);
        assert_eq!(transmitter.send(tap.as_fd()).unwrap(), Sent::All);
    }
}

#[test]
fn junk_in_the_rings_ends_in_an_error_or_in_nothing() {
    for seed in 0..300 {
        let mut random = Random::new(seed);
        let (tap, mut far) = wire();
        let mut queue = GuestQueue::new(16);
        let memory = queue.shared_memory();
        let mergeable = random.below(2) == 0;
        let mut receiver = Receiver::new(&memory, queue.device_side(), mergeable);
        let mut transmitter = Transmitter::new(&memory, queue.device_side());
        for _ in 0..20 {
            let chain: Vec<_> = (0..=random.below(4)).map(|_| junk(&mut random)).collect();
            queue.offer(&chain);
            if random.below(8) == 0 {
                queue.set_available_index(random.next() as u16);
            }
            let len = random.below(70_000) as usize;
            let _ = far.write(&random.bytes(len));
            let ended = match seed % 2 {
                0 => receiver.receive(tap.as_fd()).is_err(),
                _ => transmitter.send(tap.as_fd()).is_err(),
            };
            if ended {
                break;
            }
            let mut bytes = [0; 16];
            while far.read(&mut bytes).is_ok() {}
        }
    }
}

fn junk(random: &mut Random) -> Desc {
    let address = random.pick(&[0, 0x20_0000, 0x20_0001, (16 << 20) - 10, 16 << 20, u64::MAX]);
    let len = random.pick(&[0, 1, 11, 12, 13, 1536, 65_566, 65_567, 1 << 20, u32::MAX]);
    Desc {
        buffer: Buffer {
            address: vm_memory::GuestAddress(address),
            len,
        },
        writable: random.below(2) == 0,
        next: (random.below(4) == 0).then(|| random.below(20) as u16),
    }
}

/// A device of which only the tap is missing.
struct Device {
    worker: Worker,
    receive: GuestQueue,
    transmit: GuestQueue,
    far: std::fs::File,
}

impl Device {
    fn spawn() -> Self {
        let (tap, far) = wire();
        let (worker, mailbox) = Worker::pair().unwrap();
        thread::spawn(move || {
            run_with("net", &mailbox, |mut active, mailbox| {
                move_frames(&mut active, &tap, mailbox)
            });
        });
        let receive = GuestQueue::new(256);
        let transmit = receive.sibling(1, 256);
        Self {
            worker,
            receive,
            transmit,
            far,
        }
    }

    fn activate(&self) {
        self.worker
            .activate(ActiveDevice {
                memory: self.receive.shared_memory(),
                features: 1 << VIRTIO_NET_F_MRG_RXBUF,
                queues: vec![
                    Some(self.receive.device_side()),
                    Some(self.transmit.device_side()),
                ],
                interrupt: Arc::clone(self.receive.interrupt()),
            })
            .unwrap();
    }
}

fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let started = Instant::now();
    while !check() {
        assert!(started.elapsed() < Duration::from_secs(20), "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn frames_flow_both_ways_on_the_devices_thread() {
    let mut device = Device::spawn();
    device.activate();
    let buffer = device.transmit.buffer(&frame(500));
    device.transmit.offer(&[Desc::readable(buffer)]);
    let mut bytes = vec![0; 4096];
    let mut sent = 0;
    eventually("a frame is sent", || {
        sent = device.far.read(&mut bytes).unwrap_or(0);
        sent > 0
    });
    assert_eq!(&bytes[..sent], frame(500));

    // The guest has no buffer when this comes, and gives one afterwards.
    device.far.write_all(&frame(700)).unwrap();
    thread::sleep(Duration::from_millis(20));
    let room = device.receive.room(2048);
    device.receive.offer(&[Desc::writable(room)]);
    eventually("a frame is received", || {
        device.receive.used() == vec![(0, 712)]
    });
    assert_eq!(device.receive.read(room, 712), seen(frame(700), 1));
}

#[test]
fn more_frames_than_the_wire_holds_all_arrive() {
    let mut device = Device::spawn();
    device.activate();
    let buffer = device.transmit.buffer(&frame(60_000));
    for _ in 0..200 {
        device.transmit.offer(&[Desc::readable(buffer)]);
    }
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut arrived = 0;
    eventually("all frames are sent", || {
        while device.far.read(&mut bytes).is_ok() {
            arrived += 1;
        }
        arrived == 200
    });
}

#[test]
fn after_a_reset_amid_traffic_nothing_is_touched_and_the_device_works_again() {
    let mut device = Device::spawn();
    for round in 0..50 {
        device.receive.restart();
        device.transmit.restart();
        device.activate();
        for _ in 0..20 {
            let room = device.receive.room(256);
            device.receive.offer(&[Desc::writable(room)]);
            let buffer = device.transmit.buffer(&frame(100));
            device.transmit.offer(&[Desc::readable(buffer)]);
            let _ = device.far.write(&frame(200));
        }
        if round % 2 == 0 {
            eventually("some frame is received", || {
                !device.receive.used().is_empty()
            });
        }
        device.worker.reset();
        device.receive.used();
        let _ = device.far.write(&frame(200));
        thread::sleep(Duration::from_millis(1));
        assert_eq!(device.receive.used(), vec![]);
        let mut bytes = [0; 256];
        while device.far.read(&mut bytes).is_ok() {}
        assert!(!device.receive.interrupt().has_failed());
    }
}

#[test]
fn when_the_tap_goes_the_guests_frames_are_lost_and_its_buffers_are_not() {
    let mut device = Device::spawn();
    device.activate();
    device.far = std::fs::File::open("/dev/null").unwrap();
    for _ in 0..300 {
        let buffer = device.transmit.buffer(&frame(100));
        device.transmit.offer(&[Desc::readable(buffer)]);
        eventually("the buffer comes back", || {
            !device.transmit.used().is_empty()
        });
    }
    assert!(!device.transmit.interrupt().has_failed());
    device.worker.reset();
}

#[test]
fn a_driver_that_breaks_the_rules_is_told_to_reset_and_gets_a_new_chance() {
    let mut device = Device::spawn();
    device.activate();
    let room = device.transmit.room(64);
    device.transmit.offer(&[Desc::writable(room)]);
    eventually("the device needs a reset", || {
        device.transmit.interrupt().has_failed()
    });
    device.worker.reset();
    device.transmit.interrupt().reset();
    device.receive.restart();
    device.transmit.restart();
    device.activate();
    let buffer = device.transmit.buffer(&frame(10));
    device.transmit.offer(&[Desc::readable(buffer)]);
    eventually("a frame is sent", || device.far.read(&mut [0; 64]).is_ok());
}
