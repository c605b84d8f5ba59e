//! What of the host goes into a share: directories and files, held open.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nacre_protocol::GUEST_SHARE;
use nacre_protocol::agent::{SharedDirectory, Submount};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, StatVfsMountFlags, StatxFlags, fstat, fstatvfs, statx,
};
use rustix::mount::{OpenTreeFlags, open_tree};
use thiserror::Error;

use super::mount::{self, Access, MountPoint};
use super::users::{Mapping, UserNamespace};

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
    options: Vec<&'static str>,
    users: Option<UserNamespace>,
    identity: Identity,
    below: Vec<Submount>,
    place: OnceLock<String>,
}

/// What is seen through a mount of a source. Of two that are equal, one mount does for both.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    below: Vec<MountPoint>,
    mapping: Option<Mapping>,
}

/// Mounts below a source that the guest is told of. It finds others once it comes to them.
const MAX_SUBMOUNTS: usize = 256;

/// Flags of a mount that hold for what is bound from it, and the options that say so.
const INHERITED: [(StatVfsMountFlags, &str); 4] = [
    (StatVfsMountFlags::NOSUID, "nosuid"),
    (StatVfsMountFlags::NODEV, "nodev"),
    (StatVfsMountFlags::NOEXEC, "noexec"),
    (StatVfsMountFlags::RDONLY, "ro"),
];

impl Source {
    /// Opens a path. Symbolic links in it are followed once, here; what is
    /// found is what will be shared, with `recursive` including what is mounted below.
    ///
    /// # Errors
    /// [`SourceError`] when it is missing, or neither a directory nor a regular
    /// file, or part of the host's kernel interface.
    pub fn open(path: &Path, recursive: bool, access: Access) -> Result<Self, SourceError> {
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
        let (resolved, mounts) = mounts_of(path, &fd, recursive)?;
        let flags = fstatvfs(&fd).map_err(failed)?.f_flag;
        let inherited = INHERITED.iter().filter(|(flag, _)| flags.contains(*flag));
        Ok(Self {
            options: inherited.map(|(_, option)| *option).collect(),
            fd,
            is_dir,
            recursive,
            access: if flags.contains(StatVfsMountFlags::RDONLY) {
                access.min(Access::Below)
            } else {
                access
            },
            users: None,
            below: submounts(&resolved, &mounts),
            identity: Identity {
                device: stat.st_dev,
                inode: stat.st_ino,
                below: mounts,
                mapping: None,
            },
            place: OnceLock::new(),
        })
    }

    /// The same, whose files belong to these users.
    ///
    /// # Errors
    /// The kernel's answer: `EINVAL` where a file system cannot be ID-mapped.
    pub(crate) fn with_users(mut self, users: UserNamespace) -> io::Result<Self> {
        self.identity.mapping = Some(users.mapping().clone());
        self.users = Some(users);
        // What cannot be is told now, by the name of the mount.
        self.tree()?;
        Ok(self)
    }

    /// Whether it is a directory rather than a regular file.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.is_dir
    }

    /// Options of the mount that it is on, which a mount of it has as well.
    #[must_use]
    pub fn options(&self) -> &[&'static str] {
        &self.options
    }

    /// What may be written to it.
    pub(super) fn access(&self) -> Access {
        self.access
    }

    /// What is seen through it.
    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Notes where the share has it; a source is shared once.
    pub(crate) fn set_place(&self, place: String) {
        // The first one stays, as does its mount.
        let _ = self.place.set(place);
    }

    /// Where the guest has it, once it is in the share.
    pub(crate) fn guest_path(&self) -> PathBuf {
        let place = self.place.get().map(String::as_str).unwrap_or_default();
        Path::new(GUEST_SHARE).join(place)
    }

    /// What the guest is to mount of a directory, once it is in the share.
    pub(crate) fn in_guest(&self) -> SharedDirectory {
        SharedDirectory {
            path: self.guest_path().display().to_string(),
            below: self.below.clone(),
            ..Default::default()
        }
    }

    /// A detached copy of the mount, restricted to what the monitor may do.
    pub(crate) fn tree(&self) -> io::Result<OwnedFd> {
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        if self.recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        let tree = open_tree(&self.fd, "", flags)?;
        if let Some(users) = &self.users {
            mount::map_users(tree.as_fd(), users)?;
        }
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

/// The path that was opened as `fd`, without links, and with `recursive` what is mounted below.
/// Refuses mounts of the kernel's among these and in the one that holds `fd`.
fn mounts_of(
    path: &Path,
    fd: &OwnedFd,
    recursive: bool,
) -> Result<(PathBuf, Vec<MountPoint>), SourceError> {
    let failed = |source| SourceError::Open {
        path: path.to_owned(),
        source,
    };
    let link = format!("/proc/thread-self/fd/{}", fd.as_raw_fd());
    let resolved = std::fs::read_link(link).map_err(failed)?;
    let holder = statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)
        .map_err(|error| failed(error.into()))?
        .stx_mnt_id;
    let is_below =
        |mount: &MountPoint| recursive && mount.id != holder && mount.path.starts_with(&resolved);
    let mut mounts = super::mount_points().map_err(failed)?;
    mounts.retain(|mount| mount.id == holder || is_below(mount));
    let of_the_kernel = |mount: &&MountPoint| KERNEL_FILE_SYSTEMS.contains(&mount.fs_type.as_str());
    if let Some(mount) = mounts.iter().find(of_the_kernel) {
        return Err(SourceError::KernelFileSystem {
            path: path.to_owned(),
            mount: mount.path.clone(),
            fs_type: mount.fs_type.clone(),
        });
    }
    mounts.retain(is_below);
    Ok((resolved, mounts))
}

/// What the guest is told of mounts below a path: parents first, and of those in one place the
/// last, which is the one that is seen.
fn submounts(resolved: &Path, mounts: &[MountPoint]) -> Vec<Submount> {
    let below = mounts.iter().filter_map(|mount| {
        let path = mount.path.strip_prefix(resolved).ok()?;
        (!path.as_os_str().is_empty()).then_some((path, mount))
    });
    let below = BTreeMap::from_iter(below).into_iter().take(MAX_SUBMOUNTS);
    let told = below.map(|(path, mount)| {
        let options: Vec<_> = mount.options.split(',').collect();
        let inherited = INHERITED.iter().map(|(_, option)| *option);
        Submount {
            path: path.as_os_str().as_bytes().to_vec(),
            options: inherited
                .filter(|option| options.contains(option))
                .map(str::to_owned)
                .collect(),
            ..Default::default()
        }
    });
    told.collect()
}
