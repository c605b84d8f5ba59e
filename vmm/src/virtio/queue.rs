//! A checked view of a split virtqueue.
//!
//! [`VirtQueue::pop`] copies a chain's descriptors once and checks them all: a
//! [`Chain`] ends properly, is no longer than the queue (section 2.7.5.3.1 of virtio
//! 1.2), has its readable buffers before the writable ones (section 2.7.4.2) and lies in
//! guest memory as a whole. Buffers of no bytes are left out. What the driver writes to the table afterwards changes
//! nothing. Any breach is a [`QueueError`], upon which a device gives up with
//! [`Interrupt::fail_device`].

use std::sync::Arc;

use thiserror::Error;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory as _, VolatileSlice};
use vmm_sys_util::eventfd::EventFd;

use super::GuestMemory;
use super::interrupt::Interrupt;

/// Sizes in bytes of what the used ring consists of (virtio 1.2, section 2.7.8).
const USED_HEADER: u64 = 4;
const USED_ELEMENT: u64 = 8;

/// How a driver broke the rules of a virtqueue.
#[derive(Debug, Error)]
pub enum QueueError {
    /// The available or used ring is out of bounds or inconsistent.
    #[error("virtqueue: {0}")]
    Ring(#[from] virtio_queue::Error),
    /// A chain is empty, loops, or has a descriptor out of bounds.
    #[error("virtqueue: the descriptor chain at {0} is broken")]
    BrokenChain(u16),
    /// A chain has more descriptors than the queue: an indirect table can hold 65,535.
    #[error("virtqueue: the descriptor chain at {head} is longer than the queue, {limit}")]
    TooLong {
        /// Index of its first descriptor.
        head: u16,
        /// Most descriptors of a chain.
        limit: u16,
    },
    /// A buffer is not within guest memory.
    #[error("virtqueue: a buffer of {len} bytes at {address:#x} is outside of guest memory")]
    OutOfMemory {
        /// Guest physical address.
        address: u64,
        /// Length in bytes.
        len: u32,
    },
    /// A chain does not have the buffers that the device's requests consist of.
    #[error("virtqueue: {0}")]
    Malformed(&'static str),
}

/// One buffer of a chain, known to lie in guest memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Buffer {
    /// Guest physical address.
    pub address: GuestAddress,
    /// Length in bytes.
    pub len: u32,
}

/// A descriptor chain, copied and checked.
#[derive(Clone, Debug)]
pub struct Chain<'m> {
    memory: &'m GuestMemory,
    raw: DescriptorChain<&'m GuestMemory>,
    readable: Vec<Buffer>,
    writable: Vec<Buffer>,
}

impl<'m> Chain<'m> {
    fn check(
        memory: &'m GuestMemory,
        raw: DescriptorChain<&'m GuestMemory>,
        limit: u16,
    ) -> Result<Self, QueueError> {
        let head = raw.head_index();
        let mut chain = Self {
            memory,
            raw,
            readable: Vec::new(),
            writable: Vec::new(),
        };
        let mut ended = false;
        let mut writes = false;
        for (index, descriptor) in chain.raw.clone().enumerate() {
            if index >= usize::from(limit) {
                return Err(QueueError::TooLong { head, limit });
            }
            let buffer = Buffer {
                address: descriptor.addr(),
                len: descriptor.len(),
            };
            if !memory.check_range(buffer.address, buffer.len as usize) {
                return Err(QueueError::OutOfMemory {
                    address: buffer.address.0,
                    len: buffer.len,
                });
            }
            if writes && !descriptor.is_write_only() {
                return Err(QueueError::Malformed(
                    "a readable buffer follows a writable one",
                ));
            }
            writes = descriptor.is_write_only();
            let buffers = match writes {
                true => &mut chain.writable,
                false => &mut chain.readable,
            };
            if buffer.len > 0 {
                buffers.push(buffer);
            }
            ended = !descriptor.has_next();
        }
        // The iterator stops without a word at what it cannot follow.
        if ended {
            Ok(chain)
        } else {
            Err(QueueError::BrokenChain(head))
        }
    }

    /// Index of the head descriptor, which names the chain in the used ring.
    #[must_use]
    pub fn head(&self) -> u16 {
        self.raw.head_index()
    }

    /// The chain as `virtio-queue` knows it, for libraries that take one. It
    /// reads the descriptors again, so the library must check them itself.
    #[must_use]
    pub fn raw(&self) -> DescriptorChain<&'m GuestMemory> {
        self.raw.clone()
    }

    /// Buffers that the device reads.
    #[must_use]
    pub fn readable(&self) -> &[Buffer] {
        &self.readable
    }

    /// Buffers that the device writes.
    #[must_use]
    pub fn writable(&self) -> &[Buffer] {
        &self.writable
    }

    /// Bytes that the device can read.
    #[must_use]
    pub fn readable_len(&self) -> u64 {
        total_len(&self.readable)
    }

    /// Bytes that the device can write.
    #[must_use]
    pub fn writable_len(&self) -> u64 {
        total_len(&self.writable)
    }

    /// Guest memory behind the readable buffers.
    ///
    /// # Errors
    /// [`QueueError::OutOfMemory`], which [`VirtQueue::pop`] has ruled out.
    pub fn readable_slices(&self) -> Result<Vec<VolatileSlice<'m>>, QueueError> {
        self.slices(&self.readable)
    }

    /// Guest memory behind the writable buffers.
    ///
    /// # Errors
    /// [`QueueError::OutOfMemory`], which [`VirtQueue::pop`] has ruled out.
    pub fn writable_slices(&self) -> Result<Vec<VolatileSlice<'m>>, QueueError> {
        self.slices(&self.writable)
    }

    /// Copies up to `into.len()` bytes from the start of the readable buffers;
    /// returns how many there were.
    ///
    /// # Errors
    /// [`QueueError::OutOfMemory`], which [`VirtQueue::pop`] has ruled out.
    pub fn read(&self, into: &mut [u8]) -> Result<usize, QueueError> {
        let mut done = 0;
        for slice in self.readable_slices()? {
            done += slice.copy_to(&mut into[done..]);
        }
        Ok(done)
    }

    /// Copies `bytes` to the start of the writable buffers, as far as they
    /// reach; returns how many were written.
    ///
    /// # Errors
    /// [`QueueError::OutOfMemory`], which [`VirtQueue::pop`] has ruled out.
    pub fn write(&self, bytes: &[u8]) -> Result<usize, QueueError> {
        let mut done = 0;
        for slice in self.writable_slices()? {
            let part = (bytes.len() - done).min(slice.len());
            slice.copy_from(&bytes[done..done + part]);
            done += part;
        }
        Ok(done)
    }

    fn slices(&self, buffers: &[Buffer]) -> Result<Vec<VolatileSlice<'m>>, QueueError> {
        let slice = |buffer: &Buffer| {
            self.memory
                .get_slice(buffer.address, buffer.len as usize)
                .map_err(|_| QueueError::OutOfMemory {
                    address: buffer.address.0,
                    len: buffer.len,
                })
        };
        buffers.iter().map(slice).collect()
    }
}

fn total_len(buffers: &[Buffer]) -> u64 {
    buffers.iter().map(|buffer| u64::from(buffer.len)).sum()
}

/// A queue of an active device: the rings, the eventfd that announces available
/// buffers, and the interrupt that announces used ones.
#[derive(Debug)]
pub struct VirtQueue {
    queue: Queue,
    kick: EventFd,
    interrupt: Arc<Interrupt>,
    /// Whether anything was pushed since the last signal.
    pushed: bool,
    /// Whether the next signal is due in any case.
    must_signal: bool,
}

impl VirtQueue {
    /// The queue that the driver has set up; `queue` must have been validated.
    #[must_use]
    pub fn new(queue: Queue, kick: EventFd, interrupt: Arc<Interrupt>) -> Self {
        Self {
            queue,
            kick,
            interrupt,
            pushed: false,
            must_signal: false,
        }
    }

    /// Becomes readable when the driver has made buffers available.
    #[must_use]
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// The rings' addresses, for a data path in the kernel (vhost).
    #[must_use]
    pub fn rings(&self) -> &Queue {
        &self.queue
    }

    /// Takes the next available chain, if there is one.
    ///
    /// # Errors
    /// [`QueueError`] for anything that breaks the specification.
    pub fn pop<'m>(&mut self, memory: &'m GuestMemory) -> Result<Option<Chain<'m>>, QueueError> {
        let limit = self.queue.max_size();
        match self.queue.iter(memory)?.next() {
            Some(raw) => Chain::check(memory, raw, limit).map(Some),
            None => Ok(None),
        }
    }

    /// Puts the chain taken last back, as if it had not been popped.
    pub fn undo_pop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Gives a chain back with `written` bytes in its writable buffers. The
    /// driver hears of it with the next [`signal`](Self::signal).
    ///
    /// # Errors
    /// [`QueueError::Ring`] when `head` or the used ring is out of bounds.
    pub fn push(
        &mut self,
        memory: &GuestMemory,
        head: u16,
        written: u32,
    ) -> Result<(), QueueError> {
        self.pushed = true;
        Ok(self.queue.add_used(memory, head, written)?)
    }

    /// Gives back chains that hold one message together (head and bytes
    /// written, each), so that the driver sees either none of them or all.
    ///
    /// # Errors
    /// [`QueueError::Ring`] when a head or the used ring is out of bounds.
    pub fn push_all(
        &mut self,
        memory: &GuestMemory,
        used: &[(u16, u32)],
    ) -> Result<(), QueueError> {
        let Some(((last, last_len), others)) = used.split_last() else {
            return Ok(());
        };
        let mut next = self.queue.next_used();
        for (head, len) in others {
            if *head >= self.queue.size() {
                return Err(virtio_queue::Error::InvalidDescriptorIndex.into());
            }
            let slot = u64::from(next % self.queue.size());
            let element = GuestAddress(self.queue.used_ring() + USED_HEADER + USED_ELEMENT * slot);
            let value = u64::from(*head) | u64::from(*len) << 32;
            memory
                .write_obj(value.to_le(), element)
                .map_err(virtio_queue::Error::GuestMemory)?;
            next = next.wrapping_add(1);
        }
        // The last push moves the index past them all. It does not count the
        // others when it comes to whether an interrupt is due, so one is.
        self.queue.set_next_used(next);
        self.must_signal |= !others.is_empty();
        self.push(memory, *last, *last_len)
    }

    /// Interrupts the driver if something was pushed and it wants to hear of it.
    ///
    /// # Errors
    /// [`QueueError::Ring`] when the rings are out of bounds.
    pub fn signal(&mut self, memory: &GuestMemory) -> Result<(), QueueError> {
        if !std::mem::take(&mut self.pushed) {
            return Ok(());
        }
        let must = std::mem::take(&mut self.must_signal);
        if self.queue.needs_notification(memory)? || must {
            self.interrupt.signal_used();
        }
        Ok(())
    }

    /// Asks the driver to kick for new buffers. Answers `true` when some came
    /// in the meantime, in which case no kick may follow.
    ///
    /// # Errors
    /// [`QueueError::Ring`] when the rings are out of bounds.
    pub fn enable_kicks(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        Ok(self.queue.enable_notification(memory)?)
    }

    /// Asks the driver not to kick while the device looks at the queue anyway.
    ///
    /// # Errors
    /// [`QueueError::Ring`] when the rings are out of bounds.
    pub fn disable_kicks(&mut self, memory: &GuestMemory) -> Result<(), QueueError> {
        Ok(self.queue.disable_notification(memory)?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Desc, GuestQueue};
    use super::*;

    #[test]
    fn a_chain_is_split_into_what_is_read_and_what_is_written() {
        let mut guest = GuestQueue::new(8);
        let read = guest.buffer(b"request");
        let write = guest.room(16);
        guest.offer(&[Desc::readable(read), Desc::writable(write)]);

        let mut queue = guest.device_side();
        let chain = queue.pop(guest.memory()).unwrap().unwrap();
        let mut request = [0; 32];
        assert_eq!(chain.read(&mut request).unwrap(), 7);
        assert_eq!(&request[..7], b"request");
        assert_eq!(chain.write(b"reply").unwrap(), 5);
        queue.push(guest.memory(), chain.head(), 5).unwrap();
        assert_eq!(guest.used(), vec![(0, 5)]);
        assert_eq!(guest.read(write, 5), b"reply");
    }

    #[test]
    fn chains_pushed_together_are_used_together_and_signalled() {
        let mut guest = GuestQueue::new(4);
        for round in 0..3 {
            guest.restart();
            let mut queue = guest.device_side();
            let rooms: Vec<_> = (0..3).map(|_| guest.room(16)).collect();
            let heads: Vec<_> = rooms
                .iter()
                .map(|room| guest.offer(&[Desc::writable(*room)]))
                .collect();
            queue
                .push_all(
                    guest.memory(),
                    &[(heads[0], 16), (heads[1], 16), (heads[2], 7)],
                )
                .unwrap();
            let used = guest.used();
            assert_eq!(
                used,
                vec![(heads[0], 16), (heads[1], 16), (heads[2], 7)],
                "{round}"
            );
            queue.signal(guest.memory()).unwrap();
            queue.signal(guest.memory()).unwrap();
            assert_eq!(guest.interrupt().irqfd().read().unwrap(), 1);
        }
        let error = guest
            .device_side()
            .push_all(guest.memory(), &[(9, 0), (0, 0)]);
        assert!(matches!(
            error,
            Err(QueueError::Ring(
                virtio_queue::Error::InvalidDescriptorIndex
            ))
        ));
    }

    #[test]
    fn an_empty_queue_yields_nothing() {
        let guest = GuestQueue::new(8);
        assert!(guest.device_side().pop(guest.memory()).unwrap().is_none());
    }

    #[test]
    fn chains_that_break_the_rules_are_errors() {
        let outside = Buffer {
            address: GuestAddress(u64::MAX - 4096),
            len: 8,
        };
        let looping = |mut desc: Desc| {
            desc.next = Some(0);
            desc
        };
        let mut guest = GuestQueue::new(8);
        let buffer = guest.buffer(b"x");
        let cases: [(&str, Vec<Desc>); 4] = [
            ("outside of guest memory", vec![Desc::readable(outside)]),
            ("is broken", vec![looping(Desc::readable(buffer))]),
            (
                "is broken",
                vec![Desc {
                    next: Some(99),
                    ..Desc::readable(buffer)
                }],
            ),
            (
                "follows a writable",
                vec![Desc::writable(buffer), Desc::readable(buffer)],
            ),
        ];
        for (expected, descs) in cases {
            guest.restart();
            guest.offer(&descs);
            let error = guest
                .device_side()
                .pop(guest.memory())
                .unwrap_err()
                .to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_chain_is_no_longer_than_its_queue_wherever_its_descriptors_are() {
        let mut guest = GuestQueue::new(8);
        let buffer = guest.buffer(b"x");
        guest.offer_indirect(&[Desc::readable(buffer); 8]);
        let mut queue = guest.device_side();
        let chain = queue.pop(guest.memory()).unwrap().unwrap();
        assert_eq!(chain.readable(), [buffer; 8]);
        guest.offer_indirect(&[Desc::readable(buffer); 9]);
        let error = queue.pop(guest.memory()).unwrap_err();
        assert!(matches!(error, QueueError::TooLong { head: 1, limit: 8 }));
    }

    #[test]
    fn buffers_of_no_bytes_take_no_room_but_keep_their_order() {
        let mut guest = GuestQueue::new(8);
        let (buffer, nothing) = (guest.buffer(b"x"), guest.room(0));
        let (read, write) = (Desc::readable, Desc::writable);
        guest.offer(&[read(nothing), read(buffer), write(nothing)]);
        let mut queue = guest.device_side();
        let chain = queue.pop(guest.memory()).unwrap().unwrap();
        assert_eq!(
            (chain.readable(), chain.writable()),
            (&[buffer][..], &[][..])
        );
        guest.offer(&[write(nothing), read(buffer)]);
        queue.pop(guest.memory()).unwrap_err();
    }

    #[test]
    fn an_available_index_that_runs_ahead_is_an_error() {
        let mut guest = GuestQueue::new(8);
        guest.set_available_index(100);
        let error = guest.device_side().pop(guest.memory()).unwrap_err();
        assert!(matches!(
            error,
            QueueError::Ring(virtio_queue::Error::InvalidAvailRingIndex)
        ));
    }

    #[test]
    fn descriptors_changed_after_the_pop_change_nothing() {
        let mut guest = GuestQueue::new(8);
        let buffer = guest.buffer(b"first");
        let other = guest.buffer(b"other");
        guest.offer(&[Desc::readable(buffer)]);
        let mut queue = guest.device_side();
        let chain = queue.pop(guest.memory()).unwrap().unwrap();
        guest.rewrite(0, &Desc::readable(other));
        let mut bytes = [0; 5];
        chain.read(&mut bytes).unwrap();
        assert_eq!(&bytes, b"first");
    }
}
