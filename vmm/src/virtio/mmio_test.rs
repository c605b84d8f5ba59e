//! A driver's view of the transport: the orderly one, and one that writes
//! registers at random against a model of what may change.

use std::sync::Mutex;

use vm_memory::GuestAddress;

use super::super::device::ActivateError;
use super::*;

const QUEUES: usize = 2;
const SIZES: [u16; QUEUES] = [64, 128];

#[derive(Default)]
struct Seen {
    activations: Vec<ActiveDevice>,
    notified: Vec<u16>,
    resets: usize,
}

struct FakeDevice {
    seen: Arc<Mutex<Seen>>,
    refuse: bool,
}

impl VirtioDevice for FakeDevice {
    fn device_type(&self) -> u32 {
        42
    }
    fn name(&self) -> &'static str {
        "fake"
    }
    fn features(&self) -> u64 {
        0b101
    }
    fn queue_max_sizes(&self) -> &[u16] {
        &SIZES
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(u8::try_from(offset).unwrap_or(0xee));
    }
    fn notification(&self) -> Notification {
        Notification::Inline
    }
    fn activate(&mut self, active: ActiveDevice) -> Result<(), ActivateError> {
        if self.refuse {
            return Err(ActivateError::MissingQueue(1));
        }
        self.seen.lock().unwrap().activations.push(active);
        Ok(())
    }
    fn notify(&mut self, queue: u16) {
        self.seen.lock().unwrap().notified.push(queue);
    }
    fn reset(&mut self) {
        self.seen.lock().unwrap().resets += 1;
    }
}

struct Driver {
    transport: MmioTransport,
    seen: Arc<Mutex<Seen>>,
}

impl Driver {
    fn new() -> Self {
        Self::with(false)
    }

    fn with(refuse: bool) -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let device = FakeDevice {
            seen: Arc::clone(&seen),
            refuse,
        };
        let transport = MmioTransport::new(Box::new(device), Arc::new(memory)).unwrap();
        Self { transport, seen }
    }

    fn write(&mut self, register: u32, value: u32) {
        self.transport
            .write(u64::from(register), &value.to_le_bytes());
    }

    fn read(&self, register: u32) -> u32 {
        let mut data = [0; 4];
        self.transport.read(u64::from(register), &mut data);
        u32::from_le_bytes(data)
    }

    fn negotiate(&mut self, features: u64) {
        self.write(reg::VIRTIO_MMIO_STATUS, 1);
        self.write(reg::VIRTIO_MMIO_STATUS, 3);
        for index in 0..2 {
            self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, index);
            self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES, half(features, index));
        }
        self.write(reg::VIRTIO_MMIO_STATUS, 11);
    }

    fn set_up_queue(&mut self, index: u32, at: u32) {
        self.write(reg::VIRTIO_MMIO_QUEUE_SEL, index);
        self.write(reg::VIRTIO_MMIO_QUEUE_NUM, 16);
        self.write(reg::VIRTIO_MMIO_QUEUE_DESC_LOW, at);
        self.write(reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, at + 0x1000);
        self.write(reg::VIRTIO_MMIO_QUEUE_USED_LOW, at + 0x2000);
        self.write(reg::VIRTIO_MMIO_QUEUE_READY, 1);
    }

    fn start(&mut self) {
        self.negotiate(1 << VIRTIO_F_VERSION_1);
        self.set_up_queue(0, 0x4000);
        self.set_up_queue(1, 0x8000);
        self.write(reg::VIRTIO_MMIO_STATUS, 15);
    }
}

#[test]
fn an_orderly_driver_reaches_an_active_device() {
    let mut driver = Driver::new();
    assert_eq!(driver.read(reg::VIRTIO_MMIO_MAGIC_VALUE), 0x7472_6976);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_VERSION), 2);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_DEVICE_ID), 42);
    driver.start();
    assert_eq!(driver.read(reg::VIRTIO_MMIO_STATUS), 15);

    let seen = driver.seen.lock().unwrap();
    let [active] = &seen.activations[..] else {
        panic!("activated once")
    };
    let rings = active.queues[1].as_ref().unwrap().rings();
    assert_eq!((rings.size(), rings.desc_table()), (16, 0x8000));
}

#[test]
fn features_that_were_not_offered_are_not_accepted() {
    for features in [1 << VIRTIO_F_VERSION_1 | 0b10, 0b1] {
        let mut driver = Driver::new();
        driver.negotiate(features);
        assert_eq!(driver.read(reg::VIRTIO_MMIO_STATUS), 3);
    }
}

#[test]
fn steps_cannot_be_skipped() {
    let mut driver = Driver::new();
    for status in [2, 4, 8, 15, 7] {
        driver.write(reg::VIRTIO_MMIO_STATUS, status);
        assert_eq!(driver.read(reg::VIRTIO_MMIO_STATUS), 0, "after {status}");
    }
}

#[test]
fn a_queue_outside_of_memory_needs_a_reset_and_starts_nothing() {
    let mut driver = Driver::new();
    driver.negotiate(1 << VIRTIO_F_VERSION_1);
    driver.set_up_queue(0, 0xffff_0000);
    driver.write(reg::VIRTIO_MMIO_STATUS, 15);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_STATUS), 15 | 64);
    assert!(driver.seen.lock().unwrap().activations.is_empty());
    driver.write(reg::VIRTIO_MMIO_STATUS, 0);
    driver.start();
    assert_eq!(driver.read(reg::VIRTIO_MMIO_STATUS), 15);
}

#[test]
fn a_device_that_cannot_start_needs_a_reset() {
    let mut driver = Driver::with(true);
    driver.start();
    assert_eq!(driver.read(reg::VIRTIO_MMIO_STATUS), 15 | 64);
    assert_eq!(
        driver.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS),
        interrupt::CONFIGURATION
    );
    driver.write(reg::VIRTIO_MMIO_INTERRUPT_ACK, interrupt::CONFIGURATION);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

#[test]
fn a_queue_selected_out_of_range_is_not_there() {
    let mut driver = Driver::new();
    driver.negotiate(1 << VIRTIO_F_VERSION_1);
    for select in [2, 0xffff, u32::MAX] {
        driver.set_up_queue(select, 0x4000);
        assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
        assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_READY), 0);
    }
}

#[test]
fn notifications_reach_the_active_device_only_and_only_for_its_queues() {
    let mut driver = Driver::new();
    driver.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    driver.start();
    for queue in [1, 2, u32::MAX, 0] {
        driver.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, queue);
    }
    assert_eq!(driver.seen.lock().unwrap().notified, [1, 0]);
}

#[test]
fn accesses_of_odd_width_change_nothing() {
    let mut driver = Driver::new();
    for data in [&[1][..], &[1, 0], &[1, 0, 0, 0, 0, 0, 0, 0], &[]] {
        driver
            .transport
            .write(u64::from(reg::VIRTIO_MMIO_STATUS), data);
    }
    assert_eq!(driver.read(reg::VIRTIO_MMIO_STATUS), 0);
    let mut wide = [0; 8];
    driver
        .transport
        .read(u64::from(reg::VIRTIO_MMIO_MAGIC_VALUE), &mut wide);
    assert_eq!(wide, [0; 8]);
}

/// xorshift64: repeatable, and random enough to wander through the registers.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.next() % from.len() as u64).unwrap()]
    }
}

#[test]
fn random_register_writes_never_change_the_queues_of_an_active_device() {
    let registers: Vec<u32> = (0..0x100).step_by(4).collect();
    let values = [0, 1, 3, 11, 15, 16, 64, 0x4000, 0x8000, u32::MAX];
    for seed in 1..200 {
        let mut random = Random(seed);
        let mut driver = Driver::new();
        if seed % 2 == 0 {
            driver.start();
        }
        for _ in 0..500 {
            let before = snapshot(&driver.transport);
            let was_active = driver.transport.is_active();
            let register = random.pick(&registers);
            driver.write(register, random.pick(&values));
            let is_reset = register == reg::VIRTIO_MMIO_STATUS && !driver.transport.is_active();
            if was_active && !is_reset {
                assert_eq!(
                    snapshot(&driver.transport),
                    before,
                    "seed {seed}, {register:#x}"
                );
            }
        }
        let seen = driver.seen.lock().unwrap();
        let running = usize::from(driver.transport.is_active());
        assert!(seen.activations.len() <= seen.resets + running);
    }
}

fn snapshot(transport: &MmioTransport) -> Vec<(u16, bool, u64, u64, u64)> {
    let queue = |queue: &Queue| {
        (
            queue.size(),
            queue.ready(),
            queue.desc_table(),
            queue.avail_ring(),
            queue.used_ring(),
        )
    };
    transport.queues.iter().map(queue).collect()
}
