//! A layer's archive becomes a directory.
//!
//! See the image specification's [layers]. A layer is unpacked onto an overlay of those below
//! it: what it changes of them (an entry whose parents it does not have, a hard link to a file
//! below, a whiteout) the kernel puts into the layer's own directory as overlayfs needs it.
//!
//! [layers]: https://github.com/opencontainers/image-spec/blob/v1.1.1/layer.md

mod attributes;
mod compression;
mod entry;
mod limits;
mod stream;
mod target;
mod whiteout;

use std::io::{self, Read};

use tar::Archive;

use self::compression::decompress;
pub(crate) use self::limits::{Limits, Remaining};
use self::stream::LayerStream;
pub(crate) use self::target::Target;
use crate::digest::{Digest, Hashing};
use crate::gate::{Gate, Gated};

/// A layer as the image describes it.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    /// Of the blob as it is stored.
    pub(crate) digest: Option<Digest>,
    /// Of the blob in bytes; not known of layers in an archive of Docker's.
    pub(crate) size: Option<u64>,
    /// Of the archive in it.
    pub(crate) diff_id: Digest,
}

impl Layer {
    /// What its blob is stored under, in a layout or a registry, where layers always have one.
    pub(crate) fn blob(&self) -> &Digest {
        self.digest.as_ref().unwrap_or(&self.diff_id)
    }
}

/// Why a layer was not unpacked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    /// Not what the image says that it is.
    #[error("{what} {expected} was expected, and the content has {found}")]
    Mismatch {
        what: &'static str,
        expected: String,
        found: String,
    },
    /// An entry that is refused, or could not be made.
    #[error("entry {name:?}: {reason}")]
    Entry { name: String, reason: String },
    /// Its stream cannot be read.
    #[error("{0}")]
    Stream(#[from] io::Error),
}

/// Unpacks a layer into `target` and checks its digests, which are known at the end only: what
/// is there after an error is to be thrown away.
pub(crate) fn unpack(
    blob: impl Read,
    layer: &Layer,
    target: &mut Target,
    remaining: &mut Remaining,
) -> Result<(), UnpackError> {
    let mut blob = Hashing::new(blob);
    let archive = decompress(&mut blob)?;
    let stream = LayerStream::new(archive, remaining.bytes());
    let gate = Gate::default();
    let mut archive = Archive::new(Gated::new(stream, gate.clone()));
    let mut entries = archive.entries()?;
    loop {
        gate.close();
        let Some(entry) = entries.next() else { break };
        let mut entry = entry?;
        gate.open();
        remaining.take_entry()?;
        entry::unpack(&mut entry, target, remaining)?;
        // What was not wanted of it does not count as the next one's header.
        io::copy(&mut entry, &mut io::sink())?;
    }
    gate.open();
    let found = archive.into_inner().into_inner().finish()?;
    expect("diff_id", &layer.diff_id, &found)?;
    let (found, size) = blob.finish()?;
    if let Some(digest) = &layer.digest {
        expect("digest", digest, &found)?;
    }
    if let Some(expected) = layer.size.filter(|expected| *expected != size) {
        return Err(UnpackError::Mismatch {
            what: "a size of",
            expected: expected.to_string(),
            found: size.to_string(),
        });
    }
    target.finish()
}

fn expect(what: &'static str, expected: &Digest, found: &Digest) -> Result<(), UnpackError> {
    if expected == found {
        return Ok(());
    }
    Err(UnpackError::Mismatch {
        what,
        expected: expected.to_string(),
        found: found.to_string(),
    })
}

#[cfg(test)]
#[path = "unpack_test.rs"]
mod tests;
