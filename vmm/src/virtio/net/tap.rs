//! A queue of the tap, from the side of the one who reads and writes frames.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::{HEADER_LEN, NetError, features};

/// What every tap must have been made with.
const FLAGS: i32 = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
/// What every queue of it but the first must be, besides.
const FURTHER_FLAGS: i32 = libc::IFF_MULTI_QUEUE | libc::IFF_DETACH_QUEUE;

/// No set of `TUN_F_*`.
const UNKNOWN_OFFLOADS: u32 = u32::MAX;

/// A queue of a tap whose frames come with the header of virtio 1.x.
#[derive(Debug)]
pub(super) struct Tap {
    fd: OwnedFd,
    /// What was set last, or [`UNKNOWN_OFFLOADS`].
    offloads: AtomicU32,
}

impl Tap {
    /// Takes a tap's first queue over: checks its flags, sets the header's length.
    pub(super) fn new(fd: OwnedFd) -> Result<Self, NetError> {
        Self::checked(fd, FLAGS)
    }

    /// Takes a further queue of a tap over, which must be detached.
    pub(super) fn further(fd: OwnedFd) -> Result<Self, NetError> {
        Self::checked(fd, FLAGS | FURTHER_FLAGS)
    }

    fn checked(fd: OwnedFd, needed: i32) -> Result<Self, NetError> {
        let failed = |what| move |source| NetError::Tap { what, source };
        let flags = interface_flags(fd.as_fd()).map_err(failed("read the flags of"))?;
        if i32::from(flags) & needed != needed {
            return Err(match needed {
                FLAGS => NetError::TapFlags(flags),
                _ => NetError::QueueFlags(flags),
            });
        }
        let tap = Self {
            fd,
            offloads: AtomicU32::new(UNKNOWN_OFFLOADS),
        };
        let len = libc::c_int::from(HEADER_LEN);
        // SAFETY: the kernel reads one int, which lives until the call returns.
        let result = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len) };
        check(result).map_err(failed("set the header length of"))?;
        set_non_blocking(tap.as_fd()).map_err(failed("set O_NONBLOCK on"))?;
        Ok(tap)
    }

    /// Finds the most offloads that the tap accepts, and leaves it with none.
    pub(super) fn probe_offloads(&self) -> u32 {
        let best = features::CANDIDATES
            .into_iter()
            .find(|flags| self.set_offloads(*flags).is_ok())
            .unwrap_or(0);
        // No offload at all is always accepted.
        let _ = self.set_offloads(0);
        best
    }

    /// Lets the tap put frames into this queue, or take it out of its choice; what
    /// waits there is then lost.
    ///
    /// # Errors
    /// What the kernel answers; it refuses what is so already.
    pub(super) fn set_attached(&self, attached: bool) -> io::Result<()> {
        // SAFETY: all zeroes is a valid value of this structure.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let flag = if attached {
            libc::IFF_ATTACH_QUEUE
        } else {
            libc::IFF_DETACH_QUEUE
        };
        let [low, high, ..] = flag.to_le_bytes();
        request.ifr_ifru.ifru_flags = libc::c_short::from_le_bytes([low, high]);
        // SAFETY: the kernel reads one ifreq, which lives until the call returns.
        check(unsafe { libc::ioctl(self.as_raw_fd(), libc::TUNSETQUEUE, &raw const request) })
    }

    /// Says what of its work the tap may leave to the reader (`TUN_F_*`).
    ///
    /// # Errors
    /// What the kernel answers.
    pub(super) fn set_offloads(&self, flags: u32) -> io::Result<()> {
        // The call takes a lock of the host's network.
        if self.offloads.load(Ordering::Relaxed) == flags {
            return Ok(());
        }
        self.offloads.store(UNKNOWN_OFFLOADS, Ordering::Relaxed);
        // SAFETY: this request takes its argument by value.
        check(unsafe {
            libc::ioctl(
                self.as_raw_fd(),
                libc::TUNSETOFFLOAD,
                libc::c_ulong::from(flags),
            )
        })?;
        self.offloads.store(flags, Ordering::Relaxed);
        Ok(())
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn set_non_blocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = fcntl_getfl(fd)?;
    Ok(fcntl_setfl(fd, flags | OFlags::NONBLOCK)?)
}

fn interface_flags(fd: BorrowedFd<'_>) -> io::Result<u16> {
    // SAFETY: all zeroes is a valid value of this structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one ifreq, which lives until the call returns.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request) };
    check(result)?;
    // SAFETY: TUNGETIFF has filled this member, and any value of it is valid.
    Ok(unsafe { request.ifr_ifru.ifru_flags }.cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offloads_that_are_set_already_cost_no_call() {
        // It is no tap, so that each call fails.
        let tap = Tap {
            fd: std::fs::File::open("/dev/null").unwrap().into(),
            offloads: AtomicU32::new(7),
        };
        tap.set_offloads(7).unwrap();
        tap.set_offloads(1).unwrap_err();
        // Nobody knows what they are now.
        tap.set_offloads(7).unwrap_err();
    }
}
