//! Owner, rights, times and extended attributes of an entry.

use std::io::{self, Read};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, Timespec, Uid, XattrFlags, chmodat, chownat, lsetxattr,
};
use rustix::io::Errno;
use tar::Entry;

use super::target::{Slot, set_time};

/// Prefix of keys of pax headers that carry extended attributes.
const XATTR: &str = "SCHILY.xattr.";

/// A moment, since 1970.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Time {
    seconds: i64,
    nanoseconds: u32,
}

impl Time {
    /// Of a pax header: seconds with a decimal fraction, which may be negative.
    fn parse(text: &str) -> Option<Self> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let seconds: i64 = whole.parse().ok()?;
        let digits: String = fraction
            .chars()
            .chain("000000000".chars())
            .take(9)
            .collect();
        let nanoseconds: u32 = digits.parse().ok()?;
        Some(if whole.starts_with('-') && nanoseconds > 0 {
            Self {
                seconds: seconds.checked_sub(1)?,
                nanoseconds: 1_000_000_000 - nanoseconds,
            }
        } else {
            Self {
                seconds,
                nanoseconds,
            }
        })
    }

    pub(super) fn timespec(self) -> Timespec {
        Timespec {
            tv_sec: self.seconds,
            tv_nsec: self.nanoseconds.into(),
        }
    }
}

/// What an entry says of its file beside content.
#[derive(Debug)]
pub(super) struct Attributes {
    mode: Mode,
    uid: u32,
    gid: u32,
    pub(super) time: Time,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Attributes {
    pub(super) fn read<R: Read>(entry: &mut Entry<'_, R>) -> Result<Self, String> {
        let unusable = |error: io::Error| error.to_string();
        let header = entry.header();
        let id = |id: io::Result<u64>| {
            let id = u32::try_from(id.map_err(unusable)?);
            id.ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| "its owner's number is too large".to_owned())
        };
        let mut attributes = Self {
            mode: Mode::from_raw_mode(header.mode().map_err(unusable)? & 0o7777),
            uid: id(header.uid())?,
            gid: id(header.gid())?,
            time: Time {
                seconds: header.mtime().unwrap_or(0).try_into().unwrap_or(0),
                nanoseconds: 0,
            },
            xattrs: Vec::new(),
        };
        attributes.read_pax(entry)?;
        Ok(attributes)
    }

    fn read_pax<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), String> {
        let pax = entry.pax_extensions().map_err(|error| error.to_string())?;
        for record in pax.into_iter().flatten() {
            let record = record.map_err(|error| error.to_string())?;
            let Ok(key) = record.key() else { continue };
            if key.starts_with("GNU.sparse.") {
                return Err("sparse files in the form of pax headers are not supported".into());
            }
            if key == "mtime" {
                let time = record.value().ok().and_then(Time::parse);
                self.time = time.ok_or("its time is no number")?;
            }
            if let Some(name) = key.strip_prefix(XATTR).filter(|name| is_kept(name)) {
                self.xattrs.push((name.into(), record.value_bytes().into()));
            }
        }
        Ok(())
    }

    /// Gives them to what was made at `slot`. The order matters: a change of owner takes
    /// set-user-ID bits and capabilities away.
    pub(super) fn apply(&self, slot: &Slot, kind: FileType) -> io::Result<()> {
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        let owner = (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)));
        chownat(&slot.dir, &slot.name, owner.0, owner.1, nofollow)?;
        if !kind.is_symlink() {
            chmodat(&slot.dir, &slot.name, self.mode, AtFlags::empty())?;
        }
        let path = slot.path();
        for (name, value) in &self.xattrs {
            match lsetxattr(&path, name.as_str(), value, XattrFlags::empty()) {
                // A file system, or a kind of file, that has none.
                Err(Errno::OPNOTSUPP | Errno::PERM) => {
                    log::debug!("{:?} cannot have {name}", slot.name);
                }
                answer => answer?,
            }
        }
        if !kind.is_dir() {
            set_time(&slot.dir, slot.name.as_ref(), self.time, nofollow)?;
        }
        Ok(())
    }
}

/// Attributes that mean the same in the container. The others are the host's own affair:
/// labels, and how overlayfs marks its files.
fn is_kept(name: &str) -> bool {
    name == "security.capability"
        || (name.starts_with("user.") && !name.starts_with("user.overlay."))
        || name.starts_with("system.posix_acl_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_fractions() {
        let time = |seconds, nanoseconds| {
            Some(Time {
                seconds,
                nanoseconds,
            })
        };
        assert_eq!(Time::parse("12"), time(12, 0));
        assert_eq!(Time::parse("12.5"), time(12, 500_000_000));
        assert_eq!(Time::parse("1.0000000019"), time(1, 1));
        assert_eq!(Time::parse("-1.25"), time(-2, 750_000_000));
        assert_eq!(Time::parse("-0.5"), time(-1, 500_000_000));
        assert_eq!(Time::parse("soon"), None);
        assert_eq!(Time::parse("1.-5"), None);
    }

    #[test]
    fn an_image_does_not_speak_to_overlayfs() {
        for name in ["user.a", "security.capability", "system.posix_acl_access"] {
            assert!(is_kept(name), "{name}");
        }
        for name in [
            "trusted.overlay.redirect",
            "user.overlay.opaque",
            "security.selinux",
            "trusted.a",
        ] {
            assert!(!is_kept(name), "{name}");
        }
    }
}
