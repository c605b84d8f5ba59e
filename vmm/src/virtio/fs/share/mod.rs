//! The share as the guest uses it: what `fuse-backend-rs` decodes, done on the
//! host's files.
//!
//! The library's own file system on a directory (`PassthroughFs`) is not used:
//! it remembers every file it ever saw, needs CAP_DAC_READ_SEARCH on the host to
//! make hard links, shows files of two mounts under one device number, and
//! makes a user's files with no more rights than the host knows of, where the
//! guest may have given more (a group, an ACL, a capability).
//!
//! A request can be wrong or hostile in any way. What it names is looked up in
//! [`inodes`] and [`handles`]; a name is one component, never `.` or `..`, so
//! nothing above the share can be reached; no symbolic link is ever followed;
//! what it asks to be allocated is bounded.
//!
//! Two-way live: names are good for one second, attributes for at most that, and
//! contents are as they were when the file was opened or later ([`cache`]). The
//! guest writes through, so the host sees at once what it writes.

mod attributes;
mod budget;
mod cache;
pub(super) mod caller;
mod directory;
mod handles;
mod inodes;
#[cfg(test)]
mod limits_test;
mod operations;
mod reopen;

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuse_backend_rs::api::filesystem::{DirEntry, Entry};
use rustix::fs::{CWD, Mode, OFlags, Statx, openat};

use self::budget::Budget;
use self::caller::Caller;
use self::handles::{Handle, Handles};
use self::inodes::{Inode, Inodes};
use self::reopen::{ProcFd, open_at};

/// The entry is the root of another mount (`FUSE_ATTR_SUBMOUNT`).
const ATTR_SUBMOUNT: u32 = 1;

/// What a guest may ask of an open file; O_DIRECT is left out since the host's
/// page cache is shared with others.
const OPEN_FLAGS: OFlags = OFlags::ACCMODE
    .union(OFlags::APPEND)
    .union(OFlags::DSYNC)
    .union(OFlags::NOATIME)
    .union(OFlags::SYNC)
    .union(OFlags::TRUNC);

/// What is needed of the host to serve the share, opened once.
#[derive(Debug)]
pub(super) struct Host {
    root: OwnedFd,
    root_stat: Statx,
    proc: ProcFd,
    budget: Arc<Budget>,
}

impl Host {
    /// Opens the directory `root` and `/proc/self/fd`.
    ///
    /// # Errors
    /// What `open(2)` answers.
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, root, flags, Mode::empty())?;
        Ok(Self {
            root_stat: inodes::stat(&root)?,
            root,
            proc: ProcFd::open_dir()?,
            budget: Budget::of_process(),
        })
    }
}

/// The share, from one activation of the device to its reset.
#[derive(Debug)]
pub(super) struct Share {
    host: Arc<Host>,
    inodes: Inodes,
    handles: Handles,
}

impl Share {
    /// The share with nothing but its root known to the guest. The thread of a
    /// vCPU calls this, whose filter allows no more than a `dup(2)` of it.
    ///
    /// # Errors
    /// What the host answers.
    pub(super) fn new(host: Arc<Host>) -> io::Result<Self> {
        let root = host.root.try_clone()?;
        let inodes = Inodes::new(root, &host.root_stat, host.budget.take()?);
        Ok(Self {
            host,
            inodes,
            handles: Handles::default(),
        })
    }

    /// Looks a name up and counts it as told to the guest.
    fn look_up(&self, parent: &Inode, name: &CStr) -> io::Result<Entry> {
        check_name(name)?;
        let slot = self.host.budget.take()?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = open_at(parent, name, flags, Mode::empty())?;
        let stat = inodes::stat(&fd)?;
        let inode = self.inodes.remember(fd, &stat, slot);
        Ok(entry(&inode, parent, &stat))
    }

    fn open_handle(&self, inode: &Inode, flags: OFlags) -> io::Result<Handle> {
        let slot = self.host.budget.take()?;
        let file = self.host.proc.open(inode, flags)?;
        Ok(Handle::new(inode.number, file, flags, slot))
    }

    /// Makes a file that is not there, or answers `None` when it is and may be.
    fn make_file(
        &self,
        caller: Caller,
        parent: &Inode,
        name: &CStr,
        flags: OFlags,
        mode: Mode,
    ) -> io::Result<Option<OwnedFd>> {
        let new = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let wanted = flags & OPEN_FLAGS | new;
        match caller.make(|| open_at(parent, name, wanted, mode)) {
            Ok(fd) => Ok(Some(fd)),
            Err(error)
                if error.kind() == io::ErrorKind::AlreadyExists
                    && !flags.contains(OFlags::EXCL) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn list(
        &self,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add: impl FnMut(DirEntry<'_>) -> io::Result<bool>,
    ) -> io::Result<()> {
        let handle = self.handles.get(handle, inode)?;
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        directory::list(&handle, size, offset, add)
    }

    /// What READDIRPLUS says of a name. One that is gone meanwhile, or that
    /// there is no descriptor for, goes without attributes.
    fn entry_of_listing(&self, parent: &Inode, name: &[u8]) -> Entry {
        if directory::is_dot(name) {
            return Entry::default();
        }
        let Ok(name) = CString::new(name) else {
            return Entry::default();
        };
        self.look_up(parent, &name).unwrap_or_default()
    }
}

fn errno(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

/// One component of a path, and neither `.` nor `..`: with those, a directory
/// that is moved out of the share would lead out of it.
fn check_name(name: &CStr) -> io::Result<()> {
    let name = name.to_bytes();
    if name.is_empty() || name.contains(&b'/') || directory::is_dot(name) {
        Err(errno(libc::EINVAL))
    } else {
        Ok(())
    }
}

fn entry(inode: &Inode, parent: &Inode, stat: &Statx) -> Entry {
    Entry {
        inode: inode.number,
        generation: 0,
        attr: attributes::to_stat64(stat),
        attr_flags: if inode.is_submount_of(parent) {
            ATTR_SUBMOUNT
        } else {
            0
        },
        attr_timeout: cache::validity(stat, SystemTime::now()),
        entry_timeout: cache::VALIDITY,
    }
}
