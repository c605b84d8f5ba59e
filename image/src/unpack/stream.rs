//! The bytes of a layer's archive, bounded and hashed.

use std::io::{self, Read};

use super::limits::too_large;
use crate::digest::{Digest, Hashing};

/// A layer's archive, decompressed.
pub(super) struct LayerStream<'a> {
    inner: Hashing<Box<dyn Read + 'a>>,
    left: u64,
}

impl<'a> LayerStream<'a> {
    /// A stream of at most `max` bytes of content, and as much again for headers and padding.
    pub(super) fn new(inner: Box<dyn Read + 'a>, max: u64) -> Self {
        Self {
            inner: Hashing::new(inner),
            left: max.saturating_mul(2),
        }
    }

    /// Reads what is left, and returns the digest of all.
    pub(super) fn finish(mut self) -> io::Result<Digest> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(self.inner.finish()?.0)
    }
}

impl Read for LayerStream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(n as u64).ok_or_else(too_large)?;
        Ok(n)
    }
}
