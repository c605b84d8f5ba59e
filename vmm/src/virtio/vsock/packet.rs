//! Packets as they lie in the queues: a header (virtio 1.2, section 5.10.6) and,
//! behind it, the payload.
//!
//! A header from the guest is copied once, by value; what the driver writes to
//! it afterwards changes nothing.

use vm_memory::VolatileSlice;

use super::super::queue::{Chain, QueueError};
use super::guest_bytes;

/// Length of a header in bytes.
pub(super) const HEADER_LEN: usize = HEADER_BYTES as usize;
/// The same as a used ring counts.
const HEADER_BYTES: u32 = 44;
/// Most payload of one packet in bytes, in either direction; Linux's limit, too.
pub(super) const MAX_PAYLOAD: usize = 64 * 1024;
/// Context identifier of the host.
pub(super) const HOST_CID: u64 = 2;
/// Type of a stream socket, the only one there is here.
pub(super) const TYPE_STREAM: u16 = 1;
/// Flag of [`Op::Shutdown`]: its sender will receive no more data.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// Flag of [`Op::Shutdown`]: its sender will send no more data.
pub(super) const SHUTDOWN_SEND: u32 = 2;

/// What a packet is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Op {
    /// Asks for a connection.
    Request,
    /// Agrees to a connection.
    Response,
    /// Refuses or ends a connection.
    Reset,
    /// Its sender will not send or not receive any more.
    Shutdown,
    /// Carries payload.
    Data,
    /// Carries nothing but the credit that every header carries.
    CreditUpdate,
    /// Asks for a [`CreditUpdate`](Self::CreditUpdate).
    CreditRequest,
}

impl Op {
    const ALL: [(u16, Self); 7] = [
        (1, Self::Request),
        (2, Self::Response),
        (3, Self::Reset),
        (4, Self::Shutdown),
        (5, Self::Data),
        (6, Self::CreditUpdate),
        (7, Self::CreditRequest),
    ];

    /// The number of the operation in a header.
    pub(super) fn code(self) -> u16 {
        Self::ALL
            .iter()
            .find(|(_, op)| *op == self)
            .map_or(0, |(code, _)| *code)
    }

    fn from_code(code: u16) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(number, _)| *number == code)
            .map(|(_, op)| *op)
    }
}

/// `struct virtio_vsock_hdr`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    /// Bytes of payload.
    pub(super) len: u32,
    /// Socket type.
    pub(super) kind: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
}

impl Header {
    /// Takes a header out of its bytes, all fields little-endian.
    pub(super) fn decode(bytes: &[u8; HEADER_LEN]) -> Self {
        let mut reader = Fields(bytes);
        Self {
            src_cid: u64::from_le_bytes(reader.next()),
            dst_cid: u64::from_le_bytes(reader.next()),
            src_port: u32::from_le_bytes(reader.next()),
            dst_port: u32::from_le_bytes(reader.next()),
            len: u32::from_le_bytes(reader.next()),
            kind: u16::from_le_bytes(reader.next()),
            op: u16::from_le_bytes(reader.next()),
            flags: u32::from_le_bytes(reader.next()),
            buf_alloc: u32::from_le_bytes(reader.next()),
            fwd_cnt: u32::from_le_bytes(reader.next()),
        }
    }

    /// The bytes of the header.
    pub(super) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let mut rest = &mut bytes[..];
        let mut put = |field: &[u8]| {
            let (head, tail) = std::mem::take(&mut rest).split_at_mut(field.len());
            head.copy_from_slice(field);
            rest = tail;
        };
        put(&self.src_cid.to_le_bytes());
        put(&self.dst_cid.to_le_bytes());
        put(&self.src_port.to_le_bytes());
        put(&self.dst_port.to_le_bytes());
        put(&self.len.to_le_bytes());
        put(&self.kind.to_le_bytes());
        put(&self.op.to_le_bytes());
        put(&self.flags.to_le_bytes());
        put(&self.buf_alloc.to_le_bytes());
        put(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The operation, if there is one of that number.
    pub(super) fn op(&self) -> Option<Op> {
        Op::from_code(self.op)
    }

    /// The reset that answers this packet, sent by whom it was addressed to.
    pub(super) fn reset(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: Op::Reset.code(),
            ..Self::default()
        }
    }
}

/// Takes fixed-size fields off the front of a header.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn next<const N: usize>(&mut self) -> [u8; N] {
        // The fields of a header are as long as the header, so there always is one.
        let (field, rest) = self.0.split_first_chunk().unwrap_or((&[0; N], &[]));
        self.0 = rest;
        *field
    }
}

/// A packet that the guest sends.
#[derive(Debug)]
pub(super) struct TxPacket<'m> {
    pub(super) header: Header,
    /// As long as the header says, at most [`MAX_PAYLOAD`] bytes.
    pub(super) payload: Vec<VolatileSlice<'m>>,
}

impl<'m> TxPacket<'m> {
    /// Takes the packet out of a chain of the TX queue.
    ///
    /// # Errors
    /// [`QueueError::Malformed`] when the chain is not as long as the packet
    /// claims to be, or the packet is larger than any may be.
    pub(super) fn parse(chain: &Chain<'m>) -> Result<Self, QueueError> {
        if !chain.writable().is_empty() {
            return Err(QueueError::Malformed(
                "a vsock TX chain has a writable buffer",
            ));
        }
        let mut bytes = [0; HEADER_LEN];
        if chain.read(&mut bytes)? < HEADER_LEN {
            return Err(QueueError::Malformed(
                "a vsock TX chain is shorter than a header",
            ));
        }
        let header = Header::decode(&bytes);
        if header.len as usize > MAX_PAYLOAD {
            return Err(QueueError::Malformed(
                "a vsock packet is larger than 64 KiB",
            ));
        }
        if u64::from(header.len) > chain.readable_len() - HEADER_LEN as u64 {
            return Err(QueueError::Malformed(
                "a vsock packet is larger than its TX chain",
            ));
        }
        let payload = guest_bytes::part(&chain.readable_slices()?, HEADER_LEN, header.len as usize);
        Ok(Self { header, payload })
    }
}

/// A chain of the RX queue, ready to take one packet.
#[derive(Debug)]
pub(super) struct RxBuffer<'m> {
    /// The chain's name in the used ring.
    pub(super) head: u16,
    header: Vec<VolatileSlice<'m>>,
    /// Where the payload goes: at most [`MAX_PAYLOAD`] bytes, maybe none.
    pub(super) room: Vec<VolatileSlice<'m>>,
}

impl<'m> RxBuffer<'m> {
    /// Takes a chain of the RX queue.
    ///
    /// # Errors
    /// [`QueueError::Malformed`] when the chain has no room for a header.
    pub(super) fn parse(chain: &Chain<'m>) -> Result<Self, QueueError> {
        if !chain.readable().is_empty() {
            return Err(QueueError::Malformed(
                "a vsock RX chain has a readable buffer",
            ));
        }
        if chain.writable_len() < HEADER_LEN as u64 {
            return Err(QueueError::Malformed(
                "a vsock RX chain is shorter than a header",
            ));
        }
        let slices = chain.writable_slices()?;
        Ok(Self {
            head: chain.head(),
            header: guest_bytes::part(&slices, 0, HEADER_LEN),
            room: guest_bytes::part(&slices, HEADER_LEN, MAX_PAYLOAD),
        })
    }

    /// Puts the header before the payload; returns the length of the packet.
    pub(super) fn finish(&self, header: &Header) -> u32 {
        guest_bytes::write(&self.header, &header.encode());
        HEADER_BYTES + header.len
    }
}

#[cfg(test)]
#[path = "packet_test.rs"]
mod tests;
