//! Attributes of files: as the guest reads them, and as it sets them.

use std::io;

use fuse_backend_rs::abi::fuse_abi::stat64;
use fuse_backend_rs::api::filesystem::{Entry, SetattrValid};
use rustix::fs::{
    AtFlags, Gid, Mode, Nsecs, OFlags, Statx, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid,
    chmodat, chownat, ftruncate, makedev, utimensat,
};

use super::handles::Handle;
use super::inodes::Inode;
use super::reopen::ProcFd;

/// What the server sends to the guest.
pub(super) fn to_stat64(stat: &Statx) -> stat64 {
    let mut out = Entry::default().attr;
    out.st_dev = makedev(stat.stx_dev_major, stat.stx_dev_minor);
    out.st_ino = stat.stx_ino;
    out.st_mode = stat.stx_mode.into();
    out.st_nlink = stat.stx_nlink.into();
    out.st_uid = stat.stx_uid;
    out.st_gid = stat.stx_gid;
    out.st_rdev = makedev(stat.stx_rdev_major, stat.stx_rdev_minor);
    out.st_size = stat.stx_size.cast_signed();
    out.st_blksize = stat.stx_blksize.into();
    out.st_blocks = stat.stx_blocks.cast_signed();
    out.st_atime = stat.stx_atime.tv_sec;
    out.st_atime_nsec = stat.stx_atime.tv_nsec.into();
    out.st_mtime = stat.stx_mtime.tv_sec;
    out.st_mtime_nsec = stat.stx_mtime.tv_nsec.into();
    out.st_ctime = stat.stx_ctime.tv_sec;
    out.st_ctime_nsec = stat.stx_ctime.tv_nsec.into();
    out
}

/// Sets what `valid` names.
///
/// Set-id bits need no thought: Linux clears them at every change of length or
/// owner by a process without CAP_FSETID in the initial user namespace, as the
/// monitor is. That is what the guest is promised (`HANDLE_KILLPRIV_V2`).
pub(super) fn set(
    inode: &Inode,
    handle: Option<&Handle>,
    proc: &ProcFd,
    attributes: &stat64,
    valid: SetattrValid,
) -> io::Result<()> {
    if valid.contains(SetattrValid::MODE) {
        let mode = Mode::from_raw_mode(attributes.st_mode & 0o7777);
        chmodat(proc, proc.name(inode).as_c_str(), mode, AtFlags::empty())?;
    }
    if valid.intersects(SetattrValid::UID | SetattrValid::GID) {
        let owner = wanted(valid, SetattrValid::UID, attributes.st_uid).map(Uid::from_raw);
        let group = wanted(valid, SetattrValid::GID, attributes.st_gid).map(Gid::from_raw);
        let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
        chownat(inode, c"", owner, group, flags)?;
    }
    if valid.contains(SetattrValid::SIZE) {
        let len = u64::try_from(attributes.st_size)
            .map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
        match handle {
            Some(handle) => ftruncate(handle, len)?,
            None => ftruncate(proc.open(inode, OFlags::WRONLY)?, len)?,
        }
    }
    if valid.intersects(SetattrValid::ATIME | SetattrValid::MTIME) {
        let times = Timestamps {
            last_access: time(
                valid.contains(SetattrValid::ATIME),
                valid.contains(SetattrValid::ATIME_NOW),
                (attributes.st_atime, attributes.st_atime_nsec),
            ),
            last_modification: time(
                valid.contains(SetattrValid::MTIME),
                valid.contains(SetattrValid::MTIME_NOW),
                (attributes.st_mtime, attributes.st_mtime_nsec),
            ),
        };
        utimensat(proc, proc.name(inode).as_c_str(), &times, AtFlags::empty())?;
    }
    Ok(())
}

/// `id` if it is to be set; the highest value stands for none.
fn wanted(valid: SetattrValid, which: SetattrValid, id: u32) -> Option<u32> {
    (valid.contains(which) && id != u32::MAX).then_some(id)
}

fn time(set: bool, now: bool, (seconds, nanoseconds): (i64, i64)) -> Timespec {
    Timespec {
        tv_sec: seconds,
        tv_nsec: match (set, now) {
            (false, _) => Nsecs::from(UTIME_OMIT),
            (true, true) => Nsecs::from(UTIME_NOW),
            (true, false) => nanoseconds,
        },
    }
}
