//! A block device of the host, open.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use vm_memory::VolatileSlice;

use super::parts::skip;
use crate::config::DiskConfig;
use crate::virtio::vectors::{count, vector};

/// Bytes of a sector, whatever the device's own are (virtio 1.2, section 5.2).
pub(super) const SECTOR: u64 = 512;
/// Smallest and largest logical block that a guest's kernel takes, in bytes.
const BLOCK_SIZES: std::ops::RangeInclusive<u32> = 512..=4096;

/// The device, and what its driver is told of it.
#[derive(Debug)]
pub(super) struct Disk {
    file: File,
    sectors: u64,
    block_size: u32,
    read_only: bool,
    serial: Vec<u8>,
}

impl Disk {
    /// A disk on an open device.
    pub(super) fn new(fd: OwnedFd, config: &DiskConfig) -> Self {
        let is_usable = config.block_size.is_power_of_two();
        let block_size = if is_usable && BLOCK_SIZES.contains(&config.block_size) {
            config.block_size
        } else {
            *BLOCK_SIZES.start()
        };
        Self {
            file: fd.into(),
            sectors: config.bytes / SECTOR,
            block_size,
            read_only: config.read_only,
            serial: config.serial.clone().into_bytes(),
        }
    }

    /// Capacity in sectors.
    pub(super) fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Logical block in bytes.
    pub(super) fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Whether nothing may be written.
    pub(super) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// What its driver may know it by.
    pub(super) fn serial(&self) -> &[u8] {
        &self.serial
    }

    /// Reads from the byte `offset` on until `parts` are full.
    ///
    /// # Errors
    /// What `preadv(2)` answers, `UnexpectedEof` when the device has shrunk.
    pub(super) fn read(&self, offset: u64, parts: Vec<VolatileSlice<'_>>) -> io::Result<()> {
        move_all(offset, parts, |vectors, offset| {
            // SAFETY: the vectors are of slices of mapped guest memory, which nobody holds a
            // reference into.
            unsafe {
                libc::preadv(
                    self.file.as_raw_fd(),
                    vectors.as_ptr(),
                    count(vectors),
                    offset,
                )
            }
        })
    }

    /// Writes all of `parts` from the byte `offset` on.
    ///
    /// # Errors
    /// What `pwritev(2)` answers; `ReadOnlyFilesystem` when nothing may be written.
    pub(super) fn write(&self, offset: u64, parts: Vec<VolatileSlice<'_>>) -> io::Result<()> {
        if self.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        move_all(offset, parts, |vectors, offset| {
            // SAFETY: the vectors are of slices of mapped guest memory; the kernel only reads it.
            unsafe {
                libc::pwritev(
                    self.file.as_raw_fd(),
                    vectors.as_ptr(),
                    count(vectors),
                    offset,
                )
            }
        })
    }

    /// Returns when all that was written is on the device.
    ///
    /// # Errors
    /// What `fdatasync(2)` answers.
    pub(super) fn flush(&self) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        self.file.sync_data()
    }
}

/// Calls until all parts are moved.
fn move_all(
    mut offset: u64,
    mut parts: Vec<VolatileSlice<'_>>,
    call: impl Fn(&[libc::iovec], libc::off_t) -> libc::ssize_t,
) -> io::Result<()> {
    while !parts.is_empty() {
        let vectors: Vec<_> = parts.iter().map(vector).collect();
        let at = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        match usize::try_from(call(&vectors, at)) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(moved) => {
                skip(&mut parts, moved);
                offset += moved as u64;
            }
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}
