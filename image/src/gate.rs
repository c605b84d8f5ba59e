//! A bound on what a library reads into memory.
//!
//! The library for archives collects the headers of an entry in memory: long names, extended
//! attributes. How large they are, the archive says.

use std::cell::Cell;
use std::io::{self, Read, Seek, SeekFrom};
use std::rc::Rc;

/// Bytes that the headers of one entry may have.
const MAX_HEADERS: u64 = 1 << 20;

/// Decides how much may be read: [`MAX_HEADERS`] while closed, everything while open.
#[derive(Clone, Default)]
pub(crate) struct Gate(Rc<Cell<Option<u64>>>);

impl Gate {
    pub(crate) fn open(&self) {
        self.0.set(None);
    }

    pub(crate) fn close(&self) {
        self.0.set(Some(MAX_HEADERS));
    }
}

/// A reader behind a gate.
pub(crate) struct Gated<R> {
    inner: R,
    gate: Gate,
}

impl<R> Gated<R> {
    pub(crate) fn new(inner: R, gate: Gate) -> Self {
        Self { inner, gate }
    }

    pub(crate) fn into_inner(self) -> R {
        self.inner
    }
}

impl<R: Read> Read for Gated<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        if let Some(budget) = self.gate.0.get() {
            let left = budget
                .checked_sub(n as u64)
                .ok_or_else(|| io::Error::other("the headers of an entry are larger than 1 MiB"))?;
            self.gate.0.set(Some(left));
        }
        Ok(n)
    }
}

impl<R: Seek> Seek for Gated<R> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.inner.seek(position)
    }
}
