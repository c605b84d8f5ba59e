//! What files in a read-only path may be used for.
//!
//! libcontainer makes such a path a mount that is read-only, and also one of which nothing
//! may be executed. The latter nobody asked for: a read-only `/usr` would be of no use. So
//! the flags that the path had before are given back, before the workload starts.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::Spec;
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, open, openat, statx};
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::ThreadNameSpaceType;

use super::enter::enter;
use super::report::Failure;

/// Bytes of mountinfo that are looked through.
const MAX_MOUNTS: u64 = 4 << 20;

/// Flags that libcontainer adds, as mountinfo calls them.
const ADDED: [(&str, u64); 3] = [
    ("nosuid", libc::MOUNT_ATTR_NOSUID),
    ("nodev", libc::MOUNT_ATTR_NODEV),
    ("noexec", libc::MOUNT_ATTR_NOEXEC),
];

/// Gives the read-only paths of a container that waits to be started the flags that they
/// had. The helper is in the container's mount namespace afterwards.
pub(super) fn restore_flags(pid: Pid, spec: &Spec) -> Result<(), Failure> {
    let paths = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.readonly_paths().as_deref())
        .unwrap_or_default();
    // Those of the kernel's file systems have all flags already.
    let is_of_files = |path: &&String| !path.starts_with("/proc/") && !path.starts_with("/sys/");
    let paths: Vec<_> = paths.iter().filter(is_of_files).collect();
    if paths.is_empty() {
        return Ok(());
    }
    let proc = enter_mounts(pid).map_err(Failure::internal)?;
    for path in paths {
        restore(&proc, Path::new(path)).map_err(|error| {
            Failure::internal(format!("linux.readonlyPaths: {path:?}: {error}"))
        })?;
    }
    Ok(())
}

/// Goes to where the container's mounts are; gives the agent's `/proc`.
fn enter_mounts(pid: Pid) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc = open("/proc", flags, Mode::empty())?;
    enter(pid, ThreadNameSpaceType::MOUNT)?;
    Ok(proc)
}

fn restore(proc: &OwnedFd, path: &Path) -> io::Result<()> {
    let place = match open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        // What is not there has not been made read-only.
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        place => place?,
    };
    let id = statx(&place, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?.stx_mnt_id;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let table = File::from(openat(proc, "self/mountinfo", flags, Mode::empty())?);
    let mut mounts = String::new();
    table.take(MAX_MOUNTS).read_to_string(&mut mounts)?;
    let added = flags_added(&mounts, id).ok_or(io::ErrorKind::NotFound)?;
    if added == 0 {
        return Ok(());
    }
    clear(place.as_fd(), added)
}

/// The flags of the mount `id` that the one below it does not have.
fn flags_added(mounts: &str, id: u64) -> Option<u64> {
    let find = |wanted: u64| {
        mounts.lines().find_map(|line| {
            let mut fields = line.split(' ');
            let id: u64 = fields.next()?.parse().ok()?;
            let parent: u64 = fields.next()?.parse().ok()?;
            let options = fields.nth(3)?;
            (id == wanted).then_some((parent, options))
        })
    };
    let (parent, _) = find(id)?;
    let (_, below) = find(parent)?;
    let has = |name: &str| below.split(',').any(|option| option == name);
    let added = ADDED.iter().filter(|(name, _)| !has(name));
    Some(added.fold(0, |all, (_, flag)| all | flag))
}

fn clear(mount: BorrowedFd<'_>, flags: u64) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: 0,
        attr_clr: flags,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the path is an empty C string, and the attributes are as long as said.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_those_of_the_mount_below() {
        let mounts = "20 1 0:18 / / rw,relatime - ext4 /dev/vda rw\n\
            21 20 0:18 /kept /kept ro,nosuid,nodev,noexec - ext4 /dev/vda rw\n\
            22 20 0:30 / /tmp rw,nosuid,nodev - tmpfs tmpfs rw\n\
            23 22 0:30 /x /tmp/x ro,nosuid,nodev,noexec - tmpfs tmpfs rw\n";
        let all = ADDED.iter().fold(0, |all, (_, flag)| all | flag);
        assert_eq!(flags_added(mounts, 21), Some(all));
        assert_eq!(flags_added(mounts, 23), Some(libc::MOUNT_ATTR_NOEXEC));
        assert_eq!(flags_added(mounts, 99), None);
        assert_eq!(flags_added("", 21), None);
    }
}
