//! One FUSE request: from a descriptor chain to the server and back.
//!
//! `fuse-backend-rs` reads the descriptors of a chain by itself, once for the
//! request and once for the reply, and allocates what some requests say they
//! need. So it never sees the guest's descriptors but a [`Shadow`]: a copy in
//! memory of the monitor's own, made from a chain that was checked and is no
//! larger than a request of the negotiated size can be.

use std::io;

use fuse_backend_rs::abi::fuse_abi::{InHeader, Opcode, OutHeader};
use fuse_backend_rs::api::filesystem::FileSystem;
use fuse_backend_rs::api::server::{MAX_BUFFER_SIZE, Server};
use fuse_backend_rs::transport::{Reader, VirtioFsWriter};
use thiserror::Error;
use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, Queue, QueueT};
use vm_memory::{ByteValued, Bytes, GuestAddress};

use crate::virtio::GuestMemory;
use crate::virtio::queue::{Buffer, Chain, QueueError};

/// Most bytes of a request or of a reply: 1 MiB of data and its headers.
const MAX_MESSAGE: u64 = MAX_BUFFER_SIZE as u64 + 4096;
/// Most descriptors of a chain: 1 MiB in pages, and some more for the headers.
const MAX_DESCRIPTORS: u16 = 512;

/// Why a request cannot be served, so that the device must be reset.
#[derive(Debug, Error)]
pub(super) enum RequestError {
    /// The chain is not one that a FUSE driver makes.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The chain could not be handed to the server.
    #[error("cannot read the request: {0}")]
    Transport(#[from] fuse_backend_rs::transport::Error),
    /// The other threads cannot be woken.
    #[error("cannot wake another thread: {0}")]
    Kick(io::Error),
}

/// Length in bytes of the header of a reply.
const OUT_HEADER_LEN: u32 = 16;
const _: () = assert!(OUT_HEADER_LEN as usize == size_of::<OutHeader>());

const fn malformed(what: &'static str) -> RequestError {
    RequestError::Queue(QueueError::Malformed(what))
}

/// Serves one request; returns how many bytes of reply there are.
pub(super) fn serve<F: FileSystem + Sync>(
    server: &Server<F>,
    memory: &GuestMemory,
    chain: &Chain<'_>,
    shadow: &mut Shadow,
) -> Result<u32, RequestError> {
    if chain.readable_len() > MAX_MESSAGE || chain.writable_len() > MAX_MESSAGE {
        return Err(malformed(
            "a request or its reply is larger than was negotiated",
        ));
    }
    let mut header = InHeader::default();
    if chain.read(header.as_mut_slice())? < size_of::<InHeader>() {
        return Err(malformed("a request without a header"));
    }
    let room = chain.writable_len() >= u64::from(OUT_HEADER_LEN);
    if !room && wants_reply(header.opcode) {
        return Err(malformed("a request without room for the reply's header"));
    }
    let copy = shadow.copy(chain)?;
    let reader = Reader::from_descriptor_chain(memory, copy.clone())?;
    let writer = VirtioFsWriter::new(memory, copy)?;
    match server.handle_message(reader, writer.into(), None, None) {
        // The server does not count its answer to this one.
        Ok(0) if header.opcode == Opcode::Destroy as u32 => Ok(OUT_HEADER_LEN),
        Ok(written) => Ok(u32::try_from(written).unwrap_or(u32::MAX)),
        Err(error) => {
            log::debug!(
                "fs: refused a request with opcode {}: {error}",
                header.opcode
            );
            if room {
                refuse(chain, header.unique).map_err(RequestError::Queue)
            } else {
                Ok(0)
            }
        }
    }
}

fn wants_reply(opcode: u32) -> bool {
    ![Opcode::Forget, Opcode::BatchForget, Opcode::Interrupt]
        .iter()
        .any(|silent| *silent as u32 == opcode)
}

/// Answers EINVAL: the request was cut short or contradicts itself.
fn refuse(chain: &Chain<'_>, unique: u64) -> Result<u32, QueueError> {
    let header = OutHeader {
        len: OUT_HEADER_LEN,
        error: -libc::EINVAL,
        unique,
    };
    chain.write(header.as_slice())?;
    Ok(header.len)
}

/// A virtqueue of the monitor's own, which holds the copy of one chain.
pub(super) struct Shadow {
    memory: GuestMemory,
    queue: Queue,
}

const TABLE: u32 = 0x1000;
const AVAIL_RING: u32 = 0x3000;
const USED_RING: u32 = 0x4000;
const SHADOW_SIZE: usize = 0x6000;

/// Flags of a descriptor.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const _: () = assert!(NEXT as u32 == VRING_DESC_F_NEXT && WRITE as u32 == VRING_DESC_F_WRITE);

impl Shadow {
    /// A shadow without a chain.
    ///
    /// # Errors
    /// What `mmap(2)` answers.
    pub(super) fn new() -> io::Result<Self> {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), SHADOW_SIZE)])
            .map_err(io::Error::other)?;
        let mut queue = Queue::new(MAX_DESCRIPTORS).map_err(io::Error::other)?;
        for (address, set) in [
            (TABLE, Queue::set_desc_table_address as fn(&mut _, _, _)),
            (AVAIL_RING, Queue::set_avail_ring_address),
            (USED_RING, Queue::set_used_ring_address),
        ] {
            set(&mut queue, Some(address), Some(0));
        }
        queue.set_ready(true);
        // One chain, from the first descriptor on, is available forever.
        memory
            .write_obj(1u16, GuestAddress(u64::from(AVAIL_RING) + 2))
            .map_err(io::Error::other)?;
        Ok(Self { memory, queue })
    }

    /// Copies the descriptors of `chain`.
    fn copy(&mut self, chain: &Chain<'_>) -> Result<DescriptorChain<&GuestMemory>, RequestError> {
        let mut buffers = chain
            .readable()
            .iter()
            .map(|buffer| (buffer, 0))
            .chain(chain.writable().iter().map(|buffer| (buffer, WRITE)))
            .filter(|(buffer, _)| buffer.len > 0)
            .peekable();
        let mut index = 0;
        while let Some((buffer, flags)) = buffers.next() {
            let link = if buffers.peek().is_some() { NEXT } else { 0 };
            self.set(index, buffer, flags | link)?;
            index += 1;
        }
        self.queue.set_next_avail(0);
        self.queue
            .pop_descriptor_chain(&self.memory)
            .ok_or_else(|| malformed("an empty chain"))
    }

    fn set(&self, index: u16, buffer: &Buffer, flags: u16) -> Result<(), RequestError> {
        if index >= MAX_DESCRIPTORS {
            return Err(malformed("a request in too many buffers"));
        }
        let descriptor = Descriptor::new(buffer.address.0, buffer.len, flags, index + 1);
        let at = u64::from(TABLE) + u64::from(index) * size_of::<Descriptor>() as u64;
        self.memory
            .write_obj(descriptor, GuestAddress(at))
            .map_err(|_| malformed("a request in too many buffers"))
    }
}
