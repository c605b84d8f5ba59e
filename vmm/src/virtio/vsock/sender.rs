//! Puts packets into the chains of the RX queue.

use super::super::GuestMemory;
use super::super::queue::{QueueError, VirtQueue};
use super::connection::{Connection, Next};
use super::guest_bytes;
use super::packet::{Header, Op, RxBuffer};

/// What became of a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Sent {
    /// It is in the queue, or it turned out that there was none.
    Done,
    /// The queue has no chain for it.
    Starved,
}

/// Sends a packet without payload; `false` when the queue has no chain for it.
///
/// # Errors
/// [`QueueError`] when the driver broke the rules.
pub(super) fn send_control(
    header: &Header,
    rx: &mut VirtQueue,
    memory: &GuestMemory,
) -> Result<bool, QueueError> {
    let Some(buffer) = pop(rx, memory)? else {
        return Ok(false);
    };
    rx.push(memory, buffer.head, buffer.finish(header))?;
    Ok(true)
}

/// Sends what the connection has to say next: one packet, or as many as the
/// payload from one read of its socket makes.
///
/// # Errors
/// [`QueueError`] when the driver broke the rules.
pub(super) fn send_next(
    connection: &mut Connection,
    rx: &mut VirtQueue,
    memory: &GuestMemory,
) -> Result<Sent, QueueError> {
    match connection.next() {
        Next::Nothing => Ok(Sent::Done),
        Next::Data => send_data(connection, rx, memory),
        Next::Control(op, flags) => {
            let Some(buffer) = pop(rx, memory)? else {
                return Ok(Sent::Starved);
            };
            let header = connection.header(op, flags, 0);
            rx.push(memory, buffer.head, buffer.finish(&header))?;
            Ok(Sent::Done)
        }
    }
}

fn send_data(
    connection: &mut Connection,
    rx: &mut VirtQueue,
    memory: &GuestMemory,
) -> Result<Sent, QueueError> {
    let mut buffers: Vec<RxBuffer<'_>> = Vec::with_capacity(connection.burst());
    let mut room = Vec::new();
    let mut left = connection.guest_room();
    while buffers.len() < connection.burst() && left > 0 {
        let Some(buffer) = pop(rx, memory)? else {
            break;
        };
        if buffer.room.is_empty() {
            if buffers.is_empty() {
                // It can take a header only, so it gets one that does no harm.
                let header = connection.header(Op::CreditUpdate, 0, 0);
                rx.push(memory, buffer.head, buffer.finish(&header))?;
                return Ok(Sent::Done);
            }
            rx.undo_pop();
            break;
        }
        let part = guest_bytes::part(&buffer.room, 0, left);
        left -= guest_bytes::len(&part);
        room.extend(part);
        buffers.push(buffer);
    }
    if buffers.is_empty() {
        return Ok(Sent::Starved);
    }
    let mut received = connection.receive(&room);
    for buffer in &buffers {
        if received == 0 {
            rx.undo_pop();
            continue;
        }
        let count = received.min(guest_bytes::len(&buffer.room));
        received -= count;
        // A packet has at most 64 KiB of payload.
        let header = connection.header(Op::Data, 0, u32::try_from(count).unwrap_or(0));
        rx.push(memory, buffer.head, buffer.finish(&header))?;
    }
    Ok(Sent::Done)
}

fn pop<'m>(
    rx: &mut VirtQueue,
    memory: &'m GuestMemory,
) -> Result<Option<RxBuffer<'m>>, QueueError> {
    match rx.pop(memory)? {
        Some(chain) => RxBuffer::parse(&chain).map(Some),
        None => Ok(None),
    }
}
