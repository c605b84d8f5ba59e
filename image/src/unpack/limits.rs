//! How large an image may become.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::fstatvfs;

/// Bytes that the files of one image may have in all, 64 GiB.
const MAX_BYTES: u64 = 64 << 30;

/// Entries that the layers of one image may have in all.
const MAX_ENTRIES: u64 = 4_000_000;

/// What one image may use. Unpacking stops with an error when it is used up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes in files, holes included, and in archives once they are decompressed.
    pub(crate) bytes: u64,
    /// Entries of archives.
    pub(crate) entries: u64,
}

impl Limits {
    /// Those for an image that is unpacked on the file system of `dir`, of which a twentieth
    /// stays free.
    pub(crate) fn on(dir: impl AsFd) -> io::Result<Self> {
        let space = fstatvfs(dir)?;
        let reserve = space.f_blocks / 20;
        let free = space.f_bavail.saturating_sub(reserve);
        Ok(Self {
            bytes: free.saturating_mul(space.f_frsize).min(MAX_BYTES),
            entries: MAX_ENTRIES,
        })
    }
}

/// What is left of [`Limits`].
#[derive(Debug)]
pub(crate) struct Remaining(Limits);

impl Remaining {
    pub(crate) fn new(limits: Limits) -> Self {
        Self(limits)
    }

    /// Bytes that files may still have.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.bytes
    }

    pub(crate) fn take_bytes(&mut self, bytes: u64) -> io::Result<()> {
        let left = self.0.bytes.checked_sub(bytes);
        self.0.bytes = left.ok_or_else(too_large)?;
        Ok(())
    }

    pub(crate) fn take_entry(&mut self) -> io::Result<()> {
        let left = self.0.entries.checked_sub(1);
        self.0.entries = left.ok_or_else(|| io::Error::other("the image has too many files"))?;
        Ok(())
    }
}

/// The image's bytes are more than [`Limits::bytes`].
pub(super) fn too_large() -> io::Error {
    io::Error::other(
        "the image is larger than 64 GiB, or than what is free where images are unpacked \
         (a twentieth of it stays free)",
    )
}
