//! The driver's side of a virtqueue, for device tests without a guest.

use std::sync::Arc;

use virtio_bindings::bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::GuestMemory;
use super::interrupt::Interrupt;
use super::queue::{Buffer, VirtQueue};

const MEMORY_SIZE: usize = 16 << 20;
const DESC_TABLE: u64 = 0x1000;
const AVAIL_RING: u64 = 0x10000;
const USED_RING: u64 = 0x20000;
const BUFFERS: u64 = 0x100000;
/// Distance between the rings of two queues in the same memory.
const QUEUE_STRIDE: u64 = 0x30000;

/// A descriptor to be offered.
#[derive(Clone, Copy, Debug)]
pub struct Desc {
    /// Where the buffer is.
    pub buffer: Buffer,
    /// Whether the device may write it.
    pub writable: bool,
    /// Overrides the link to the next descriptor.
    pub next: Option<u16>,
}

impl Desc {
    /// A buffer that the device reads.
    pub fn readable(buffer: Buffer) -> Self {
        Self {
            buffer,
            writable: false,
            next: None,
        }
    }

    /// A buffer that the device writes.
    pub fn writable(buffer: Buffer) -> Self {
        Self {
            buffer,
            writable: true,
            next: None,
        }
    }
}

/// A queue in a small guest memory, and what a driver does with it.
pub struct GuestQueue {
    memory: Arc<GuestMemory>,
    interrupt: Arc<Interrupt>,
    event_idx: bool,
    kick: EventFd,
    base: u64,
    size: u16,
    next_desc: u16,
    next_avail: u16,
    next_used: u16,
    next_buffer: u64,
}

impl GuestQueue {
    /// An empty queue of `size` entries in a memory of its own.
    pub fn new(size: u16) -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_SIZE)]).unwrap();
        let interrupt = Arc::new(Interrupt::new("test").unwrap());
        Self::in_memory(Arc::new(memory), interrupt, 0, size)
    }

    /// The queue number `index` (0 to 4) of a device whose queues share memory and interrupt.
    pub fn in_memory(
        memory: Arc<GuestMemory>,
        interrupt: Arc<Interrupt>,
        index: u64,
        size: u16,
    ) -> Self {
        let base = index * QUEUE_STRIDE;
        Self {
            memory,
            interrupt,
            event_idx: false,
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            base,
            size,
            next_desc: 0,
            next_avail: 0,
            next_used: 0,
            next_buffer: BUFFERS + index * (3 << 20),
        }
    }

    /// The same, of a driver that has negotiated `VIRTIO_F_EVENT_IDX`.
    pub fn with_event_idx(size: u16) -> Self {
        Self {
            event_idx: true,
            ..Self::new(size)
        }
    }

    /// With `VIRTIO_F_EVENT_IDX`: the available index at which the device wants a kick.
    pub fn kick_wanted_at(&self) -> u16 {
        let avail_event = USED_RING + 4 + 8 * u64::from(self.size);
        self.memory
            .read_obj(GuestAddress(self.base + avail_event))
            .unwrap()
    }

    /// Another queue (1 to 4) of the same device.
    pub fn sibling(&self, index: u64, size: u16) -> Self {
        Self::in_memory(
            Arc::clone(&self.memory),
            Arc::clone(&self.interrupt),
            index,
            size,
        )
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The guest's memory, to be held by a device.
    pub fn shared_memory(&self) -> Arc<GuestMemory> {
        Arc::clone(&self.memory)
    }

    /// The device's interrupt line.
    pub fn interrupt(&self) -> &Arc<Interrupt> {
        &self.interrupt
    }

    /// The queue as the transport hands it to a device.
    pub fn device_side(&self) -> VirtQueue {
        let mut queue = Queue::new(self.size).unwrap();
        let low_high = |address: u64| (Some(u32::try_from(address).unwrap()), Some(0));
        let (low, high) = low_high(self.base + DESC_TABLE);
        queue.set_desc_table_address(low, high);
        let (low, high) = low_high(self.base + AVAIL_RING);
        queue.set_avail_ring_address(low, high);
        let (low, high) = low_high(self.base + USED_RING);
        queue.set_used_ring_address(low, high);
        queue.set_event_idx(self.event_idx);
        queue.set_ready(true);
        assert!(queue.is_valid(&*self.memory));
        VirtQueue::new(
            queue,
            self.kick.try_clone().unwrap(),
            Arc::clone(&self.interrupt),
        )
    }

    /// Forgets everything that was offered and used, as after a device reset.
    pub fn restart(&mut self) {
        self.next_desc = 0;
        self.next_used = 0;
        self.set_available_index(0);
        self.memory
            .write_obj(0u16, GuestAddress(self.base + USED_RING + 2))
            .unwrap();
    }

    /// A buffer of guest memory with this content.
    pub fn buffer(&mut self, bytes: &[u8]) -> Buffer {
        let buffer = self.room(bytes.len());
        self.memory.write_slice(bytes, buffer.address).unwrap();
        buffer
    }

    /// An empty buffer of guest memory.
    pub fn room(&mut self, len: usize) -> Buffer {
        let buffer = Buffer {
            address: GuestAddress(self.next_buffer),
            len: u32::try_from(len).unwrap(),
        };
        self.next_buffer += (len as u64).next_multiple_of(16).max(16);
        buffer
    }

    /// Reads back what a device wrote.
    pub fn read(&self, buffer: Buffer, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, buffer.address).unwrap();
        bytes
    }

    /// Makes a chain available and kicks; returns its head.
    pub fn offer(&mut self, chain: &[Desc]) -> u16 {
        let head = self.next_desc;
        for (index, desc) in chain.iter().enumerate() {
            let linked = Desc {
                next: desc
                    .next
                    .or((index + 1 < chain.len()).then(|| (self.next_desc + 1) % self.size)),
                ..*desc
            };
            self.rewrite(self.next_desc, &linked);
            self.next_desc = (self.next_desc + 1) % self.size;
        }
        self.make_available(head);
        head
    }

    /// Makes a chain available whose descriptors are in a table of its own, and kicks;
    /// returns its head.
    pub fn offer_indirect(&mut self, chain: &[Desc]) -> u16 {
        let table = self.room(16 * chain.len());
        for (index, desc) in (0..).zip(chain) {
            let is_last = usize::from(index) + 1 == chain.len();
            let linked = Desc {
                next: desc.next.or((!is_last).then_some(index + 1)),
                ..*desc
            };
            let at = table.address.0 + 16 * u64::from(index);
            self.write_descriptor(at, &linked, 0);
        }
        let head = self.next_desc;
        let at = self.base + DESC_TABLE + 16 * u64::from(head);
        self.write_descriptor(at, &Desc::readable(table), VRING_DESC_F_INDIRECT);
        self.next_desc = (head + 1) % self.size;
        self.make_available(head);
        head
    }

    fn make_available(&mut self, head: u16) {
        let slot = self.base + AVAIL_RING + 4 + 2 * u64::from(self.next_avail % self.size);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.set_available_index(self.next_avail.wrapping_add(1));
        self.kick();
    }

    /// Notifies the device.
    pub fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// Overwrites one descriptor of the table.
    pub fn rewrite(&self, index: u16, desc: &Desc) {
        let at = self.base + DESC_TABLE + 16 * u64::from(index);
        self.write_descriptor(at, desc, 0);
    }

    fn write_descriptor(&self, at: u64, desc: &Desc, mut flags: u32) {
        if desc.writable {
            flags |= VRING_DESC_F_WRITE;
        }
        if desc.next.is_some() {
            flags |= VRING_DESC_F_NEXT;
        }
        self.memory
            .write_obj(desc.buffer.address.0, GuestAddress(at))
            .unwrap();
        self.memory
            .write_obj(desc.buffer.len, GuestAddress(at + 8))
            .unwrap();
        self.memory
            .write_obj(u16::try_from(flags).unwrap(), GuestAddress(at + 12))
            .unwrap();
        self.memory
            .write_obj(desc.next.unwrap_or(0), GuestAddress(at + 14))
            .unwrap();
    }

    /// Sets the index of the available ring, truthful or not.
    pub fn set_available_index(&mut self, index: u16) {
        self.next_avail = index;
        self.memory
            .write_obj(index, GuestAddress(self.base + AVAIL_RING + 2))
            .unwrap();
    }

    /// Chains that the device has given back since the last call: head and bytes written.
    pub fn used(&mut self) -> Vec<(u16, u32)> {
        let index: u16 = self
            .memory
            .read_obj(GuestAddress(self.base + USED_RING + 2))
            .unwrap();
        let mut used = Vec::new();
        while self.next_used != index {
            let slot = self.base + USED_RING + 4 + 8 * u64::from(self.next_used % self.size);
            let head: u32 = self.memory.read_obj(GuestAddress(slot)).unwrap();
            let len: u32 = self.memory.read_obj(GuestAddress(slot + 4)).unwrap();
            used.push((u16::try_from(head).unwrap(), len));
            self.next_used = self.next_used.wrapping_add(1);
        }
        used
    }
}

/// Numbers that look random and are the same in every run (xorshift64*).
pub struct Random(u64);

impl Random {
    /// The sequence of that seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "it never ends")]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// One of `choices`.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.below(choices.len() as u64)).unwrap()]
    }

    /// So many bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next().to_le_bytes()[7]).collect()
    }
}
