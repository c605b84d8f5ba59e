//! The receive queue: frames from the tap to the guest.
//!
//! A frame is read right into the buffers that the guest has made available.
//! Its length is known only afterwards: one that is longer than all of them
//! ends in a buffer of the monitor's own and waits there until the guest has
//! given enough.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use virtio_queue::QueueT;
use vm_memory::VolatileSlice;

use super::transfer::{MAX_PARTS, read_frame};
use super::{HEADER_LEN, MAX_MESSAGE};
use crate::virtio::GuestMemory;
use crate::virtio::queue::{Chain, QueueError, VirtQueue};

/// Most frames moved before the other direction has its turn.
const BUDGET: usize = 256;
/// Where the header says how many chains a frame has taken.
const NUM_BUFFERS: usize = 10;

/// Why the receiver stopped.
#[derive(Debug)]
pub(super) enum Received {
    /// No frame waits.
    All,
    /// The guest has given no buffer for the next frame; it kicks when it does.
    Starved,
    /// Others have their turn.
    Budget,
    /// The tap is gone.
    Gone(io::Error),
}

/// The receive queue of an active device.
pub(super) struct Receiver<'m> {
    memory: &'m GuestMemory,
    queue: VirtQueue,
    /// Whether a frame may take several chains.
    mergeable: bool,
    /// Chains that were popped for the frames to come, and their length in bytes.
    ready: VecDeque<Chain<'m>>,
    ready_len: usize,
    /// A frame that the chains in `ready` have no room for.
    held: Option<Vec<u8>>,
    spill: Box<[u8]>,
}

impl<'m> Receiver<'m> {
    pub(super) fn new(memory: &'m GuestMemory, queue: VirtQueue, mergeable: bool) -> Self {
        Self {
            memory,
            queue,
            mergeable,
            ready: VecDeque::new(),
            ready_len: 0,
            held: None,
            spill: vec![0; MAX_MESSAGE].into_boxed_slice(),
        }
    }

    pub(super) fn queue(&self) -> &VirtQueue {
        &self.queue
    }

    /// Receives what waits.
    ///
    /// # Errors
    /// [`QueueError`] for a driver that breaks the rules.
    pub(super) fn receive(&mut self, tap: BorrowedFd<'_>) -> Result<Received, QueueError> {
        let received = self.receive_frames(tap)?;
        self.queue.signal(self.memory)?;
        Ok(received)
    }

    fn receive_frames(&mut self, tap: BorrowedFd<'_>) -> Result<Received, QueueError> {
        for _ in 0..BUDGET {
            if !self.refill()? {
                return Ok(Received::Starved);
            }
            if let Some(frame) = self.held.take() {
                self.deliver_copy(&frame)?;
                continue;
            }
            let parts = self.parts()?;
            let room: usize = parts.iter().map(VolatileSlice::len).sum();
            match read_frame(tap, &parts, &mut self.spill) {
                Ok(len) if len < usize::from(HEADER_LEN) => {}
                Ok(len) if len <= room => self.deliver(len)?,
                Ok(len) if self.mergeable => self.hold(&parts, len),
                // The driver has asked for no frame of that length.
                Ok(_) => {}
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(Received::All),
                    io::ErrorKind::Interrupted => {}
                    _ => return Ok(Received::Gone(error)),
                },
            }
        }
        Ok(Received::Budget)
    }

    /// Pops chains until the next frame fits. `false` when there are none left
    /// to read it into, in which case the driver kicks.
    fn refill(&mut self) -> Result<bool, QueueError> {
        while !self.is_enough() {
            if let Some(chain) = self.queue.pop(self.memory)? {
                self.make_ready(chain)?;
            } else if self.held.is_none() && !self.ready.is_empty() {
                return Ok(true);
            } else if self.ready.len() >= usize::from(self.queue.rings().size()) {
                // The driver has given all that it can, so the frame will never fit.
                self.held = None;
            } else if !self.queue.enable_kicks(self.memory)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn is_enough(&self) -> bool {
        match &self.held {
            Some(frame) => self.ready_len >= frame.len(),
            None if self.mergeable => self.ready_len >= MAX_MESSAGE,
            None => !self.ready.is_empty(),
        }
    }

    fn make_ready(&mut self, chain: Chain<'m>) -> Result<(), QueueError> {
        // Otherwise tiny buffers, offered again and again, would be kept without end.
        if self.ready.len() >= usize::from(self.queue.rings().size()) {
            return Err(QueueError::Malformed(
                "a receive buffer is available that was not given back",
            ));
        }
        if !chain.readable().is_empty() {
            return Err(QueueError::Malformed("a receive buffer is readable"));
        }
        if chain.writable_len() < u64::from(HEADER_LEN) {
            return Err(QueueError::Malformed(
                "a receive buffer has no room for the header",
            ));
        }
        self.ready_len += writable_len(&chain);
        self.ready.push_back(chain);
        Ok(())
    }

    /// Guest memory that the next frame is read into.
    fn parts(&self) -> Result<Vec<VolatileSlice<'m>>, QueueError> {
        let mut parts = Vec::new();
        let mut len = 0;
        for chain in &self.ready {
            parts.extend(chain.writable_slices()?);
            len += writable_len(chain);
            if len >= MAX_MESSAGE || !self.mergeable {
                break;
            }
        }
        parts.truncate(MAX_PARTS - 1);
        Ok(parts)
    }

    /// Keeps a frame of which `parts` hold the start and the spill the rest.
    fn hold(&mut self, parts: &[VolatileSlice<'_>], len: usize) {
        let mut frame = vec![0; len.min(MAX_MESSAGE)];
        let mut done = 0;
        for part in parts {
            done += part.copy_to(&mut frame[done..]);
        }
        let rest = frame.len() - done;
        frame[done..].copy_from_slice(&self.spill[..rest]);
        self.held = Some(frame);
    }

    fn deliver_copy(&mut self, frame: &[u8]) -> Result<(), QueueError> {
        let mut rest = frame;
        for part in self.parts()? {
            let len = part.len().min(rest.len());
            part.copy_from(&rest[..len]);
            rest = &rest[len..];
        }
        if rest.is_empty() {
            self.deliver(frame.len())
        } else {
            Ok(())
        }
    }

    /// Gives the chains back that a frame of `len` bytes is in.
    fn deliver(&mut self, len: usize) -> Result<(), QueueError> {
        let mut used = Vec::new();
        let mut rest = len;
        let mut first = None;
        while rest > 0 || first.is_none() {
            let Some(chain) = self.ready.pop_front() else {
                break;
            };
            let room = writable_len(&chain);
            self.ready_len -= room;
            let part = rest.min(room);
            rest -= part;
            // Both are at most MAX_MESSAGE.
            used.push((chain.head(), u32::try_from(part).unwrap_or(u32::MAX)));
            first.get_or_insert(chain);
        }
        if let Some(first) = first {
            let count = u16::try_from(used.len()).unwrap_or(u16::MAX);
            write_at(&first, NUM_BUFFERS, &count.to_le_bytes())?;
        }
        self.queue.push_all(self.memory, &used)
    }
}

fn writable_len(chain: &Chain<'_>) -> usize {
    usize::try_from(chain.writable_len()).unwrap_or(usize::MAX)
}

/// Writes `bytes` at `offset` of the writable buffers.
fn write_at(chain: &Chain<'_>, mut offset: usize, mut bytes: &[u8]) -> Result<(), QueueError> {
    for slice in chain.writable_slices()? {
        if offset >= slice.len() {
            offset -= slice.len();
            continue;
        }
        let Ok(slice) = slice.offset(offset) else {
            break;
        };
        offset = 0;
        let len = slice.len().min(bytes.len());
        slice.copy_from(&bytes[..len]);
        bytes = &bytes[len..];
        if bytes.is_empty() {
            break;
        }
    }
    Ok(())
}
