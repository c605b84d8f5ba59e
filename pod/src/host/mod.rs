//! What a pod needs of the host's file system: a share and an empty directory.
//!
//! Both live on a small tmpfs in a mount namespace of the front door's own. The
//! kernel takes all of it away with the last process in it, however that ends.

mod closing;
mod disk;
mod mount;
mod namespaces;
mod share;
mod source;
mod users;

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, fstat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, OpenTreeFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use thiserror::Error;

pub(crate) use self::closing::ClosedAside;
pub use self::disk::{DiskError, HostDisk};
pub use self::mount::Access;
pub use self::namespaces::RuntimeNamespaces;
pub use self::share::{Share, ShareError};
pub use self::source::{Source, SourceError};
pub(crate) use self::users::{IdMapping, UserNamespace};

/// Where the tmpfs is mounted.
const RUN_DIR: &str = "/run/nacre";

/// Bytes of the tmpfs. It holds mount points, no content.
const TMPFS_SIZE: &str = "1m";

/// Directories and files of the tmpfs: some for each container's mounts.
const TMPFS_INODES: &str = "16k";

/// Why the host's file system could not be prepared.
#[derive(Debug, Error)]
pub enum HostError {
    /// The directory below `/run` is not what it has to be.
    #[error("{}: {reason}", path.display())]
    RunDir {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The kernel refused.
    #[error("cannot prepare {}: {what}: {source}", RUN_DIR)]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl HostError {
    fn kernel<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Kernel {
            what,
            source: source.into(),
        }
    }
}

/// A mount namespace of the caller's own with a share and a jail in it.
#[derive(Debug)]
pub struct PrivateMounts {
    share: Share,
    share_path: PathBuf,
    jail_path: PathBuf,
}

impl PrivateMounts {
    /// The share of the pod.
    #[must_use]
    pub fn share(&self) -> &Share {
        &self.share
    }

    /// Path of the share, read-only, for the monitor.
    #[must_use]
    pub fn share_path(&self) -> &Path {
        &self.share_path
    }

    /// Path of an empty directory on which the monitor mounts its root.
    #[must_use]
    pub fn jail_path(&self) -> &Path {
        &self.jail_path
    }
}

/// Moves the calling thread into a mount namespace of its own and lays out the
/// share there. Call it while the process has no other thread: those would stay
/// behind.
///
/// # Errors
/// [`HostError`]; without privilege that is a refusal of the namespace.
pub fn enter_private_mounts() -> Result<PrivateMounts, HostError> {
    enter_below(Path::new(RUN_DIR))
}

fn enter_below(run_dir: &Path) -> Result<PrivateMounts, HostError> {
    // SAFETY: a new mount namespace changes no descriptor and no memory.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }
        .map_err(HostError::kernel("mount namespace (root is needed)"))?;
    let downstream = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", downstream).map_err(HostError::kernel("mount propagation"))?;

    let place = open_run_dir(run_dir)?;
    let tmpfs = new_tmpfs().map_err(HostError::kernel("tmpfs"))?;
    mount::attach(&tmpfs, &place, "").map_err(HostError::kernel("tmpfs"))?;
    for dir in ["share", "jail"] {
        rustix::fs::mkdirat(&tmpfs, dir, Mode::from_raw_mode(0o755))
            .map_err(HostError::kernel("directories"))?;
    }
    let share = open_share(&tmpfs).map_err(HostError::kernel("share"))?;
    let share_path = run_dir.join("share");
    mount_change(&share_path, MountPropagationFlags::SHARED)
        .map_err(HostError::kernel("propagation of the share"))?;
    Ok(PrivateMounts {
        share,
        share_path,
        jail_path: run_dir.join("jail"),
    })
}

/// Opens the directory below `/run`, made if missing, and makes sure that it is
/// a directory in which only root can put something.
fn open_run_dir(path: &Path) -> Result<OwnedFd, HostError> {
    let refuse = |reason| HostError::RunDir {
        path: path.to_owned(),
        reason,
    };
    match rustix::fs::mkdir(path, Mode::RWXU) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(HostError::kernel("directory")(error)),
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::open(path, flags, Mode::empty())
        .map_err(|_| refuse("is not a directory (remove it and try again)"))?;
    let stat = fstat(&dir).map_err(HostError::kernel("directory"))?;
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(refuse("belongs to another user (remove it and try again)"));
    }
    if stat.st_mode & 0o022 != 0 {
        return Err(refuse("is writable by others (chmod it to 0700)"));
    }
    Ok(dir)
}

fn new_tmpfs() -> Result<OwnedFd, rustix::io::Errno> {
    let tmpfs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&tmpfs, "source", "nacre")?;
    fsconfig_set_string(&tmpfs, "size", TMPFS_SIZE)?;
    fsconfig_set_string(&tmpfs, "nr_inodes", TMPFS_INODES)?;
    fsconfig_set_string(&tmpfs, "mode", "0700")?;
    fsconfig_create(&tmpfs)?;
    fsmount(
        &tmpfs,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )
}

/// Mounts the share's directory onto itself, read-only, and keeps one
/// descriptor of either side: mount points are made through the lower one.
fn open_share(tmpfs: &OwnedFd) -> Result<Share, io::Error> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let writable = rustix::fs::openat(tmpfs, "share", flags, Mode::empty())?;
    let view = rustix::mount::open_tree(
        &writable,
        "",
        OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH,
    )?;
    mount::restrict(view.as_fd(), Access::ReadOnly)?;
    mount::attach(&view, &writable, "")?;
    Share::new(writable, view)
}

/// Mount points of the calling thread's mount namespace, from its mountinfo.
fn mount_points() -> io::Result<Vec<mount::MountPoint>> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo")?;
    Ok(table.lines().filter_map(mount::MountPoint::parse).collect())
}

#[cfg(test)]
#[path = "host_test.rs"]
mod tests;
