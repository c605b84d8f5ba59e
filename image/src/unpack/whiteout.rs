//! Names that say that something below is gone.
//!
//! A whiteout hides what is in the layers below, never what its own layer has.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{FileType, Mode, OFlags, chmodat, fstat};

use super::target::{Slot, Target};
use crate::root::path_of;

/// What a name of an archive says, beside being one.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Whiteout {
    /// The name in the same directory is gone.
    Name(OsString),
    /// All of the directory is gone.
    Opaque,
    /// Housekeeping of AUFS, without a meaning here.
    Ignored,
}

impl Whiteout {
    /// What `name`, the last part of an entry's name, says; `None` when it is only a name.
    pub(super) fn parse(name: &OsStr) -> Result<Option<Self>, &'static str> {
        let Some(hidden) = name.as_bytes().strip_prefix(b".wh.") else {
            return Ok(None);
        };
        match hidden {
            b".wh..opq" => Ok(Some(Self::Opaque)),
            b"" | b"." | b".." => Err("is a whiteout of no name"),
            hidden if hidden.starts_with(b".wh.") => Ok(Some(Self::Ignored)),
            hidden => Ok(Some(Self::Name(OsStr::from_bytes(hidden).to_owned()))),
        }
    }

    /// Does what it says to the directory at `parent`.
    pub(super) fn apply(self, target: &mut Target, parent: &[OsString]) -> io::Result<()> {
        if !target.is_above() {
            return Ok(());
        }
        let dir = target.directory(parent)?;
        match self {
            Self::Ignored => Ok(()),
            Self::Opaque => {
                // Any change makes the directory one of the layer's own.
                let path = path_of(&dir, Some(OsStr::new(".")));
                let mode = Mode::from_raw_mode(fstat(&dir)?.st_mode & 0o7777);
                chmodat(&dir, path, mode, rustix::fs::AtFlags::empty())?;
                target.hide_below(&dir)
            }
            Self::Name(name) => hide(target, &Slot { dir, name }),
        }
    }
}

fn hide(target: &mut Target, slot: &Slot) -> io::Result<()> {
    match target.own(slot)? {
        None => slot.clear(),
        Some(own) if FileType::from_raw_mode(own.st_mode).is_dir() => {
            let dir = rustix::fs::openat(
                &slot.dir,
                &slot.name,
                OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            target.hide_below(&dir)
        }
        // The layer's own file is in its place.
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_can_be_hidden() {
        let parse = |name: &str| Whiteout::parse(OsStr::new(name));
        assert_eq!(parse("a"), Ok(None));
        assert_eq!(parse(".wh"), Ok(None));
        assert_eq!(parse(".wh.a"), Ok(Some(Whiteout::Name("a".into()))));
        assert_eq!(parse(".wh..a"), Ok(Some(Whiteout::Name(".a".into()))));
        assert_eq!(parse(".wh..wh..opq"), Ok(Some(Whiteout::Opaque)));
        assert_eq!(parse(".wh..wh.plnk"), Ok(Some(Whiteout::Ignored)));
        for name in [".wh.", ".wh..", ".wh..."] {
            assert!(parse(name).is_err(), "{name}");
        }
    }
}
