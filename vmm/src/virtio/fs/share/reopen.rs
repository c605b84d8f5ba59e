//! `/proc/self/fd`, by which a file that is held can be opened for use.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};

const PATH: &str = "/proc/self/fd";

/// The directory, held open.
#[derive(Debug)]
pub(super) struct ProcFd(OwnedFd);

impl ProcFd {
    /// Opens it.
    ///
    /// # Errors
    /// What `open(2)` answers.
    pub(super) fn open_dir() -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(openat(CWD, PATH, flags, Mode::empty())?))
    }

    /// Name in this directory of what `fd` is.
    pub(super) fn name(&self, fd: &impl AsFd) -> CString {
        to_c_string(fd.as_fd().as_raw_fd().to_string())
    }

    /// Path of what `fd` is, for calls that take no directory.
    pub(super) fn path(&self, fd: &impl AsFd) -> CString {
        to_c_string(format!("{PATH}/{}", fd.as_fd().as_raw_fd()))
    }

    /// Opens what `fd` is, which must be a regular file or a directory: others
    /// could block, or be a device of the host's.
    ///
    /// # Errors
    /// What `open(2)` answers.
    pub(super) fn open(&self, fd: &impl AsFd, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
        let name = self.name(fd);
        open_at(&self.0, &name, flags, Mode::empty()).map(File::from)
    }
}

impl AsFd for ProcFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Opens a file, and says ENFILE when there are too many: to a process of the
/// guest it is the system's limit that is reached, not its own.
pub(super) fn open_at(
    dir: impl AsFd,
    name: &CStr,
    flags: OFlags,
    mode: Mode,
) -> io::Result<OwnedFd> {
    match openat(dir, name, flags, mode) {
        Err(rustix::io::Errno::MFILE) => Err(rustix::io::Errno::NFILE.into()),
        result => Ok(result?),
    }
}

fn to_c_string(digits: String) -> CString {
    // Digits and slashes hold no NUL.
    CString::new(digits).unwrap_or_default()
}
