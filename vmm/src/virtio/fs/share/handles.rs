//! The files and directories that the guest has open.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::budget::Slot;

/// An open file.
#[derive(Debug)]
pub(super) struct Handle {
    /// The inode that it was opened by.
    inode: u64,
    file: File,
    appends: AtomicBool,
    /// Held while a directory's position matters.
    position: Mutex<()>,
    _slot: Slot,
}

impl Handle {
    pub(super) fn new(inode: u64, file: File, flags: OFlags, slot: Slot) -> Self {
        Self {
            inode,
            file,
            appends: AtomicBool::new(flags.contains(OFlags::APPEND)),
            position: Mutex::new(()),
            _slot: slot,
        }
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Keeps others from moving the position.
    pub(super) fn hold_position(&self) -> MutexGuard<'_, ()> {
        self.position.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows what the guest's process has made of O_APPEND with `fcntl(2)`:
    /// with it the host ignores where a write wants to go.
    pub(super) fn set_appending(&self, append: bool) -> io::Result<()> {
        if self.appends.load(Ordering::Relaxed) != append {
            let mut flags = fcntl_getfl(&self.file)?;
            flags.set(OFlags::APPEND, append);
            fcntl_setfl(&self.file, flags)?;
            self.appends.store(append, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// All that the guest has open.
#[derive(Debug, Default)]
pub(super) struct Handles(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    by_number: BTreeMap<u64, Arc<Handle>>,
    last: u64,
}

impl Handles {
    /// Gives an open file its number, which is never used again.
    pub(super) fn insert(&self, handle: Handle) -> u64 {
        let mut table = self.lock();
        table.last += 1;
        let number = table.last;
        table.by_number.insert(number, Arc::new(handle));
        number
    }

    /// The open file of that number, opened by that inode.
    ///
    /// # Errors
    /// EBADF when there is none.
    pub(super) fn get(&self, number: u64, inode: u64) -> io::Result<Arc<Handle>> {
        self.lock()
            .by_number
            .get(&number)
            .filter(|handle| handle.inode == inode)
            .map(Arc::clone)
            .ok_or_else(bad)
    }

    /// The guest has closed it.
    ///
    /// # Errors
    /// EBADF when there is none.
    pub(super) fn release(&self, number: u64, inode: u64) -> io::Result<()> {
        let handle = self.get(number, inode)?;
        self.lock().by_number.remove(&number);
        // Closed with the table unlocked: it may take the host a while.
        drop(handle);
        Ok(())
    }

    /// The guest has closed everything.
    pub(super) fn clear(&self) {
        let closed = std::mem::take(&mut self.lock().by_number);
        drop(closed);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lock().by_number.len()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bad() -> io::Error {
    io::Error::from_raw_os_error(libc::EBADF)
}
