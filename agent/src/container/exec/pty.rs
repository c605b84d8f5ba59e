//! A terminal of the container's own devpts.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{
    CWD, FileType, Gid, Mode, OFlags, Uid, fchown, fstat, fstatfs, major, minor, openat,
};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};

use crate::container::report::Failure;
use crate::container::terminal::resize;

/// Where a container's devpts has the file that makes terminals.
const PTMX: &str = "/dev/pts/ptmx";

/// `f_type` of devpts, linux/magic.h.
const DEVPTS_MAGIC: i64 = 0x1cd1;

/// Device number of [`PTMX`].
const PTMX_DEVICE: (u32, u32) = (5, 2);

/// Makes a terminal that belongs to `uid`: its master and slave side.
///
/// `proc` is the agent's own `/proc`. The workload may have put anything at the
/// place, so the file is looked at before it is opened for use.
pub(super) fn open(
    proc: &OwnedFd,
    uid: u32,
    size: Option<(u16, u16)>,
) -> Result<(OwnedFd, OwnedFd), Failure> {
    let found = openat(
        CWD,
        PTMX,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    );
    let found = found
        .map_err(io::Error::from)
        .and_then(|found| Ok(is_ptmx(&found)?.then_some(found)));
    let place = match found {
        Ok(Some(place)) => place,
        Ok(None) => {
            let message = format!("process.terminal: {PTMX} makes no terminals");
            return Err(Failure::invalid(message));
        }
        Err(error) => {
            let message = format!("process.terminal: {PTMX}: {error}");
            return Err(Failure::invalid(message));
        }
    };
    open_pair(proc, &place, uid, size)
        .map_err(|error| Failure::internal(format!("cannot make a terminal: {error}")))
}

fn is_ptmx(file: &OwnedFd) -> io::Result<bool> {
    let status = fstat(file)?;
    let is_device = FileType::from_raw_mode(status.st_mode) == FileType::CharacterDevice;
    let number = (major(status.st_rdev), minor(status.st_rdev));
    Ok(is_device && number == PTMX_DEVICE && fstatfs(file)?.f_type == DEVPTS_MAGIC)
}

fn open_pair(
    proc: &OwnedFd,
    place: &OwnedFd,
    uid: u32,
    size: Option<(u16, u16)>,
) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = openat(
        proc,
        format!("self/fd/{}", place.as_raw_fd()),
        flags,
        Mode::empty(),
    )?;
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(
        &master,
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )?;
    fchown(&slave, Some(Uid::from_raw(uid)), None::<Gid>)?;
    if let Some((columns, rows)) = size {
        resize(&master, columns, rows)?;
    }
    Ok((master, slave))
}
