//! Block devices of the host that a container is handed.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use nacre_vmm::config::DiskConfig;
use rustix::fs::{
    Dev, FileType, Mode, OFlags, SeekFrom, fstat, ioctl_blksszget, major, makedev, minor, mknodat,
    openat, seek,
};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use thiserror::Error;

use super::closing::ClosedAside;
use super::mount::{self, Access};

/// Why a block device cannot be handed over.
#[derive(Debug, Error)]
pub enum DiskError {
    /// There is none, or it cannot be opened.
    #[error("{name}: cannot open the host's block device: {source}")]
    Open {
        /// Which.
        name: String,
        /// The system's answer.
        source: io::Error,
    },
    /// It is something else.
    #[error("{0}: is no block device of the host")]
    Kind(String),
    /// The host itself, or another container, has it mounted or otherwise in use.
    #[error("{0}: the host's block device is in use: unmount it on the host first")]
    Busy(String),
}

impl DiskError {
    fn open<E: Into<io::Error>>(name: &str) -> impl FnOnce(E) -> Self {
        move |source| Self::Open {
            name: name.to_owned(),
            source: source.into(),
        }
    }
}

/// An open block device of the host.
#[derive(Debug)]
pub struct HostDisk {
    /// Has it open without `O_EXCL`, so that the number stays its own.
    held: Arc<ClosedAside>,
    device: Dev,
    read_only: bool,
    bytes: u64,
    block_size: u32,
}

impl HostDisk {
    /// Opens the device with this number, wherever its node is, if it has one.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn open_number(major: u32, minor: u32, read_only: bool) -> Result<Self, DiskError> {
        let name = format!("{major}:{minor}");
        let node = new_node(makedev(major, minor)).map_err(DiskError::open(&name))?;
        Self::open(&node, Path::new(NODE), &name, read_only)
    }

    /// Opens the device whose node is at `path`.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn open_path(path: &Path, read_only: bool) -> Result<Self, DiskError> {
        let name = path.display().to_string();
        // Opening anything else may have effects of its own.
        let kind = fs::metadata(path).map_err(DiskError::open(&name))?;
        if FileType::from_raw_mode(std::os::unix::fs::MetadataExt::mode(&kind))
            != FileType::BlockDevice
        {
            return Err(DiskError::Kind(name));
        }
        Self::open(rustix::fs::CWD, path, &name, read_only)
    }

    fn open(dir: impl AsFd, path: &Path, name: &str, read_only: bool) -> Result<Self, DiskError> {
        let open = |read_only| {
            let flags = access(read_only) | OFlags::CLOEXEC | OFlags::NONBLOCK;
            openat(&dir, path, flags, Mode::empty()).map_err(DiskError::open(name))
        };
        let mut fd = open(true)?;
        let stat = fstat(&fd).map_err(DiskError::open(name))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::BlockDevice {
            return Err(DiskError::Kind(name.to_owned()));
        }
        let device = stat.st_rdev;
        let read_only = read_only || is_read_only(device);
        if !read_only {
            fd = open(false)?;
        }
        let bytes = seek(&fd, SeekFrom::End(0)).map_err(DiskError::open(name))?;
        let block_size = ioctl_blksszget(&fd).map_err(DiskError::open(name))?;
        Ok(Self {
            held: Arc::new(ClosedAside::new(fd)),
            device,
            read_only,
            bytes,
            block_size,
        })
    }

    /// Number of the device on the host.
    #[must_use]
    pub fn number(&self) -> (u32, u32) {
        (major(self.device), minor(self.device))
    }

    /// Whether the guest may not write to it.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn name(&self) -> String {
        format!("{}:{}", major(self.device), minor(self.device))
    }

    /// What the monitor is told of it.
    pub(crate) fn config(&self) -> DiskConfig {
        DiskConfig {
            bytes: self.bytes,
            block_size: self.block_size,
            read_only: self.read_only,
            serial: self.name(),
        }
    }

    /// What keeps the monitor from being the last that has the device open: its close would
    /// wait until all that the guest has written is on it.
    pub(crate) fn hold(&self) -> Arc<ClosedAside> {
        Arc::clone(&self.held)
    }

    /// A descriptor for the monitor, which cannot open the device anew through it. With `alone`
    /// the host can neither mount the device nor has it mounted, as long as that is open.
    ///
    /// # Errors
    /// [`DiskError::Busy`], or [`DiskError::Open`].
    pub(crate) fn hand_over(&self, alone: bool) -> Result<OwnedFd, DiskError> {
        let mut flags = access(self.read_only) | OFlags::CLOEXEC;
        if alone {
            flags |= OFlags::EXCL;
        }
        match open_new_node(self.device, flags) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                Err(DiskError::Busy(self.name()))
            }
            opened => opened.map_err(DiskError::open(&self.name())),
        }
    }
}

fn access(read_only: bool) -> OFlags {
    if read_only {
        OFlags::RDONLY
    } else {
        OFlags::RDWR
    }
}

/// Name of a node that is made for a number.
const NODE: &str = "disk";

/// A directory that nobody else sees, with a node for the device in it. It goes with its
/// descriptor.
fn new_node(device: Dev) -> rustix::io::Result<OwnedFd> {
    let tmpfs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&tmpfs)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let dir = fsmount(&tmpfs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    mknodat(
        &dir,
        NODE,
        FileType::BlockDevice,
        Mode::RUSR | Mode::WUSR,
        device,
    )?;
    Ok(dir)
}

/// Opens a device through a node that opens it this once. Whoever has the descriptor, and sees
/// it in procfs, could else open that again: for writing too, or without `O_EXCL`.
fn open_new_node(device: Dev, flags: OFlags) -> io::Result<OwnedFd> {
    let dir = new_node(device)?;
    let fd = openat(&dir, NODE, flags, Mode::empty())?;
    // The descriptor keeps the mount, and the mount its flags.
    mount::restrict(dir.as_fd(), Access::ReadWrite)?;
    Ok(fd)
}

/// Whether the host's own driver lets nobody write, such as a loop device's that was made so.
fn is_read_only(device: Dev) -> bool {
    let path = format!("/sys/dev/block/{}:{}/ro", major(device), minor(device));
    // A partition's file has the same name; without one, writing will tell.
    fs::read_to_string(path).is_ok_and(|flag| flag.trim() == "1")
}

#[cfg(test)]
impl HostDisk {
    /// One that is not there, for what never opens it.
    pub(crate) fn imagined(major: u32, minor: u32, read_only: bool) -> Self {
        Self {
            held: Arc::new(ClosedAside::new(
                fs::File::open("/dev/null").unwrap().into(),
            )),
            device: makedev(major, minor),
            read_only,
            bytes: 0,
            block_size: 512,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_block_device_is_refused_by_its_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for path in [file.path(), Path::new("/dev/null"), Path::new("/")] {
            let error = HostDisk::open_path(path, true).unwrap_err().to_string();
            assert!(error.contains("is no block device"), "{error}");
            assert!(error.starts_with(&path.display().to_string()), "{error}");
        }
        let error = HostDisk::open_path(Path::new("/nonexistent"), true).unwrap_err();
        assert!(matches!(error, DiskError::Open { .. }), "{error}");
    }

    #[test]
    fn a_number_without_a_device_is_refused() {
        // No driver has this number. Without privilege, no node can be made.
        let error = HostDisk::open_number(511, 4095, false).unwrap_err();
        assert!(error.to_string().starts_with("511:4095: "), "{error}");
    }
}
