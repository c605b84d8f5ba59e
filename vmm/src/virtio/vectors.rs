//! Guest memory as the kernel takes it for scattered reads and writes.

use vm_memory::VolatileSlice;

/// One part, for `readv(2)` and its like. It is valid as long as the slice's memory is mapped.
pub(super) fn vector(slice: &VolatileSlice<'_>) -> libc::iovec {
    libc::iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: slice.len(),
    }
}

/// The number of parts, as these calls take it.
pub(super) fn count(vectors: &[libc::iovec]) -> libc::c_int {
    // More than the kernel takes is EINVAL either way.
    libc::c_int::try_from(vectors.len()).unwrap_or(libc::c_int::MAX)
}
