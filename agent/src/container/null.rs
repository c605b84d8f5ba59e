//! The null device of a process without streams.
//!
//! It must be the container's own: a descriptor of the agent's leads to a file
//! whose mode the process could change. libcontainer sees to that for a
//! container's first process, but leaves it one that cannot be written to.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, fstat, major, minor};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout, stderr, stdin, stdout};

/// Where a container has its null device.
pub(super) const NULL: &str = "/dev/null";

/// Device number of the null device.
const NUMBER: (u32, u32) = (1, 3);

/// Puts what `open` opens in the place of each null device among stdin, stdout
/// and stderr.
///
/// # Errors
/// When it cannot be opened, or is something else; nothing is changed then.
pub(super) fn replace(open: impl FnOnce() -> io::Result<OwnedFd>) -> io::Result<()> {
    type Replace = fn(&OwnedFd) -> rustix::io::Result<()>;
    let replacements: [(BorrowedFd<'_>, Replace); 3] = [
        (stdin(), |null| dup2_stdin(null)),
        (stdout(), |null| dup2_stdout(null)),
        (stderr(), |null| dup2_stderr(null)),
    ];
    let mut found = replacements
        .into_iter()
        .filter(|(fd, _)| is_null(fd).unwrap_or(false))
        .peekable();
    if found.peek().is_none() {
        return Ok(());
    }
    let null = open()?;
    if !is_null(&null)? {
        return Err(io::Error::other("it is no null device"));
    }
    for (_, replace) in found {
        replace(&null)?;
    }
    Ok(())
}

/// Whether a descriptor, one for its path only included, is of the null device.
pub(super) fn is_null(fd: impl AsFd) -> io::Result<bool> {
    let status = fstat(fd)?;
    let is_device = FileType::from_raw_mode(status.st_mode) == FileType::CharacterDevice;
    Ok(is_device && (major(status.st_rdev), minor(status.st_rdev)) == NUMBER)
}
