//! One entry of a layer's archive.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, linkat, makedev, mkdirat, mknodat, openat, symlinkat,
};
use rustix::io::Errno;
use tar::{Entry, EntryType};

use super::UnpackError;
use super::attributes::Attributes;
use super::limits::Remaining;
use super::target::{Slot, Target};
use super::whiteout::Whiteout;
use crate::root::relative;

/// Zeros at least this long become holes, in bytes.
const HOLE: usize = 64 << 10;

/// Rights of what is being made: nobody else's business.
const PRIVATE: Mode = Mode::from_bits_retain(0o700);

/// Makes what the entry describes.
pub(super) fn unpack<R: Read>(
    entry: &mut Entry<'_, R>,
    target: &mut Target,
    remaining: &mut Remaining,
) -> Result<(), UnpackError> {
    let name = entry.path_bytes().into_owned();
    make(entry, &name, target, remaining).map_err(|Refused(reason)| UnpackError::Entry {
        name: String::from_utf8_lossy(&name).chars().take(200).collect(),
        reason,
    })
}

/// Why an entry cannot be.
struct Refused(String);

impl From<&str> for Refused {
    fn from(reason: &str) -> Self {
        Self(reason.into())
    }
}

impl From<String> for Refused {
    fn from(reason: String) -> Self {
        Self(reason)
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<Errno> for Refused {
    fn from(error: Errno) -> Self {
        Self(match error {
            Errno::EXIST | Errno::NOTDIR => {
                "something that is no directory is where its parent has to be".into()
            }
            error => error.to_string(),
        })
    }
}

fn make<R: Read>(
    entry: &mut Entry<'_, R>,
    name: &[u8],
    target: &mut Target,
    remaining: &mut Remaining,
) -> Result<(), Refused> {
    let kind = entry.header().entry_type();
    if kind.is_pax_global_extensions() {
        return Ok(());
    }
    let path = relative(name).map_err(|error| error.to_string())?;
    if let Some((last, parent)) = path.split_last()
        && let Some(whiteout) = Whiteout::parse(last)?
    {
        return Ok(whiteout.apply(target, parent)?);
    }
    let attributes = Attributes::read(entry)?;
    let Some(slot) = target.slot(&path)? else {
        return make_root(kind, &attributes, target);
    };
    let kind = match kind {
        EntryType::Directory => make_directory(&slot)?,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            make_file(entry, &slot, remaining)?
        }
        EntryType::Link => return make_link(entry, &path, &slot, target),
        EntryType::Symlink => make_symlink(entry, &slot)?,
        EntryType::Char | EntryType::Block | EntryType::Fifo => make_node(entry, kind, &slot)?,
        other => return Err(format!("is of an unknown type {:?}", other.as_byte() as char).into()),
    };
    attributes.apply(&slot, kind)?;
    if kind.is_dir() {
        target.remember_time(&path, attributes.time);
    }
    Ok(())
}

/// The root has no name in a directory; it is its own.
fn make_root(kind: EntryType, attributes: &Attributes, target: &mut Target) -> Result<(), Refused> {
    if !kind.is_dir() {
        return Err("the root must be a directory".into());
    }
    let slot = Slot {
        dir: target.directory(&[])?,
        name: ".".into(),
    };
    attributes.apply(&slot, FileType::Directory)?;
    target.remember_time(&[], attributes.time);
    Ok(())
}

/// A directory that is there stays, with what is in it.
fn make_directory(slot: &Slot) -> Result<FileType, Refused> {
    if let Some(stat) = slot.stat()? {
        if FileType::from_raw_mode(stat.st_mode).is_dir() {
            return Ok(FileType::Directory);
        }
        slot.clear()?;
    }
    mkdirat(&slot.dir, &slot.name, PRIVATE)?;
    Ok(FileType::Directory)
}

fn make_file<R: Read>(
    entry: &mut Entry<'_, R>,
    slot: &Slot,
    remaining: &mut Remaining,
) -> Result<FileType, Refused> {
    slot.clear()?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(openat(&slot.dir, &slot.name, flags, PRIVATE)?);
    let size = entry.size();
    // Before anything is written: a size that is only claimed costs nothing.
    remaining.take_bytes(size)?;
    let written = copy_with_holes(entry, &mut file)?;
    if written != size {
        return Err(format!("ends after {written} of {size} bytes").into());
    }
    Ok(FileType::RegularFile)
}

/// Copies all; long runs of zeros take no space.
fn copy_with_holes(from: &mut impl Read, to: &mut File) -> io::Result<u64> {
    let mut buffer = vec![0; HOLE];
    let mut len = 0_u64;
    loop {
        let n = fill(from, &mut buffer)?;
        let chunk = &buffer[..n];
        if n == 0 {
            break;
        }
        len += n as u64;
        if n == HOLE && chunk.iter().all(|byte| *byte == 0) {
            to.seek(SeekFrom::Start(len))?;
        } else {
            to.write_all(chunk)?;
        }
    }
    // A hole at the end was not written.
    to.set_len(len)?;
    Ok(len)
}

/// Reads until the buffer is full or nothing is left.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match from.read(&mut buffer[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

/// A hard link; it has no attributes of its own.
fn make_link<R: Read>(
    entry: &mut Entry<'_, R>,
    path: &[OsString],
    slot: &Slot,
    target: &Target,
) -> Result<(), Refused> {
    let name = entry.link_name_bytes().ok_or("links to nothing")?;
    let of = relative(&name).map_err(|error| format!("links to what is outside: {error}"))?;
    if of == path {
        return Ok(());
    }
    let Some((name, parent)) = of.split_last() else {
        return Err("is a hard link to the root".into());
    };
    let parent: PathBuf = parent.iter().collect();
    let no_target = |error: Errno| match error {
        Errno::NOENT | Errno::NOTDIR => Refused("links to what does not exist".into()),
        Errno::PERM => Refused("links to what cannot have hard links".into()),
        error => error.into(),
    };
    let dir = target
        .root
        .open_at(&parent, OFlags::PATH | OFlags::DIRECTORY)
        .map_err(no_target)?;
    slot.clear()?;
    linkat(&dir, name, &slot.dir, &slot.name, AtFlags::empty()).map_err(no_target)
}

fn make_symlink<R: Read>(entry: &mut Entry<'_, R>, slot: &Slot) -> Result<FileType, Refused> {
    let to = entry.link_name_bytes().ok_or("links to nothing")?;
    slot.clear()?;
    // Wherever it leads: it is followed inside of the root only.
    symlinkat(&*to, &slot.dir, &slot.name)?;
    Ok(FileType::Symlink)
}

/// Device nodes and FIFOs. They are made, and never opened here.
fn make_node<R: Read>(
    entry: &Entry<'_, R>,
    kind: EntryType,
    slot: &Slot,
) -> Result<FileType, Refused> {
    let header = entry.header();
    let number = |number: io::Result<Option<u32>>| number.map(Option::unwrap_or_default);
    let (major, minor) = match kind {
        EntryType::Fifo => (0, 0),
        _ => (
            number(header.device_major())?,
            number(header.device_minor())?,
        ),
    };
    let kind = match kind {
        EntryType::Char if (major, minor) == (0, 0) => {
            return Err("is what overlayfs uses as a whiteout (character device 0, 0)".into());
        }
        EntryType::Char => FileType::CharacterDevice,
        EntryType::Block => FileType::BlockDevice,
        _ => FileType::Fifo,
    };
    slot.clear()?;
    let device = makedev(major, minor);
    mknodat(&slot.dir, &slot.name, kind, PRIVATE, device)?;
    Ok(kind)
}
