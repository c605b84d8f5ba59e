//! What one run has for itself in the cache's folder: downloads, a layer that is being
//! unpacked, the bundle, and what the container writes.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};

use crate::remove::remove_tree;

/// A directory that goes with its run.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    /// Tells other runs that this one lives.
    _lock: OwnedFd,
}

impl RunDir {
    /// Makes one below `runs`. The caller keeps others from looking there meanwhile.
    pub(crate) fn make(runs: &Path) -> io::Result<Self> {
        let mut number = 0_u32;
        let path = loop {
            let path = runs.join(format!("{}.{number}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                // Of a process in another namespace, or of one that was killed.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                answer => break answer.map(|()| path)?,
            }
        };
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lock = rustix::fs::open(&path, flags, Mode::empty())?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self { path, _lock: lock })
    }

    /// A name in it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes a directory in it.
    ///
    /// # Errors
    /// The system's answer; also when it is there already.
    pub fn make_dir(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.path(name);
        fs::create_dir(&path)?;
        Ok(path)
    }

    /// Removes a directory in it, if it is there.
    pub(crate) fn remove_dir(&self, name: &str) -> io::Result<()> {
        match remove_tree(&self.path(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            answer => answer,
        }
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.path) {
            // The next run tries again.
            log::warn!("{}: cannot be removed: {error}", self.path.display());
        }
    }
}
