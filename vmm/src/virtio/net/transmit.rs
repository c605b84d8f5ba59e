//! The transmit queue: frames from the guest to the tap.

use std::io;
use std::os::fd::BorrowedFd;

use super::transfer::{MAX_PARTS, write_frame};
use super::{HEADER_LEN, MAX_MESSAGE};
use crate::virtio::GuestMemory;
use crate::virtio::queue::{Chain, QueueError, VirtQueue};

/// Most frames moved before the other direction has its turn.
const BUDGET: usize = 256;

/// Why the transmitter stopped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Sent {
    /// The guest has nothing more to send, and kicks when it has.
    All,
    /// The tap takes no more for now.
    Blocked,
    /// Others have their turn.
    Budget,
}

/// The transmit queue of an active device.
pub(super) struct Transmitter<'m> {
    memory: &'m GuestMemory,
    queue: VirtQueue,
}

impl<'m> Transmitter<'m> {
    pub(super) fn new(memory: &'m GuestMemory, queue: VirtQueue) -> Self {
        Self { memory, queue }
    }

    pub(super) fn queue(&self) -> &VirtQueue {
        &self.queue
    }

    /// Sends what waits.
    ///
    /// # Errors
    /// [`QueueError`] for a driver that breaks the rules.
    pub(super) fn send(&mut self, tap: BorrowedFd<'_>) -> Result<Sent, QueueError> {
        let sent = self.send_frames(tap)?;
        self.queue.signal(self.memory)?;
        Ok(sent)
    }

    fn send_frames(&mut self, tap: BorrowedFd<'_>) -> Result<Sent, QueueError> {
        self.queue.disable_kicks(self.memory)?;
        for _ in 0..BUDGET {
            let Some(chain) = self.queue.pop(self.memory)? else {
                if self.queue.enable_kicks(self.memory)? {
                    continue;
                }
                return Ok(Sent::All);
            };
            if send_frame(tap, &chain)?.is_blocked() {
                self.queue.undo_pop();
                return Ok(Sent::Blocked);
            }
            self.queue.push(self.memory, chain.head(), 0)?;
        }
        Ok(Sent::Budget)
    }
}

enum Fate {
    Done,
    Blocked,
}

impl Fate {
    fn is_blocked(&self) -> bool {
        matches!(self, Self::Blocked)
    }
}

fn send_frame(tap: BorrowedFd<'_>, chain: &Chain<'_>) -> Result<Fate, QueueError> {
    if !chain.writable().is_empty() {
        return Err(QueueError::Malformed(
            "a frame to be sent has a writable buffer",
        ));
    }
    if chain.readable_len() < u64::from(HEADER_LEN) {
        return Err(QueueError::Malformed(
            "a frame to be sent is without a header",
        ));
    }
    let parts = chain.readable_slices()?;
    if chain.readable_len() > MAX_MESSAGE as u64 || parts.len() > MAX_PARTS {
        return Ok(Fate::Done);
    }
    // A frame that the tap refuses (no Ethernet header, offloads that do not
    // fit it, an interface that is down) is lost as it would be on a wire.
    match write_frame(tap, &parts) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Fate::Blocked),
        _ => Ok(Fate::Done),
    }
}
