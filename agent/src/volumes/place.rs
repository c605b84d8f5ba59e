//! Where the copy of a volume is: a small tmpfs of its own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// Directory of all copies, which only the agent sees.
const VOLUMES: &str = "/run/nacre/volumes";

/// A volume that the host has copied is of 4 MiB and 1,000 files at most. There is room
/// for two of twice that: while a volume is renewed, the old content is there, too.
const OPTIONS: &std::ffi::CStr = c"size=16m,nr_inodes=4096,mode=755";

/// The tmpfs of a volume, unmounted when dropped. Containers keep what they have of it.
#[derive(Debug)]
pub(super) struct Place(PathBuf);

impl Place {
    /// Mounts an empty one. Its name is new: one that has been left may still be written for a
    /// while, also when the same volume comes again.
    pub(super) fn make() -> io::Result<Self> {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let path = Path::new(VOLUMES).join(number.to_string());
        fs::create_dir_all(VOLUMES)?;
        fs::create_dir(&path)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        if let Err(error) = mount("tmpfs", &path, "tmpfs", flags, OPTIONS) {
            let _ = fs::remove_dir(&path);
            return Err(error.into());
        }
        Ok(Self(path))
    }

    /// Its directory.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let gone = unmount(&self.0, UnmountFlags::DETACH)
            .map_err(io::Error::from)
            .and_then(|()| fs::remove_dir(&self.0));
        if let Err(error) = gone {
            log::error!("{}: {error}", self.0.display());
        }
    }
}
