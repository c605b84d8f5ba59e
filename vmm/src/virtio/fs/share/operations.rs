//! What is done for each request.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::time::{Duration, SystemTime};

use fuse_backend_rs::abi::fuse_abi::{CreateIn, stat64, statvfs64};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    SetattrValid, ZeroCopyReader, ZeroCopyWriter,
};
use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Mode, OFlags, RenameFlags, Statx, XattrFlags, fallocate,
    fdatasync, fsync, getxattr, getxattr_query, linkat, listxattr, listxattr_query, mkdirat,
    mknodat, readlinkat, removexattr, renameat_with, setxattr, symlinkat, unlinkat,
};

use super::caller::Caller;
use super::handles::Handle;
use super::inodes::{self, Inode};
use super::{OPEN_FLAGS, Share, attributes, cache, check_name, directory, errno};

/// Longest attribute, and longest list of their names, that Linux has.
const MAX_XATTR: usize = 64 << 10;
fn open_flags(flags: u32) -> OFlags {
    OFlags::from_bits_retain(flags) & OPEN_FLAGS
}

/// What can be opened without a surprise: no FIFO that blocks, no device.
fn check_openable(inode: &Inode) -> io::Result<()> {
    match inode.kind {
        FileType::RegularFile | FileType::Directory => Ok(()),
        _ => Err(errno(libc::EBADF)),
    }
}

/// What the guest is told of attributes, and how long it may go by them.
fn told(stat: &Statx) -> (stat64, Duration) {
    let validity = cache::validity(stat, SystemTime::now());
    (attributes::to_stat64(stat), validity)
}

/// `file` for calls that want it by value or exclusively, without owning it.
fn borrow(file: &File) -> ManuallyDrop<File> {
    // SAFETY: never dropped, so `file` stays the only owner, which outlives it
    // in all callers.
    ManuallyDrop::new(unsafe { File::from_raw_fd(file.as_raw_fd()) })
}

impl FileSystem for Share {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, _capable: FsOptions) -> io::Result<FsOptions> {
        // Locks are the guest's own, and it caches no writes: others on the
        // host use the files, too.
        Ok(FsOptions::ASYNC_DIO
            | FsOptions::ASYNC_READ
            | FsOptions::ATOMIC_O_TRUNC
            | FsOptions::AUTO_INVAL_DATA
            | FsOptions::BIG_WRITES
            | FsOptions::CACHE_SYMLINKS
            | FsOptions::DONT_MASK
            | FsOptions::DO_READDIRPLUS
            | FsOptions::HANDLE_KILLPRIV_V2
            | FsOptions::INIT_EXT
            | FsOptions::MAX_PAGES
            | FsOptions::PARALLEL_DIROPS
            | FsOptions::POSIX_ACL
            | FsOptions::READDIRPLUS_AUTO
            | FsOptions::SUBMOUNTS)
    }

    fn destroy(&self) {
        self.handles.clear();
        self.inodes.clear();
    }

    fn lookup(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        self.look_up(&*self.inodes.get(parent)?, name)
    }

    fn forget(&self, _: &Context, inode: u64, count: u64) {
        self.inodes.forget(inode, count);
    }

    fn getattr(
        &self,
        _: &Context,
        inode: u64,
        _handle: Option<u64>,
    ) -> io::Result<(stat64, Duration)> {
        let stat = self.inodes.get(inode)?.stat()?;
        Ok(told(&stat))
    }

    fn setattr(
        &self,
        _: &Context,
        inode: u64,
        attributes: stat64,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(stat64, Duration)> {
        let inode = self.inodes.get(inode)?;
        let handle = match handle {
            Some(handle) => Some(self.handles.get(handle, inode.number)?),
            None if valid.contains(SetattrValid::SIZE) => {
                check_openable(&inode)?;
                None
            }
            None => None,
        };
        attributes::set(
            &inode,
            handle.as_deref(),
            &self.host.proc,
            &attributes,
            valid,
        )?;
        Ok(told(&inode.stat()?))
    }

    fn readlink(&self, _: &Context, inode: u64) -> io::Result<Vec<u8>> {
        let inode = self.inodes.get(inode)?;
        Ok(readlinkat(&*inode, c"", Vec::new())?.into_bytes())
    }

    fn symlink(
        &self,
        context: &Context,
        target: &CStr,
        parent: u64,
        name: &CStr,
    ) -> io::Result<Entry> {
        check_name(name)?;
        let parent = self.inodes.get(parent)?;
        caller(context, 0).make(|| Ok(symlinkat(target, &*parent, name)?))?;
        self.look_up(&parent, name)
    }

    fn mknod(
        &self,
        context: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        device: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        check_name(name)?;
        let kind = FileType::from_raw_mode(mode);
        let is_whiteout = kind == FileType::CharacterDevice && device == 0;
        let is_harmless = matches!(
            kind,
            FileType::RegularFile | FileType::Fifo | FileType::Socket
        );
        // A device node would be one of the host's.
        if !is_harmless && !is_whiteout {
            return Err(errno(libc::EPERM));
        }
        let parent = self.inodes.get(parent)?;
        let mode = Mode::from_raw_mode(mode & 0o7777);
        caller(context, umask).make(|| Ok(mknodat(&*parent, name, kind, mode, 0)?))?;
        self.look_up(&parent, name)
    }

    fn mkdir(
        &self,
        context: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        check_name(name)?;
        let parent = self.inodes.get(parent)?;
        let mode = Mode::from_raw_mode(mode & 0o7777);
        caller(context, umask).make(|| Ok(mkdirat(&*parent, name, mode)?))?;
        self.look_up(&parent, name)
    }

    fn unlink(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        check_name(name)?;
        let parent = self.inodes.get(parent)?;
        Ok(unlinkat(&*parent, name, AtFlags::empty())?)
    }

    fn rmdir(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        check_name(name)?;
        let parent = self.inodes.get(parent)?;
        Ok(unlinkat(&*parent, name, AtFlags::REMOVEDIR)?)
    }

    fn rename(
        &self,
        _: &Context,
        from: u64,
        old: &CStr,
        to: u64,
        new: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        check_name(old)?;
        check_name(new)?;
        let from = self.inodes.get(from)?;
        let to = self.inodes.get(to)?;
        let flags = RenameFlags::from_bits_retain(flags);
        Ok(renameat_with(&*from, old, &*to, new, flags)?)
    }

    fn link(&self, _: &Context, inode: u64, parent: u64, name: &CStr) -> io::Result<Entry> {
        check_name(name)?;
        let inode = self.inodes.get(inode)?;
        let parent = self.inodes.get(parent)?;
        // AT_EMPTY_PATH needs a capability in the initial user namespace.
        let proc = &self.host.proc;
        let old = proc.name(&inode.as_fd());
        linkat(
            proc,
            old.as_c_str(),
            &*parent,
            name,
            AtFlags::SYMLINK_FOLLOW,
        )?;
        self.look_up(&parent, name)
    }

    fn open(
        &self,
        _: &Context,
        inode: u64,
        flags: u32,
        _fuse_flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions, Option<u32>)> {
        let inode = self.inodes.get(inode)?;
        check_openable(&inode)?;
        let handle = self.open_handle(&inode, open_flags(flags))?;
        let options = if inode.seen.may_keep(&inodes::stat(&handle)?) {
            OpenOptions::KEEP_CACHE
        } else {
            OpenOptions::empty()
        };
        Ok((Some(self.handles.insert(handle)), options, None))
    }

    fn create(
        &self,
        context: &Context,
        parent: u64,
        name: &CStr,
        args: CreateIn,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions, Option<u32>)> {
        check_name(name)?;
        let parent = self.inodes.get(parent)?;
        let caller = caller(context, args.umask);
        let flags = OFlags::from_bits_retain(args.flags);
        let mode = Mode::from_raw_mode(args.mode & 0o7777);
        let slot = self.host.budget.take()?;
        let new = self.make_file(caller, &parent, name, flags, mode)?;
        let entry = self.look_up(&parent, name)?;
        let opened = new.map_or_else(
            || {
                // Somebody on the host was faster: a file that the guest's kernel
                // knows nothing of, so that it has checked nothing.
                let inode = self.inodes.get(entry.inode)?;
                check_openable(&inode)?;
                caller.try_to(|| self.host.proc.open(&*inode, flags & OPEN_FLAGS))
            },
            |fd| Ok(File::from(fd)),
        );
        match opened {
            Ok(file) => {
                let handle = Handle::new(entry.inode, file, flags, slot);
                let number = self.handles.insert(handle);
                Ok((entry, Some(number), OpenOptions::empty(), None))
            }
            Err(error) => {
                self.inodes.forget(entry.inode, 1);
                Err(error)
            }
        }
    }

    fn read(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        writer: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        _lock_owner: Option<u64>,
        _flags: u32,
    ) -> io::Result<usize> {
        let handle = self.handles.get(handle, inode)?;
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        writer.write_from(&mut *borrow(handle.file()), size, offset)
    }

    fn write(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        reader: &mut dyn ZeroCopyReader,
        size: u32,
        offset: u64,
        _lock_owner: Option<u64>,
        _delayed: bool,
        flags: u32,
        _fuse_flags: u32,
    ) -> io::Result<usize> {
        let handle = self.handles.get(handle, inode)?;
        handle.set_appending(open_flags(flags).contains(OFlags::APPEND))?;
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        reader.read_to(&mut *borrow(handle.file()), size, offset)
    }

    // `flush` stays ENOSYS, which the guest's kernel takes as success for good:
    // nothing is cached that close(2) could fail to write, and errors come with
    // the write itself or with fsync.

    fn fsync(&self, _: &Context, inode: u64, data_only: bool, handle: u64) -> io::Result<()> {
        let handle = self.handles.get(handle, inode)?;
        if data_only {
            Ok(fdatasync(&*handle)?)
        } else {
            Ok(fsync(&*handle)?)
        }
    }

    fn fallocate(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        mode: u32,
        offset: u64,
        len: u64,
    ) -> io::Result<()> {
        let handle = self.handles.get(handle, inode)?;
        let mode = FallocateFlags::from_bits_retain(mode);
        Ok(fallocate(&*handle, mode, offset, len)?)
    }

    fn release(
        &self,
        _: &Context,
        inode: u64,
        _flags: u32,
        handle: u64,
        _flush: bool,
        _flock_release: bool,
        _lock_owner: Option<u64>,
    ) -> io::Result<()> {
        self.handles.release(handle, inode)
    }

    fn statfs(&self, _: &Context, inode: u64) -> io::Result<statvfs64> {
        let inode = self.inodes.get(inode)?;
        // SAFETY: all zeroes is a valid value of this structure.
        let mut out: statvfs64 = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes one statvfs64, which outlives the call.
        let result = unsafe { libc::fstatvfs64(inode.as_fd().as_raw_fd(), &raw mut out) };
        if result == 0 {
            Ok(out)
        } else {
            Err(io::Error::last_os_error())
        }
    }

    fn setxattr(
        &self,
        _: &Context,
        inode: u64,
        name: &CStr,
        value: &[u8],
        flags: u32,
    ) -> io::Result<()> {
        let inode = self.inodes.get(inode)?;
        let path = self.host.proc.path(&*inode);
        let flags = XattrFlags::from_bits_retain(flags);
        Ok(setxattr(path.as_c_str(), name, value, flags)?)
    }

    fn getxattr(
        &self,
        _: &Context,
        inode: u64,
        name: &CStr,
        size: u32,
    ) -> io::Result<GetxattrReply> {
        let inode = self.inodes.get(inode)?;
        let path = self.host.proc.path(&*inode);
        if size == 0 {
            let len = getxattr_query(path.as_c_str(), name)?;
            return Ok(GetxattrReply::Count(u32::try_from(len).unwrap_or(u32::MAX)));
        }
        let mut value = xattr_buffer(size);
        let len = getxattr(path.as_c_str(), name, &mut value[..])?;
        value.truncate(len);
        Ok(GetxattrReply::Value(value))
    }

    fn listxattr(&self, _: &Context, inode: u64, size: u32) -> io::Result<ListxattrReply> {
        let inode = self.inodes.get(inode)?;
        let path = self.host.proc.path(&*inode);
        if size == 0 {
            let len = listxattr_query(path.as_c_str())?;
            return Ok(ListxattrReply::Count(
                u32::try_from(len).unwrap_or(u32::MAX),
            ));
        }
        let mut names = xattr_buffer(size);
        let len = listxattr(path.as_c_str(), &mut names[..])?;
        names.truncate(len);
        Ok(ListxattrReply::Names(names))
    }

    fn removexattr(&self, _: &Context, inode: u64, name: &CStr) -> io::Result<()> {
        let inode = self.inodes.get(inode)?;
        let path = self.host.proc.path(&*inode);
        Ok(removexattr(path.as_c_str(), name)?)
    }

    fn opendir(
        &self,
        _: &Context,
        inode: u64,
        _flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions)> {
        let inode = self.inodes.get(inode)?;
        if inode.kind != FileType::Directory {
            return Err(errno(libc::ENOTDIR));
        }
        let handle = self.open_handle(&inode, OFlags::RDONLY | OFlags::DIRECTORY)?;
        Ok((Some(self.handles.insert(handle)), OpenOptions::empty()))
    }

    fn readdir(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry<'_>) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.list(inode, handle, size, offset, |entry| Ok(add(entry)? > 0))
    }

    fn readdirplus(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry<'_>, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        let parent = self.inodes.get(inode)?;
        // An entry with attributes is several times as long as one without.
        self.list(inode, handle, size / 4, offset, |listed| {
            let entry = self.entry_of_listing(&parent, listed.name);
            let added = add(listed, entry);
            if !matches!(added, Ok(len) if len > 0) && entry.inode != 0 {
                // The guest has not heard of it.
                self.inodes.forget(entry.inode, 1);
            }
            Ok(added? > 0)
        })
    }

    fn fsyncdir(&self, context: &Context, inode: u64, data: bool, handle: u64) -> io::Result<()> {
        self.fsync(context, inode, data, handle)
    }

    fn releasedir(&self, _: &Context, inode: u64, _flags: u32, handle: u64) -> io::Result<()> {
        self.handles.release(handle, inode)
    }

    fn lseek(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        offset: u64,
        whence: u32,
    ) -> io::Result<u64> {
        directory::find(&*self.handles.get(handle, inode)?, offset, whence)
    }
}

fn caller(context: &Context, umask: u32) -> Caller {
    Caller {
        uid: context.uid,
        gid: context.gid,
        umask,
    }
}

/// Room for as much as the guest asks for, or for as much as there can be.
fn xattr_buffer(size: u32) -> Vec<u8> {
    vec![0; usize::try_from(size).map_or(MAX_XATTR, |size| size.min(MAX_XATTR))]
}
