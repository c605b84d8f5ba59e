//! The monitor's heap.

/// Makes all threads share one heap. To size a second one the C library would
/// look for the number of processors in `/sys`, which no thread's filter lets
/// it do, and each costs memory.
pub fn share() {
    // SAFETY: sets a number, before there is a second thread.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}
