//! The descriptors that a front door hands over (see
//! [`config::fds`](crate::config::fds)).

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use thiserror::Error;

use crate::client::QueuePairFds;
use crate::config::{MonitorConfig, fds};
use crate::control::MonitorSocket;
use crate::machine::BootFiles;

/// What a monitor was started without.
#[derive(Debug, Error)]
#[error(
    "descriptor {0} is missing: the monitor is started by a front door (vm-run or \
     containerd-shim-nacre-v2), not by hand"
)]
pub struct MissingFd(RawFd);

/// Everything that was handed over.
#[derive(Debug)]
pub struct Handed {
    /// The configuration, JSON.
    pub config: File,
    /// The control socket.
    pub control: MonitorSocket,
    /// `/dev/kvm`.
    pub kvm: OwnedFd,
    /// Kernel and initramfs.
    pub boot: BootFiles,
}

static TAKEN: AtomicBool = AtomicBool::new(false);

impl Handed {
    /// Takes possession; the first call only, and before anything is opened.
    ///
    /// # Errors
    /// [`MissingFd`].
    pub fn take() -> Result<Self, MissingFd> {
        if TAKEN.swap(true, Ordering::SeqCst) {
            return Err(MissingFd(fds::CONFIG));
        }
        Ok(Self {
            config: take(fds::CONFIG)?.into(),
            control: take(fds::CONTROL)?.into(),
            kvm: take(fds::KVM)?,
            boot: BootFiles {
                kernel: take(fds::KERNEL)?.into(),
                initramfs: take(fds::INITRAMFS)?.into(),
            },
        })
    }
}

/// Takes the descriptors of the configured network devices, pair by pair.
///
/// # Errors
/// [`MissingFd`].
pub fn network(config: &MonitorConfig) -> Result<Vec<Vec<QueuePairFds>>, MissingFd> {
    let mut next = fds::FIRST_NETWORK..;
    let mut take_next = || take(next.next().unwrap_or(RawFd::MAX));
    let mut pair = |vhost: bool| {
        Ok(QueuePairFds {
            tap: take_next()?,
            vhost: if vhost { Some(take_next()?) } else { None },
        })
    };
    let devices = config.network.iter();
    devices
        .map(|device| {
            (0..device.queue_pairs)
                .map(|_| pair(device.vhost))
                .collect()
        })
        .collect()
}

fn take(fd: RawFd) -> Result<OwnedFd, MissingFd> {
    // SAFETY: borrowed for one question only, whose answer says whether it is open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let exists: io::Result<_> = rustix::io::fcntl_getfd(borrowed).map_err(Into::into);
    exists.map_err(|_| MissingFd(fd))?;
    // SAFETY: it is open, and by the front door's contract it is this process's
    // alone; each number is taken once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
