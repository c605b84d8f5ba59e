//! The files that the guest's kernel remembers.
//!
//! Each is held by a descriptor (`O_PATH`), so that it stays the same file
//! whatever becomes of its name, until the guest forgets it; that pins its
//! mount as well. The number that the guest knows it by is never used again.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, FileType, Statx, StatxFlags, statx};

use super::budget::Slot;
use super::cache::Seen;

/// Number of the share's root (`FUSE_ROOT_ID`).
pub(super) const ROOT: u64 = 1;

/// What makes a file the same file as long as it is held. The same file in two
/// mounts is two: they may differ in what they allow.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Key {
    mount: u64,
    device: (u32, u32),
    inode: u64,
}

/// A file that the guest remembers.
#[derive(Debug)]
pub(super) struct Inode {
    pub(super) number: u64,
    pub(super) kind: FileType,
    /// What the guest's page cache may hold of it.
    pub(super) seen: Seen,
    fd: OwnedFd,
    key: Key,
    _slot: Slot,
}

impl AsFd for Inode {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Inode {
    /// Its attributes.
    pub(super) fn stat(&self) -> io::Result<Statx> {
        stat(&self.fd)
    }

    /// Whether it is in another mount than its directory `parent`.
    pub(super) fn is_submount_of(&self, parent: &Self) -> bool {
        self.kind == FileType::Directory && self.key.mount != parent.key.mount
    }
}

/// Attributes of an open file, with the mount that it is in.
pub(super) fn stat(fd: impl AsFd) -> io::Result<Statx> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    Ok(statx(fd, c"", flags, wanted)?)
}

/// The type in a `st_mode`.
pub(super) fn kind(stat: &Statx) -> FileType {
    FileType::from_raw_mode(stat.stx_mode.into())
}

/// All that the guest remembers.
#[derive(Debug)]
pub(super) struct Inodes(Mutex<Table>);

#[derive(Debug)]
struct Table {
    by_number: BTreeMap<u64, Entry>,
    by_key: BTreeMap<Key, u64>,
    next: u64,
}

#[derive(Debug)]
struct Entry {
    inode: Arc<Inode>,
    /// How often the guest was told of it, less what it has forgotten.
    lookups: u64,
}

impl Inodes {
    /// Only the root, which is never forgotten.
    pub(super) fn new(root: OwnedFd, stat: &Statx, slot: Slot) -> Self {
        let inodes = Self(Mutex::new(Table {
            by_number: BTreeMap::new(),
            by_key: BTreeMap::new(),
            next: ROOT,
        }));
        inodes.remember(root, stat, slot);
        inodes
    }

    /// The file of that number.
    ///
    /// # Errors
    /// EBADF for one that the guest was not told of, or has forgotten.
    pub(super) fn get(&self, number: u64) -> io::Result<Arc<Inode>> {
        self.lock()
            .by_number
            .get(&number)
            .map(|entry| Arc::clone(&entry.inode))
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }

    /// Counts that the guest is told of a file once more, or for the first time.
    pub(super) fn remember(&self, fd: OwnedFd, stat: &Statx, slot: Slot) -> Arc<Inode> {
        let key = Key {
            mount: stat.stx_mnt_id,
            device: (stat.stx_dev_major, stat.stx_dev_minor),
            inode: stat.stx_ino,
        };
        let mut table = self.lock();
        let table = &mut *table;
        if let Some(known) = table
            .by_key
            .get(&key)
            .and_then(|number| table.by_number.get_mut(number))
        {
            known.lookups = known.lookups.saturating_add(1);
            return Arc::clone(&known.inode);
        }
        let inode = Arc::new(Inode {
            number: table.next,
            kind: kind(stat),
            seen: Seen::default(),
            fd,
            key,
            _slot: slot,
        });
        // Not even at a billion files a second would these ever run out.
        table.next += 1;
        table.by_key.insert(key, inode.number);
        table.by_number.insert(
            inode.number,
            Entry {
                inode: Arc::clone(&inode),
                lookups: 1,
            },
        );
        inode
    }

    /// Takes `count` off what the guest was told of a file.
    pub(super) fn forget(&self, number: u64, count: u64) {
        let forgotten = self.lock().forget(number, count);
        // Closed with the table unlocked: it may take the host a while.
        drop(forgotten);
    }

    /// The guest remembers nothing but the root.
    pub(super) fn clear(&self) {
        let mut table = self.lock();
        let root = table.by_number.remove(&ROOT);
        let forgotten = std::mem::take(&mut table.by_number);
        table.by_key.clear();
        if let Some(root) = root {
            table.by_key.insert(root.inode.key, ROOT);
            table.by_number.insert(ROOT, root);
        }
        drop(table);
        drop(forgotten);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let table = self.lock();
        assert_eq!(table.by_number.len(), table.by_key.len());
        table.by_number.len()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn forget(&mut self, number: u64, count: u64) -> Option<Arc<Inode>> {
        let entry = self.by_number.get_mut(&number)?;
        entry.lookups = entry.lookups.saturating_sub(count);
        if entry.lookups > 0 || number == ROOT {
            return None;
        }
        let entry = self.by_number.remove(&number)?;
        self.by_key.remove(&entry.inode.key);
        Some(entry.inode)
    }
}
