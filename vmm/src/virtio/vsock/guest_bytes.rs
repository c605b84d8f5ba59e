//! Bytes that lie in guest memory in several pieces, and their way from and to
//! a socket without a copy in between.
//!
//! The guest may change them at any time, so they are never borrowed as Rust
//! slices: the kernel reads and writes them by address.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::net::{SendAncillaryBuffer, SendFlags};
use vm_memory::VolatileSlice;

/// Most pieces that the kernel takes at a time (`IOV_MAX`).
const MAX_PIECES: usize = 1024;

/// The part of `slices` that begins at `start` and has at most `max_len` bytes.
pub(super) fn part<'m>(
    slices: &[VolatileSlice<'m>],
    start: usize,
    max_len: usize,
) -> Vec<VolatileSlice<'m>> {
    let mut skip = start;
    let mut left = max_len;
    let mut pieces = Vec::with_capacity(slices.len());
    for slice in slices {
        let offset = skip.min(slice.len());
        skip -= offset;
        let count = left.min(slice.len() - offset);
        left -= count;
        if count > 0
            && let Ok(piece) = slice.subslice(offset, count)
        {
            pieces.push(piece);
        }
    }
    pieces
}

/// As many of `slices` as one call of the kernel takes.
pub(super) fn at_once<'a, 'm>(slices: &'a [VolatileSlice<'m>]) -> &'a [VolatileSlice<'m>] {
    &slices[..slices.len().min(MAX_PIECES)]
}

/// Bytes in `slices`.
pub(super) fn len(slices: &[VolatileSlice<'_>]) -> usize {
    slices.iter().map(VolatileSlice::len).sum()
}

/// Copies `bytes` to the start of `slices`, as far as they reach.
pub(super) fn write(slices: &[VolatileSlice<'_>], mut bytes: &[u8]) {
    for slice in slices {
        let (piece, rest) = bytes.split_at(bytes.len().min(slice.len()));
        slice.copy_from(piece);
        bytes = rest;
    }
}

/// Appends a copy of `slices` to `buffer`.
pub(super) fn append(slices: &[VolatileSlice<'_>], buffer: &mut VecDeque<u8>) {
    let mut piece = [0; 4096];
    for slice in slices {
        let mut done = 0;
        while let Ok(rest) = slice.offset(done)
            && !rest.is_empty()
        {
            let count = rest.copy_to(&mut piece);
            buffer.extend(&piece[..count]);
            done += count;
        }
    }
}

/// Sends `slices` to the socket as far as it takes them without waiting;
/// returns how many bytes it took.
///
/// # Errors
/// What `sendmsg(2)` answers; [`io::ErrorKind::WouldBlock`] when the socket is full.
pub(super) fn send(socket: BorrowedFd<'_>, slices: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let slices = at_once(slices);
    let guards: Vec<_> = slices.iter().map(VolatileSlice::ptr_guard).collect();
    let mut pieces: Vec<_> = guards
        .iter()
        .map(|guard| libc::iovec {
            iov_base: guard.as_ptr().cast_mut().cast(),
            iov_len: guard.len(),
        })
        .collect();
    let message = message(&mut pieces);
    retry(|| {
        // SAFETY: `message` points to `pieces`, and those to guest memory that
        // `slices` keep mapped and `guards` keep accessible until after the
        // call. The kernel only reads there, and copes with a guest that
        // writes meanwhile.
        unsafe {
            libc::sendmsg(
                socket.as_raw_fd(),
                &raw const message,
                libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            )
        }
    })
}

/// Receives from the socket into `slices` what is there without waiting;
/// returns how many bytes came, 0 at the end of the stream. `slices` must not be empty.
///
/// # Errors
/// What `recvmsg(2)` answers; [`io::ErrorKind::WouldBlock`] when there is nothing.
pub(super) fn receive(socket: BorrowedFd<'_>, slices: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let slices = at_once(slices);
    let guards: Vec<_> = slices.iter().map(VolatileSlice::ptr_guard_mut).collect();
    let mut pieces: Vec<_> = guards
        .iter()
        .map(|guard| libc::iovec {
            iov_base: guard.as_ptr().cast(),
            iov_len: guard.len(),
        })
        .collect();
    let mut message = message(&mut pieces);
    retry(|| {
        // SAFETY: `message` points to `pieces`, and those to guest memory that
        // `slices` keep mapped and `guards` keep accessible until after the
        // call. No Rust reference to that memory exists, so the kernel may
        // write it.
        unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) }
    })
}

/// Sends from a buffer of our own as far as the socket takes it without waiting.
///
/// # Errors
/// As [`send`].
pub(super) fn send_buffer(socket: BorrowedFd<'_>, buffer: &VecDeque<u8>) -> io::Result<usize> {
    let (front, back) = buffer.as_slices();
    let pieces = [IoSlice::new(front), IoSlice::new(back)];
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let mut control = SendAncillaryBuffer::default();
    Ok(rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(socket, &pieces, &mut control, flags)
    })?)
}

fn message(pieces: &mut [libc::iovec]) -> libc::msghdr {
    libc::msghdr {
        msg_name: std::ptr::null_mut(),
        msg_namelen: 0,
        msg_iov: pieces.as_mut_ptr(),
        msg_iovlen: pieces.len(),
        msg_control: std::ptr::null_mut(),
        msg_controllen: 0,
        msg_flags: 0,
    }
}

fn retry(mut call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
    loop {
        // Negative, and so out of range, is an error.
        if let Ok(count) = usize::try_from(call()) {
            return Ok(count);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
