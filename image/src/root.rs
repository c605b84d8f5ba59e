//! Names inside of a root that somebody hostile has filled.
//!
//! Every look-up is one openat2(2) below a descriptor of the root, which the kernel keeps
//! inside of it, symbolic links and all.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::io::Errno;

/// Symbolic links lead to where they would in a container with this root; none of procfs are
/// followed, and no other file system is entered.
const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Access rights of directories that nobody has described.
const DIRECTORY_MODE: Mode = Mode::from_bits_retain(0o755);

/// A directory that stands for `/`.
#[derive(Debug)]
pub(crate) struct Root(OwnedFd);

impl Root {
    /// Opens a directory of our own.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(path, flags, Mode::empty())?))
    }

    /// Opens what is at `path`; a symbolic link at its end is followed, inside of the root,
    /// unless the flags say otherwise.
    pub(crate) fn open_at(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        loop {
            let flags = flags | OFlags::CLOEXEC;
            match openat2(&self.0, path, flags, Mode::empty(), INSIDE) {
                // The kernel could not tell whether `..` was safe: something was renamed.
                Err(Errno::AGAIN) => {}
                answer => return answer,
            }
        }
    }

    /// Opens the directory at `path`; what is missing of it is made.
    pub(crate) fn make_dirs(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        match self.open_at(path, flags) {
            Err(Errno::NOENT) => {}
            answer => return answer,
        }
        let mut dir = self.open_at(Path::new(""), flags)?;
        let mut so_far = PathBuf::new();
        for name in path {
            so_far.push(name);
            dir = match self.open_at(&so_far, flags) {
                Err(Errno::NOENT) => {
                    mkdirat(&dir, name, DIRECTORY_MODE)?;
                    self.open_at(&so_far, flags)?
                }
                answer => answer?,
            };
        }
        Ok(dir)
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A name for what is open, for calls that take no descriptor. Nothing on the way can be
/// exchanged, and a symbolic link as the last `name` is not followed by this.
pub(crate) fn path_of(fd: &impl AsFd, name: Option<&OsStr>) -> PathBuf {
    let mut path = PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()));
    path.extend(name);
    path
}

/// Why the name of an entry cannot be used.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum NameError {
    #[error("its name leads out of the root (`..`)")]
    Parent,
    #[error("its name is longer than 4096 bytes, or a part of it than 255")]
    Long,
}

/// The components of a name of an archive, relative to the root. Absolute names are
/// names below the root, as everybody takes them; `..` is refused wherever it is.
pub(crate) fn relative(name: &[u8]) -> Result<Vec<OsString>, NameError> {
    if name.len() > 4096 {
        return Err(NameError::Long);
    }
    let mut parts = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(NameError::Parent),
            part if part.len() > 255 => return Err(NameError::Long),
            part => parts.push(OsStr::from_bytes(part).to_owned()),
        }
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::write(dir.path().join("secret"), "").unwrap();
        let root = Root::open(&dir.path().join("root")).unwrap();
        let inside = dir.path().join("root");
        symlink(dir.path(), inside.join("absolute")).unwrap();
        symlink("..", inside.join("parent")).unwrap();
        for path in [
            "absolute/secret",
            "parent/secret",
            "../secret",
            "/../secret",
        ] {
            let answer = root.open_at(Path::new(path), OFlags::RDONLY);
            assert_eq!(answer.unwrap_err(), Errno::NOENT, "{path}");
        }
        root.make_dirs(Path::new("parent/made/here")).unwrap();
        assert!(inside.join("made/here").is_dir());
        assert!(!dir.path().join("made").exists());
        // The link leads to a place that is not there.
        assert_eq!(
            root.make_dirs(Path::new("absolute/new")).unwrap_err(),
            Errno::EXIST
        );
    }

    #[test]
    fn names_are_relative_to_the_root() {
        assert_eq!(relative(b"/a//./b/").unwrap(), ["a", "b"]);
        assert!(relative(b"./").unwrap().is_empty());
        assert_eq!(relative(b"a/../b"), Err(NameError::Parent));
        assert_eq!(relative(b".."), Err(NameError::Parent));
        assert_eq!(relative(&[b'x'; 256]), Err(NameError::Long));
        assert_eq!(relative(&b"x/".repeat(3000)), Err(NameError::Long));
    }
}
