//! Owned descriptors in the runtime's poll set.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nacre_vmm::control::FrontDoorSocket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Types that own one descriptor, the same for all of their life.
pub(crate) trait Owner {
    /// The descriptor.
    fn descriptor(&self) -> BorrowedFd<'_>;
}

impl Owner for OwnedFd {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }
}

impl Owner for FrontDoorSocket {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }
}

/// An [`Owner`] that can be polled.
#[derive(Debug)]
pub(crate) struct Owned<T>(pub(crate) T);

impl<T: Owner> AsRawFd for Owned<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.descriptor().as_raw_fd()
    }
}

/// A descriptor in the poll set, for as long as it is open.
pub(crate) type Polled<T> = AsyncFd<Owned<T>>;

/// Adds a descriptor to the poll set of the current runtime.
///
/// # Errors
/// When the kernel cannot poll it.
pub(crate) fn add<T: Owner>(owner: T, interest: Interest) -> io::Result<Polled<T>> {
    // SAFETY: an `Owner` keeps its one descriptor open as long as it lives, and
    // `AsyncFd` drops it after having taken it out of the poll set.
    let polled = unsafe { AsyncFd::register_with_interest(Owned(owner), interest) };
    Ok(polled?)
}
