//! Frames between a descriptor and guest memory, without a copy.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::VolatileSlice;

use crate::virtio::vectors::{count, vector};

/// Most parts that one frame can be moved in (the kernel's `UIO_MAXIOV`).
pub(super) const MAX_PARTS: usize = 1024;

/// Reads one frame into `parts` and what does not fit into `spill`; returns
/// its length. `parts` must be fewer than [`MAX_PARTS`].
///
/// # Errors
/// What `readv(2)` answers, `WouldBlock` when no frame waits.
pub(super) fn read_frame(
    fd: BorrowedFd<'_>,
    parts: &[VolatileSlice<'_>],
    spill: &mut [u8],
) -> io::Result<usize> {
    let mut vectors: Vec<_> = parts.iter().map(vector).collect();
    vectors.push(libc::iovec {
        iov_base: spill.as_mut_ptr().cast(),
        iov_len: spill.len(),
    });
    // SAFETY: the slices lie in mapped guest memory, which nobody holds a
    // reference into, and `spill` is borrowed for writing.
    let result = unsafe { libc::readv(fd.as_raw_fd(), vectors.as_ptr(), count(&vectors)) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Writes `parts` as one frame. There must be at most [`MAX_PARTS`].
///
/// # Errors
/// What `writev(2)` answers, `WouldBlock` when there is no room for the frame.
pub(super) fn write_frame(fd: BorrowedFd<'_>, parts: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let vectors: Vec<_> = parts.iter().map(vector).collect();
    // SAFETY: the slices lie in mapped guest memory; the kernel only reads it.
    let result = unsafe { libc::writev(fd.as_raw_fd(), vectors.as_ptr(), count(&vectors)) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
