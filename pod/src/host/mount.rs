//! The few mount operations that the share is made of.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::mount::{MoveMountFlags, move_mount};

use super::users::UserNamespace;

/// What may be written through a mount; each more than the one before.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Access {
    /// Nothing, neither to it nor to what is mounted below.
    ReadOnly,
    /// What is mounted below, unless that is read-only itself.
    Below,
    /// All of it.
    ReadWrite,
}

/// Takes from a detached mount, and all below it, what the monitor does not
/// need, and cuts it off from mounts made later at its origin.
///
/// The flags are locked in the monitor's mount namespace, because that belongs
/// to another user namespace (see mount_namespaces(7)).
pub(super) fn restrict(tree: BorrowedFd<'_>, access: Access) -> io::Result<()> {
    let bare = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    let read_only = libc::MOUNT_ATTR_RDONLY;
    let (top, all) = match access {
        Access::ReadOnly => (0, bare | read_only),
        Access::Below => (read_only, bare),
        Access::ReadWrite => (0, bare),
    };
    let set = |attributes| libc::mount_attr {
        attr_set: attributes,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    set_attributes(tree, &set(all), true)?;
    if top == 0 {
        return Ok(());
    }
    set_attributes(tree, &set(top), false)
}

/// Gives the files of a detached mount other owners.
pub(super) fn map_users(tree: BorrowedFd<'_>, users: &UserNamespace) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::from(users.as_fd().as_raw_fd().unsigned_abs()),
    };
    set_attributes(tree, &attributes, users.is_recursive())
}

fn set_attributes(
    tree: BorrowedFd<'_>,
    attributes: &libc::mount_attr,
    recursive: bool,
) -> io::Result<()> {
    let below = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, and the attributes are as long as said.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | below,
            std::ptr::from_ref(attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Attaches a detached mount at `path` below `dir`; the empty path is `dir`.
pub(super) fn attach(tree: &OwnedFd, dir: impl AsFd, path: &str) -> io::Result<()> {
    let mut flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    if path.is_empty() {
        flags |= MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    }
    Ok(move_mount(tree, "", dir, path, flags)?)
}

/// One line of `/proc/PID/mountinfo`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct MountPoint {
    /// Its number, as statx(2) tells it.
    pub(super) id: u64,
    /// Device and directory that it shows, as the kernel writes them.
    pub(super) shows: (String, String),
    /// Where it is mounted.
    pub(super) path: PathBuf,
    /// Options of the mount.
    pub(super) options: String,
    /// Type of the file system.
    pub(super) fs_type: String,
}

impl MountPoint {
    /// Reads a line as proc_pid_mountinfo(5) describes it.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ');
        let id = fields.next()?.parse().ok()?;
        let _parent = fields.next()?;
        Some(Self {
            id,
            shows: (fields.next()?.to_owned(), fields.next()?.to_owned()),
            path: unescape(fields.next()?),
            options: fields.next()?.to_owned(),
            fs_type: after.split(' ').next()?.to_owned(),
        })
    }
}

/// Undoes the kernel's `\ooo` for spaces, tabs, newlines and backslashes.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = (byte == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(value) => {
                bytes.push(value);
                rest = &tail[3..];
            }
            None => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo_gives_path_and_type() {
        let line = r"36 35 98:0 /mnt1 /mnt\0402\134x rw,noatime master:1 - ext3 /dev/root rw";
        let point = MountPoint::parse(line).unwrap();
        assert_eq!(point.id, 36);
        assert_eq!(point.path, PathBuf::from(r"/mnt 2\x"));
        assert_eq!(point.shows, ("98:0".into(), "/mnt1".into()));
        assert_eq!(point.options, "rw,noatime");
        assert_eq!(point.fs_type, "ext3");
    }

    #[test]
    fn a_line_that_is_cut_off_is_left_out() {
        assert_eq!(MountPoint::parse("36 35 98:0 /mnt1 /mnt2 rw"), None);
        assert_eq!(MountPoint::parse("36 35 - ext3"), None);
    }
}
