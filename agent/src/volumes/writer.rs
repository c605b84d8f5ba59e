//! The copy of a volume written as the kubelet writes the volume, its "atomic writer".
//!
//! ```text
//! ..2026_11_24_10_00_00.123/key   the content, in a directory that never changes
//! ..data -> ..2026_11_24_10_00_00.123
//! key -> ..data/key               one link for each name at the top
//! ```
//!
//! An update makes a new directory, renames a new link over `..data`, adds and removes links
//! at the top, and removes the old directory. A process that watches the copy sees each of
//! these steps, in this order, as it would see them in the volume itself.
//!
//! A privileged container of the guest can write to the copy. Nothing here follows a link
//! in it; what it spoils is its own.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, Gid, Mode, OFlags, Uid, chownat, fchmod, fstat, open, readlinkat, statat,
};
use rustix::io::Errno;
use thiserror::Error;

use crate::copy_tree;
use crate::error::Error;

/// The link to the directory with the content.
const DATA: &str = "..data";
/// What it is made as, before it is renamed.
const NEW_DATA: &str = "..data_tmp";
/// What begins so is not for the container to look at.
const HIDDEN: &[u8] = b"..";

/// Names at the top of a volume.
const MAX_NAMES: usize = 2048;
/// Directories within each other.
const MAX_DEPTH: usize = 16;

/// Why a copy was not renewed.
#[derive(Debug, Error)]
pub(super) enum RenewError {
    /// The source, or the copy, cannot be read or written.
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    /// The source is not as the kubelet makes them.
    #[error("{0}")]
    Layout(String),
}

impl RenewError {
    fn at(name: impl AsRef<OsStr>) -> impl FnOnce(io::Error) -> Self {
        let what = name.as_ref().to_string_lossy().into_owned();
        move |source| Self::Io { what, source }
    }

    /// The answer to a call about the volume at `path`.
    pub(super) fn of(self, path: &Path) -> Error {
        let message = format!("the volume at {} is not copied: {self}", path.display());
        match self {
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => Error::FailedPrecondition(message),
                io::ErrorKind::StorageFull => Error::ResourceExhausted(message),
                _ => Error::Internal(message),
            },
            Self::Layout(_) => Error::FailedPrecondition(message),
        }
    }
}

/// Makes the copy in the directory `copy` what `source` is, whose content is in `current`:
/// if that is `None`, where the link says. With old knowledge of the share, it may be wrong.
pub(super) fn renew(source: &File, copy: &Path, current: Option<&OsStr>) -> Result<(), RenewError> {
    let current = match current {
        Some(current) => current.to_owned(),
        None => link_at(source, OsStr::new(DATA)).map_err(RenewError::at(DATA))?,
    };
    check_directory_name(&current)?;
    let links = visible_links(source)?;
    take_over_attributes(source, copy).map_err(RenewError::at(copy))?;
    let before = fs::read_link(copy.join(DATA)).ok();
    if before.as_deref().map(Path::as_os_str) != Some(current.as_os_str()) {
        copy_content(source, copy, &current)?;
        switch(source, copy, &current).map_err(RenewError::at(DATA))?;
    }
    add_links(source, copy, &links)?;
    remove_links(copy, &links)?;
    remove_old(source, copy, &current)
}

fn link_at(dir: &File, name: &OsStr) -> io::Result<OsString> {
    let target = readlinkat(dir, name, Vec::new())?;
    Ok(OsString::from_vec(target.into_bytes()))
}

fn is_hidden(name: &OsStr) -> bool {
    name.as_bytes().starts_with(HIDDEN)
}

/// The name must be one that the kubelet gives, in the directory itself.
fn check_directory_name(name: &OsStr) -> Result<(), RenewError> {
    let bytes = name.as_bytes();
    let is_taken = [OsStr::new(".."), OsStr::new(DATA), OsStr::new(NEW_DATA)].contains(&name);
    if !is_hidden(name) || is_taken || bytes.contains(&b'/') || bytes.contains(&0) {
        return Err(RenewError::Layout(format!(
            "{DATA} leads to {name:?}, which is no directory of the kubelet's"
        )));
    }
    Ok(())
}

/// The links at the top of the volume, with what they lead to.
fn visible_links(source: &File) -> Result<BTreeMap<OsString, OsString>, RenewError> {
    let mut links = BTreeMap::new();
    let listed = Dir::read_from(source).map_err(|error| RenewError::at("")(error.into()))?;
    for entry in listed {
        let entry = entry.map_err(|error| RenewError::at("")(error.into()))?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || is_hidden(name) {
            continue;
        }
        match link_at(source, name) {
            Ok(target) => links.insert(name.to_owned(), target),
            // It has gone meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                return Err(RenewError::Layout(format!("{name:?} is not a link")));
            }
            Err(error) => return Err(RenewError::at(name)(error)),
        };
        if links.len() > MAX_NAMES {
            return Err(RenewError::Layout(format!("more than {MAX_NAMES} names")));
        }
    }
    Ok(links)
}

/// Owner and mode of the directory itself.
fn take_over_attributes(source: &File, copy: &Path) -> io::Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let copy = open(copy, flags, Mode::empty())?;
    let (wanted, is) = (fstat(source)?, fstat(&copy)?);
    let attributes = |stat: &rustix::fs::Stat| (stat.st_uid, stat.st_gid, stat.st_mode);
    if attributes(&wanted) != attributes(&is) {
        copy_tree::own(copy.as_fd(), &wanted)?;
        fchmod(&copy, Mode::from_raw_mode(wanted.st_mode))?;
    }
    Ok(())
}

/// Copies the directory `current`, as a whole or not at all.
fn copy_content(source: &File, copy: &Path, current: &OsStr) -> Result<(), RenewError> {
    // What a copy before this one could not finish.
    remove(&copy.join(current)).map_err(RenewError::at(current))?;
    copy_entry(source, copy, current).map_err(|error| {
        if let Err(left) = remove(&copy.join(current)) {
            log::error!("{}: {left}", copy.join(current).display());
        }
        RenewError::at(current)(error)
    })
}

fn copy_entry(source: &File, copy: &Path, name: &OsStr) -> io::Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let copy = open(copy, flags, Mode::empty())?;
    let name = CString::new(name.as_bytes())?;
    copy_tree::entry(source, copy.as_fd(), &name, MAX_DEPTH)
}

/// Puts a new link in the place of `..data`, in one step.
fn switch(source: &File, copy: &Path, current: &OsStr) -> io::Result<()> {
    let new = copy.join(NEW_DATA);
    remove(&new)?;
    std::os::unix::fs::symlink(current, &new)?;
    let stat = statat(source, DATA, AtFlags::SYMLINK_NOFOLLOW)?;
    if (stat.st_uid, stat.st_gid) != (0, 0) {
        let owner = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        chownat(rustix::fs::CWD, &new, Some(owner.0), Some(owner.1), flags)?;
    }
    fs::rename(&new, copy.join(DATA))
}

fn add_links(
    source: &File,
    copy: &Path,
    links: &BTreeMap<OsString, OsString>,
) -> Result<(), RenewError> {
    for (name, target) in links {
        let there = fs::read_link(copy.join(name)).ok();
        if there.as_deref().map(Path::as_os_str) == Some(target.as_os_str()) {
            continue;
        }
        remove(&copy.join(name))
            .and_then(|()| copy_entry(source, copy, name))
            .map_err(RenewError::at(name))?;
    }
    Ok(())
}

fn remove_links(copy: &Path, links: &BTreeMap<OsString, OsString>) -> Result<(), RenewError> {
    for name in names_of(copy)? {
        if !is_hidden(&name) && !links.contains_key(&name) {
            remove(&copy.join(&name)).map_err(RenewError::at(&name))?;
        }
    }
    Ok(())
}

fn remove_old(source: &File, copy: &Path, current: &OsStr) -> Result<(), RenewError> {
    for name in names_of(copy)? {
        if is_hidden(&name) && name != DATA && name != current {
            remove(&copy.join(&name)).map_err(RenewError::at(&name))?;
            // The kernel learns that it is gone, and lets go of what it remembers of it.
            let _ = statat(source, &name, AtFlags::SYMLINK_NOFOLLOW);
        }
    }
    Ok(())
}

fn names_of(copy: &Path) -> Result<Vec<OsString>, RenewError> {
    let names = fs::read_dir(copy).and_then(|entries| {
        let names = entries.map(|entry| Ok(entry?.file_name()));
        names.collect()
    });
    names.map_err(RenewError::at(copy))
}

/// Removes whatever is there, if anything is.
fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::remove_file(path) {
        Err(error) if error.raw_os_error() == Some(Errno::ISDIR.raw_os_error()) => {
            fs::remove_dir_all(path)
        }
        removed => removed,
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
#[path = "writer_test.rs"]
mod tests;
