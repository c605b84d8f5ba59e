//! The tap, from the side of the one who reads and writes frames.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::{HEADER_LEN, NetError, features};

/// A tap whose frames come with the header of virtio 1.x.
#[derive(Debug)]
pub(super) struct Tap {
    fd: OwnedFd,
}

impl Tap {
    /// Takes a tap over: checks its flags, sets the header's length.
    pub(super) fn new(fd: OwnedFd) -> Result<Self, NetError> {
        let failed = |what| move |source| NetError::Tap { what, source };
        let needed = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        let flags = interface_flags(fd.as_fd()).map_err(failed("read the flags of"))?;
        if i32::from(flags) & needed != needed {
            return Err(NetError::TapFlags(flags));
        }
        let tap = Self { fd };
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

    /// Says what of its work the tap may leave to the reader (`TUN_F_*`).
    ///
    /// # Errors
    /// What the kernel answers.
    pub(super) fn set_offloads(&self, flags: u32) -> io::Result<()> {
        // SAFETY: this request takes its argument by value.
        check(unsafe {
            libc::ioctl(
                self.as_raw_fd(),
                libc::TUNSETOFFLOAD,
                libc::c_ulong::from(flags),
            )
        })
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
