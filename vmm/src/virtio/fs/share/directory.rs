//! Listing directories.

use std::io;
use std::mem::MaybeUninit;

use fuse_backend_rs::api::filesystem::DirEntry;
use rustix::fs::{RawDir, SeekFrom, seek};

use super::handles::Handle;

/// Most bytes of the host's entries that are read at once.
const MAX_BYTES: usize = 32 << 10;
/// The host's longest entry is somewhat over 255 bytes.
const MIN_BYTES: usize = 512;

/// Gives the entries from `offset` on to `add`, until it has taken enough and
/// answers `false`. `size` is how much the guest has room for, in bytes.
///
/// # Errors
/// What the host or `add` answers.
pub(super) fn list(
    handle: &Handle,
    size: usize,
    offset: u64,
    mut add: impl FnMut(DirEntry<'_>) -> io::Result<bool>,
) -> io::Result<()> {
    let _held = handle.hold_position();
    seek(handle, SeekFrom::Start(offset))?;
    let mut buffer = vec![MaybeUninit::uninit(); size.clamp(MIN_BYTES, MAX_BYTES)];
    let mut entries = RawDir::new(handle, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let more = add(DirEntry {
            ino: entry.ino(),
            offset: entry.next_entry_cookie(),
            // The upper bits of a mode are what a directory says of the type.
            type_: entry.file_type().as_raw_mode() >> 12,
            name: entry.file_name().to_bytes(),
        })?;
        if !more {
            break;
        }
    }
    Ok(())
}

/// Whether this is the directory itself or the one above it.
pub(super) fn is_dot(name: &[u8]) -> bool {
    matches!(name, b"." | b"..")
}

/// Looks for data or a hole.
///
/// # Errors
/// What `lseek(2)` answers; EINVAL for any other `whence`.
pub(super) fn find(handle: &Handle, offset: u64, whence: u32) -> io::Result<u64> {
    let offset = i64::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::ENXIO))?;
    let _held = handle.hold_position();
    let to = match whence.cast_signed() {
        libc::SEEK_DATA => SeekFrom::Data(offset.unsigned_abs()),
        libc::SEEK_HOLE => SeekFrom::Hole(offset.unsigned_abs()),
        _ => return Err(io::Error::from_raw_os_error(libc::EINVAL)),
    };
    Ok(seek(handle, to)?)
}
