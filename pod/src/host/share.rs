//! The one directory tree of the host that a pod's guest may see.
//!
//! `<container>/rootfs` is a container's root, `<container>/mounts/<n>` the
//! source of its n-th mount: each a mount of its own, so that nothing beside
//! what the specification names is in the tree.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, StatxFlags, fstat, mkdirat, openat, statx, unlinkat,
};
use rustix::mount::{OpenTreeFlags, UnmountFlags, open_tree};
use thiserror::Error;

use super::mount::{self, Access, MountPoint};

/// File systems that are a door to the host's kernel rather than files. The
/// monitor has the host's root identity, if not its capabilities: it must not
/// get at their files.
const KERNEL_FILE_SYSTEMS: &[&str] = &[
    "bpf",
    "binfmt_misc",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "mqueue",
    "nfsd",
    "nsfs",
    "proc",
    "pstore",
    "resctrl",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "smackfs",
    "sysfs",
    "tracefs",
];

/// Why a path of the host cannot be shared with a guest.
#[derive(Debug, Error)]
pub enum SourceError {
    /// It cannot be opened.
    #[error("{}: {source}", path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It is not what can be shared.
    #[error("{}: {reason}", path.display())]
    Kind {
        /// The path.
        path: PathBuf,
        /// What it is instead.
        reason: &'static str,
    },
    /// The host's kernel would come with it.
    #[error(
        "{}: {} is the host's {fs_type}, which is not shared with a guest",
        path.display(),
        mount.display()
    )]
    KernelFileSystem {
        /// The path.
        path: PathBuf,
        /// Where the file system is mounted.
        mount: PathBuf,
        /// Its type.
        fs_type: String,
    },
}

/// A directory or file of the host, held open, that is to be in the share.
#[derive(Debug)]
pub struct Source {
    fd: OwnedFd,
    is_dir: bool,
    recursive: bool,
    access: Access,
}

impl Source {
    /// Opens a path. Symbolic links in it are followed once, here; what is
    /// found is what will be shared.
    ///
    /// # Errors
    /// [`SourceError`] when it is missing, or neither a directory nor a regular
    /// file, or part of the host's kernel interface.
    pub fn open(path: &Path, recursive: bool, read_only: bool) -> Result<Self, SourceError> {
        let failed = |source: rustix::io::Errno| SourceError::Open {
            path: path.to_owned(),
            source: source.into(),
        };
        let fd = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(failed)?;
        let stat = fstat(&fd).map_err(failed)?;
        let is_dir = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => true,
            FileType::RegularFile => false,
            other => {
                return Err(SourceError::Kind {
                    path: path.to_owned(),
                    reason: name_of(other),
                });
            }
        };
        refuse_kernel_file_systems(path, &fd, recursive)?;
        Ok(Self {
            fd,
            is_dir,
            recursive,
            access: if read_only {
                Access::ReadOnly
            } else {
                Access::ReadWrite
            },
        })
    }

    /// Whether it is a directory rather than a regular file.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.is_dir
    }

    /// A detached copy of the mount, restricted to what the monitor may do.
    fn tree(&self) -> io::Result<OwnedFd> {
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        if self.recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        let tree = open_tree(&self.fd, "", flags)?;
        mount::restrict(tree.as_fd(), self.access)?;
        Ok(tree)
    }
}

fn name_of(kind: FileType) -> &'static str {
    match kind {
        FileType::Socket => "is a socket: it cannot be reached from inside a guest",
        FileType::Fifo => "is a fifo: it cannot be reached from inside a guest",
        FileType::CharacterDevice | FileType::BlockDevice => {
            "is a device of the host: it does not exist inside a guest"
        }
        _ => "is neither a directory nor a regular file",
    }
}

/// Looks at the mount that holds `fd`, and with `recursive` at those below.
fn refuse_kernel_file_systems(
    path: &Path,
    fd: &OwnedFd,
    recursive: bool,
) -> Result<(), SourceError> {
    let failed = |source| SourceError::Open {
        path: path.to_owned(),
        source,
    };
    let resolved =
        std::fs::read_link(format!("/proc/thread-self/fd/{}", fd_number(fd))).map_err(failed)?;
    let holder = statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)
        .map_err(|error| failed(error.into()))?
        .stx_mnt_id;
    let mounts = super::mount_points().map_err(failed)?;
    let comes_along =
        |mount: &&MountPoint| mount.id == holder || recursive && mount.path.starts_with(&resolved);
    let of_the_kernel = |mount: &&MountPoint| KERNEL_FILE_SYSTEMS.contains(&mount.fs_type.as_str());
    match mounts.iter().filter(comes_along).find(of_the_kernel) {
        None => Ok(()),
        Some(mount) => Err(SourceError::KernelFileSystem {
            path: path.to_owned(),
            mount: mount.path.clone(),
            fs_type: mount.fs_type.clone(),
        }),
    }
}

fn fd_number(fd: &OwnedFd) -> i32 {
    use std::os::fd::AsRawFd;
    fd.as_raw_fd()
}

/// Why something could not be put into the share.
#[derive(Debug, Error)]
#[error("cannot share {what} with the guest: {source}")]
pub struct ShareError {
    what: String,
    source: io::Error,
}

impl ShareError {
    fn of(what: &str) -> impl FnOnce(io::Error) -> Self {
        let what = what.to_owned();
        move |source| Self { what, source }
    }
}

/// A pod's share.
#[derive(Debug)]
pub struct Share {
    /// The directory itself.
    writable: OwnedFd,
    /// The read-only mount on top of it, which the monitor has a copy of.
    view: OwnedFd,
}

impl Share {
    pub(super) fn new(writable: OwnedFd, view: OwnedFd) -> Self {
        Self { writable, view }
    }

    /// Shares a container's root and the sources of its mounts, by their number
    /// in the specification. A running monitor sees them at once.
    ///
    /// # Errors
    /// [`ShareError`]; nothing of the container is then in the share.
    pub fn add<'a>(
        &self,
        container: &str,
        rootfs: &Source,
        mounts: impl IntoIterator<Item = (usize, &'a Source)>,
    ) -> Result<(), ShareError> {
        // A name that is taken stays with whom it belongs to.
        self.make_dir(container)
            .map_err(ShareError::of(container))?;
        let result = self.fill(container, rootfs, mounts);
        if result.is_err() {
            self.remove(container);
        }
        result
    }

    fn fill<'a>(
        &self,
        container: &str,
        rootfs: &Source,
        mounts: impl IntoIterator<Item = (usize, &'a Source)>,
    ) -> Result<(), ShareError> {
        self.mount(&format!("{container}/rootfs"), rootfs)
            .map_err(ShareError::of("the root"))?;
        self.make_dir(&format!("{container}/mounts"))
            .map_err(ShareError::of(container))?;
        for (index, source) in mounts {
            self.mount(&format!("{container}/mounts/{index}"), source)
                .map_err(ShareError::of(&format!("mounts[{index}]")))?;
        }
        Ok(())
    }

    fn make_dir(&self, place: &str) -> io::Result<()> {
        Ok(mkdirat(&self.writable, place, Mode::from_raw_mode(0o755))?)
    }

    fn mount(&self, place: &str, source: &Source) -> io::Result<()> {
        if source.is_dir {
            self.make_dir(place)?;
        } else {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            openat(&self.writable, place, flags, Mode::from_raw_mode(0o644))?;
        }
        mount::attach(&source.tree()?, &self.view, place)
    }

    /// Takes a container out of the share. What the guest still has open stays
    /// with it until it lets go.
    pub fn remove(&self, container: &str) {
        // Best effort: the mount namespace's end takes what is left.
        self.unmount(&format!("{container}/rootfs"), AtFlags::REMOVEDIR);
        let mounts = format!("{container}/mounts");
        for name in self.names_in(&mounts) {
            let place = format!("{mounts}/{name}");
            self.unmount(&place, AtFlags::empty());
            let _ = unlinkat(&self.writable, &place, AtFlags::REMOVEDIR);
        }
        let _ = unlinkat(&self.writable, &mounts, AtFlags::REMOVEDIR);
        let _ = unlinkat(&self.writable, container, AtFlags::REMOVEDIR);
    }

    fn unmount(&self, place: &str, remove: AtFlags) {
        let path = format!("/proc/thread-self/fd/{}/{place}", fd_number(&self.view));
        let _ = rustix::mount::unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        let _ = unlinkat(&self.writable, place, remove);
    }

    fn names_in(&self, dir: &str) -> Vec<String> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(dir) = openat(&self.writable, dir, flags, Mode::empty()) else {
            return Vec::new();
        };
        let Ok(entries) = rustix::fs::Dir::read_from(&dir) else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str().ok().map(str::to_owned))
            .filter(|name| name != "." && name != "..")
            .collect()
    }
}
