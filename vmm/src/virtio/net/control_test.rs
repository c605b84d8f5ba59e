use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_net::{VIRTIO_NET_ERR, VIRTIO_NET_OK};

use super::control::{ActiveControl, Queues, run};
use super::*;
use crate::virtio::queue::Buffer;
use crate::virtio::testing::{Desc, GuestQueue, Random};

const OK: u8 = VIRTIO_NET_OK as u8;
const ERR: u8 = VIRTIO_NET_ERR as u8;
/// What an answer's place holds before it is answered.
const NOTHING: u8 = 0x55;

/// Notes what is asked of the tap's queues, which there are so many of.
#[derive(Clone, Default)]
struct Notes {
    asked: Arc<Mutex<Vec<usize>>>,
    refuse: Arc<Mutex<bool>>,
}

impl Notes {
    fn take(&self) -> Vec<usize> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

impl Queues for Notes {
    fn use_further(&mut self, count: usize) -> bool {
        self.asked.lock().unwrap().push(count);
        !*self.refuse.lock().unwrap()
    }
}

/// A driver's control queue on a device with four pairs.
struct Driver {
    worker: Worker<ActiveControl>,
    queue: GuestQueue,
    notes: Notes,
}

impl Driver {
    fn new() -> Self {
        let (worker, mailbox) = Worker::pair().unwrap();
        let notes = Notes::default();
        let queues = notes.clone();
        thread::spawn(move || run(queues, &mailbox));
        let driver = Self {
            worker,
            queue: GuestQueue::new(16),
            notes,
        };
        driver.activate();
        driver
    }

    fn activate(&self) {
        let active = ActiveControl {
            memory: self.queue.shared_memory(),
            interrupt: Arc::clone(self.queue.interrupt()),
            queue: self.queue.device_side(),
            pairs: 4,
        };
        self.worker.activate(active).unwrap();
    }

    /// The device's answer to a command.
    fn ask(&mut self, command: &[u8]) -> u8 {
        let command = self.queue.buffer(command);
        let answer = self.queue.buffer(&[NOTHING]);
        self.queue
            .offer(&[Desc::readable(command), Desc::writable(answer)]);
        let started = Instant::now();
        while self.queue.used().is_empty() {
            assert!(started.elapsed() < Duration::from_secs(20), "no answer");
            thread::sleep(Duration::from_millis(1));
        }
        self.queue.read(answer, 1)[0]
    }

    fn set_pairs(&mut self, pairs: u16) -> u8 {
        let [low, high] = pairs.to_le_bytes();
        self.ask(&[4, 0, low, high])
    }

    fn wait_until_failed(&self) {
        let started = Instant::now();
        while !self.queue.interrupt().has_failed() {
            assert!(started.elapsed() < Duration::from_secs(20), "still works");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn reset(&mut self) {
        self.worker.reset();
        self.queue.interrupt().reset();
        self.queue.restart();
    }
}

#[test]
fn the_driver_decides_how_many_pairs_are_in_use() {
    let mut driver = Driver::new();
    for pairs in [2, 4, 4, 1, 3] {
        assert_eq!(driver.set_pairs(pairs), OK, "{pairs}");
    }
    // The first pair always is; what is so already is not asked for.
    assert_eq!(driver.notes.take(), [1, 3, 0, 2]);
    driver.queue.interrupt().irqfd().read().unwrap();
}

#[test]
fn a_command_in_pieces_is_understood() {
    let mut driver = Driver::new();
    let pieces = [&[4][..], &[0, 2], &[0]].map(|piece| driver.queue.buffer(piece));
    let answer = driver.queue.buffer(&[NOTHING, NOTHING]);
    let chain = pieces.map(Desc::readable);
    driver
        .queue
        .offer(&[&chain[..], &[Desc::writable(answer)]].concat());
    let started = Instant::now();
    while driver.queue.used().is_empty() {
        assert!(started.elapsed() < Duration::from_secs(20), "no answer");
    }
    assert_eq!(driver.queue.read(answer, 2), [OK, NOTHING]);
    assert_eq!(driver.notes.take(), [1]);
}

#[test]
fn what_cannot_be_done_is_answered_and_changes_nothing() {
    let mut driver = Driver::new();
    for command in [
        // Numbers of pairs that there cannot be.
        &[4, 0, 0, 0][..],
        &[4, 0, 5, 0],
        &[4, 0, 2, 1],
        &[4, 0, 0xff, 0xff],
        // Of another length.
        &[4],
        &[4, 0],
        &[4, 0, 2],
        &[4, 0, 2, 0, 0],
        // RSS, hashing, promiscuous mode, addresses, VLANs, announcements, offloads, nonsense.
        &[4, 1, 2, 0],
        &[4, 2, 2, 0],
        &[0, 0, 1, 0],
        &[1, 1, 2, 0],
        &[2, 0, 1, 0],
        &[3, 0, 1, 0],
        &[5, 0, 0, 0],
        &[0xff, 0xff, 0xff, 0xff],
    ] {
        assert_eq!(driver.ask(command), ERR, "{command:?}");
    }
    assert_eq!(driver.ask(&[0; 70_000]), ERR);
    assert_eq!(driver.notes.take(), [0; 0]);
    assert!(!driver.queue.interrupt().has_failed());
    assert_eq!(driver.set_pairs(2), OK, "and the device works on");
}

#[test]
fn what_the_tap_refuses_is_answered_as_an_error_and_can_be_tried_again() {
    let mut driver = Driver::new();
    *driver.notes.refuse.lock().unwrap() = true;
    assert_eq!(driver.set_pairs(2), ERR);
    *driver.notes.refuse.lock().unwrap() = false;
    assert_eq!(driver.set_pairs(2), OK);
    assert_eq!(driver.notes.take(), [1, 1]);
}

#[test]
fn a_reset_leaves_one_pair_in_use() {
    let mut driver = Driver::new();
    assert_eq!(driver.set_pairs(3), OK);
    driver.reset();
    assert_eq!(driver.notes.take(), [2, 0]);
    driver.activate();
    assert_eq!(driver.set_pairs(1), OK);
    assert_eq!(driver.set_pairs(2), OK);
    assert_eq!(driver.notes.take(), [1]);
}

#[test]
fn a_command_without_room_for_an_answer_fails_the_device() {
    let mut driver = Driver::new();
    assert_eq!(driver.set_pairs(2), OK);
    let command = driver.queue.buffer(&[4, 0, 1, 0]);
    driver.queue.offer(&[Desc::readable(command)]);
    driver.wait_until_failed();
    driver.reset();
    assert_eq!(driver.notes.take(), [1, 0], "one pair is in use");
    driver.activate();
    assert_eq!(driver.set_pairs(2), OK);
}

#[test]
fn a_guest_cannot_keep_the_hosts_network_busy() {
    let mut driver = Driver::new();
    let started = Instant::now();
    for round in 0..10 {
        assert_eq!(driver.set_pairs(2 - round % 2), OK);
    }
    assert!(started.elapsed() >= Duration::from_millis(90));
}

#[test]
fn junk_in_the_ring_ends_in_an_answer_or_a_failed_device() {
    for seed in 0..100 {
        let mut random = Random::new(seed);
        let mut driver = Driver::new();
        for _ in 0..20 {
            let chain: Vec<_> = (0..=random.below(4)).map(|_| junk(&mut random)).collect();
            driver.queue.offer(&chain);
            if random.below(8) == 0 {
                driver.queue.set_available_index(random.next() as u16);
                driver.queue.kick();
            }
        }
        driver.reset();
        assert!(driver.notes.take().iter().all(|further| *further < 4));
        driver.activate();
        assert_eq!(driver.set_pairs(2), OK, "seed {seed}");
    }
}

fn junk(random: &mut Random) -> Desc {
    let address = random.pick(&[0, 0x10_0000, 0x10_0001, (16 << 20) - 1, 16 << 20, u64::MAX]);
    Desc {
        buffer: Buffer {
            address: vm_memory::GuestAddress(address),
            len: random.pick(&[0, 1, 2, 3, 4, 5, 1 << 20, u32::MAX]),
        },
        writable: random.below(2) == 0,
        next: (random.below(4) == 0).then(|| random.below(20) as u16),
    }
}
