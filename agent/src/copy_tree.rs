//! Directories copied within the guest, such as they are: with owners, modes, times and
//! extended attributes.
//!
//! Symbolic links are copied, never followed. How much is copied is bounded by the file
//! system that it is copied to.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RawDir, Stat, Timespec, Timestamps, XattrFlags, openat, statat,
};
use rustix::io::Errno;

/// Copies what is in a directory, which may have `depth` levels of others below it. The walk
/// holds two descriptors and 8 KiB of the stack for each.
pub(crate) fn directory(from: &File, to: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
    let mut buffer = [MaybeUninit::uninit(); 8192];
    let mut entries = RawDir::new(from, &mut buffer);
    while let Some(listed) = entries.next() {
        let listed = listed?;
        let name = listed.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            entry(from, to, name, depth).map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", name.to_string_lossy()))
            })?;
        }
    }
    Ok(())
}

/// Copies what is called `name` in one directory into another, as [`directory`].
pub(crate) fn entry(from: &File, to: BorrowedFd<'_>, name: &CStr, depth: usize) -> io::Result<()> {
    let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let mode = Mode::from_raw_mode(stat.st_mode);
    // Whoever changes the name meanwhile gets an error, not another file.
    let open = |dir: BorrowedFd<'_>, flags| {
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        openat(dir, name, flags, Mode::RWXU)
    };
    let copy = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            let depth = depth
                .checked_sub(1)
                .ok_or_else(|| io::Error::other("directories within each other without end"))?;
            rustix::fs::mkdirat(to, name, Mode::RWXU)?;
            let (source, copy) = (
                File::from(open(from.as_fd(), OFlags::DIRECTORY)?),
                open(to, OFlags::DIRECTORY)?,
            );
            directory(&source, copy.as_fd(), depth)?;
            copy_attributes(&source, &copy)?;
            copy
        }
        FileType::RegularFile => {
            let mut source = File::from(open(from.as_fd(), OFlags::RDONLY)?);
            let mut copy = File::from(open(to, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?);
            io::copy(&mut source, &mut copy)?;
            copy_attributes(&source, &copy)?;
            copy.into()
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from, name, Vec::new())?;
            rustix::fs::symlinkat(&target, to, name)?;
            let (uid, gid) = owner(&stat);
            rustix::fs::chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            return Ok(());
        }
        // Of a socket nobody listens on the copy.
        FileType::Socket => return Ok(()),
        kind => {
            rustix::fs::mknodat(to, name, kind, mode, stat.st_rdev)?;
            let (uid, gid) = owner(&stat);
            rustix::fs::chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            return Ok(());
        }
    };
    // Changing the owner takes set-user-ID away.
    own(copy.as_fd(), &stat)?;
    rustix::fs::fchmod(&copy, mode)?;
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    Ok(rustix::fs::futimens(&copy, &times)?)
}

fn time(seconds: i64, nanoseconds: u64) -> Timespec {
    Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds.cast_signed(),
    }
}

fn owner(stat: &Stat) -> (rustix::fs::Uid, rustix::fs::Gid) {
    (
        rustix::fs::Uid::from_raw(stat.st_uid),
        rustix::fs::Gid::from_raw(stat.st_gid),
    )
}

/// Gives a file the owner that another one has.
pub(crate) fn own(fd: BorrowedFd<'_>, stat: &Stat) -> io::Result<()> {
    let (uid, gid) = owner(stat);
    Ok(rustix::fs::fchown(fd, Some(uid), Some(gid))?)
}

/// Copies extended attributes that a tmpfs can have, file capabilities among them.
fn copy_attributes(from: &impl AsFd, to: &impl AsFd) -> io::Result<()> {
    // XATTR_LIST_MAX and XATTR_SIZE_MAX of linux/limits.h.
    let mut names = vec![0; 64 << 10];
    let listed = match rustix::fs::flistxattr(from, &mut names[..]) {
        Err(Errno::NOTSUP) => return Ok(()),
        listed => listed?,
    };
    let mut value = vec![0; 64 << 10];
    for name in names[..listed]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let length = rustix::fs::fgetxattr(from, name, &mut value[..])?;
        match rustix::fs::fsetxattr(to, name, &value[..length], XattrFlags::empty()) {
            Ok(()) | Err(Errno::NOTSUP) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::Path;

    use super::*;

    fn copy(from: &Path, to: &Path) -> io::Result<()> {
        directory(&File::open(from)?, File::open(to)?.as_fd(), 2)
    }

    #[test]
    fn files_links_and_directories_are_copied_as_they_are() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = |name: &str| from.path().join(name);
        fs::create_dir(path("dir")).unwrap();
        fs::write(path("dir/file"), "text").unwrap();
        fs::set_permissions(path("dir/file"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::set_permissions(path("dir"), fs::Permissions::from_mode(0o1777)).unwrap();
        symlink("/etc/shadow", path("link")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        copy(from.path(), to.path()).unwrap();
        let file = to.path().join("dir/file");
        assert_eq!(fs::read_to_string(&file).unwrap(), "text");
        let (original, copied) = (fs::metadata(path("dir/file")), fs::metadata(&file));
        let (original, copied) = (original.unwrap(), copied.unwrap());
        assert_eq!(copied.mode(), original.mode());
        assert_eq!(copied.modified().unwrap(), original.modified().unwrap());
        assert_eq!(
            fs::metadata(to.path().join("dir")).unwrap().mode() & 0o7777,
            0o1777
        );
        let link = fs::read_link(to.path().join("link")).unwrap();
        assert_eq!(link, Path::new("/etc/shadow"));
        assert!(!to.path().join("socket").exists());
    }

    #[test]
    fn directories_deeper_than_allowed_are_refused() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(from.path().join("1/2")).unwrap();
        copy(from.path(), to.path()).unwrap();
        fs::create_dir(from.path().join("1/2/3")).unwrap();
        let to = tempfile::tempdir().unwrap();
        let error = copy(from.path(), to.path()).unwrap_err();
        assert!(error.to_string().ends_with("without end"), "{error}");
    }
}
