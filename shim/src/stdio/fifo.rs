//! Fifos, opened so that nobody waits.
//!
//! Opening a fifo for writing fails without a reader and opening one for reading
//! ends without a writer. So the shim opens the other end, too, and keeps it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Opens what a process reads, and the end that keeps it from ending.
pub(super) fn open_input(path: &Path) -> io::Result<(OwnedFd, Option<OwnedFd>)> {
    // A file is opened in the same way, and ends where it does.
    let read = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let write = is_fifo(&read)?.then(|| open_write(path)).transpose()?;
    Ok((read.into(), write))
}

/// Opens what a process writes, and the end that keeps it from breaking off.
pub(super) fn open_output(path: &Path) -> io::Result<(OwnedFd, Option<OwnedFd>)> {
    let read = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    if is_fifo(&read)? {
        Ok((open_write(path)?, Some(read.into())))
    } else {
        let file = File::options().append(true).open(path)?;
        Ok((file.into(), None))
    }
}

fn open_write(path: &Path) -> io::Result<OwnedFd> {
    let write = File::options()
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    Ok(write.into())
}

fn is_fifo(file: &File) -> io::Result<bool> {
    Ok(file.metadata()?.file_type().is_fifo())
}
