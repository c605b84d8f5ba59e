//! Descriptors that the runtime polls.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Lets the runtime poll a descriptor, which becomes non-blocking.
pub(crate) fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    register_with(fd, Interest::READABLE | Interest::WRITABLE)
}

/// Lets the runtime poll a pidfd, which becomes readable when its process ends.
pub(crate) fn register_pidfd(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    register_with(fd, Interest::READABLE)
}

/// Lets the runtime poll a file that tells of its changes (`POLLPRI`).
pub(crate) fn register_priority(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    register_with(fd, Interest::PRIORITY)
}

fn register_with(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd stands for one descriptor all its life, and the AsyncFd
    // takes it out of the poll set before it closes it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}
