//! A file of a cgroup whose changes the kernel tells of.

use std::fs::File;
use std::io::{self, Read, Seek, Take};
use std::os::fd::OwnedFd;
use std::path::Path;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::cgroup::MAX_FILE;
use crate::poll;

/// `cgroup.events` or `memory.events` of a cgroup.
pub(super) struct WatchedFile {
    file: File,
    changes: AsyncFd<OwnedFd>,
}

impl WatchedFile {
    /// Opens a file that tells of its changes.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let changes = poll::register_priority(file.try_clone()?.into())?;
        Ok(Self { file, changes })
    }

    /// Waits until `look` finds in the file what it looks for.
    pub(super) async fn until<T>(
        &mut self,
        mut look: impl FnMut(&str) -> Option<T>,
    ) -> io::Result<T> {
        loop {
            // Reading also says to the kernel which changes have been seen.
            if let Some(found) = look(&self.read()?) {
                return Ok(found);
            }
            let mut changed = self.changes.ready(Interest::PRIORITY).await?;
            changed.clear_ready();
        }
    }

    fn read(&mut self) -> io::Result<String> {
        self.file.rewind()?;
        let mut text = String::new();
        let mut bounded: Take<&File> = (&self.file).take(MAX_FILE);
        bounded.read_to_string(&mut text)?;
        Ok(text)
    }
}
