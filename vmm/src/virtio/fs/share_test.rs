//! What the guest can do with files, over the device.

use std::ffi::CString;
use std::fs::{self, File, FileTimes};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

use fuse_backend_rs::abi::fuse_abi::{
    AttrOut, EntryOut, FallocateIn, FsOptions, GetxattrIn, LinkIn, LseekIn, MkdirIn, MknodIn,
    Opcode, Rename2In, SetattrIn, SetxattrIn, WriteIn,
};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change,
    mount_remount, unmount,
};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags, set_capabilities};
use vm_memory::ByteValued;

use super::driver_test::{Caller, Guest, ROOT};

fn shared() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// A request's body that ends in a name.
fn named(body: &impl ByteValued, name: &[u8]) -> Vec<u8> {
    [body.as_slice(), name, b"\0"].concat()
}

fn setattr(guest: &mut Guest, node: u64, body: &SetattrIn) -> Result<AttrOut, i32> {
    guest
        .call(Opcode::Setattr, node, body.as_slice())
        .map(|reply| *AttrOut::from_slice(&reply).unwrap())
}

mod protocol {
    use super::*;

    #[test]
    fn init_settles_on_requests_of_1_mib_and_on_nothing_that_hides_the_hosts_changes() {
        let root = shared();
        let init = Guest::boot(root.path()).init();
        assert_eq!(init.max_pages, 256);
        assert_eq!(init.max_write, 1 << 20);
        let flags =
            FsOptions::from_bits_truncate(u64::from(init.flags) | u64::from(init.flags2) << 32);
        assert!(
            flags
                .contains(FsOptions::AUTO_INVAL_DATA | FsOptions::SUBMOUNTS | FsOptions::POSIX_ACL)
        );
        assert!(!flags.intersects(
            FsOptions::WRITEBACK_CACHE
                | FsOptions::EXPLICIT_INVAL_DATA
                | FsOptions::POSIX_LOCKS
                | FsOptions::FLOCK_LOCKS
                | FsOptions::EXPORT_SUPPORT
        ));
    }

    #[test]
    fn names_and_attributes_are_good_for_one_second() {
        let root = shared();
        let file = File::create(root.path().join("file")).unwrap();
        let times = FileTimes::new().set_modified(SystemTime::now() - Duration::from_secs(60));
        file.set_times(times).unwrap();
        let mut guest = Guest::mount(root.path());
        let entry = guest.lookup(ROOT, b"file").unwrap();
        assert_eq!((entry.entry_valid, entry.entry_valid_nsec), (1, 0));
        assert_eq!((entry.attr_valid, entry.attr_valid_nsec), (1, 0));
        assert_eq!(guest.getattr(entry.nodeid).unwrap().attr_valid, 1);
    }

    #[test]
    fn attributes_of_a_file_that_has_just_changed_are_good_for_a_part_of_that() {
        let root = shared();
        fs::write(root.path().join("file"), "x").unwrap();
        let mut guest = Guest::mount(root.path());
        let entry = guest.lookup(ROOT, b"file").unwrap();
        assert_eq!((entry.entry_valid, entry.attr_valid), (1, 0));
        assert!(entry.attr_valid_nsec < 500_000_000);
        assert_eq!(guest.getattr(entry.nodeid).unwrap().attr_valid, 0);
    }

    #[test]
    fn what_the_host_changes_is_seen_at_the_next_look() {
        let root = shared();
        let path = root.path().join("file");
        fs::write(&path, "before").unwrap();
        let mut guest = Guest::mount(root.path());
        let entry = guest.lookup(ROOT, b"file").unwrap();
        fs::write(&path, "and after").unwrap();
        assert_eq!(guest.getattr(entry.nodeid).unwrap().attr.size, 9);
        fs::remove_file(&path).unwrap();
        assert_eq!(guest.lookup(ROOT, b"file").unwrap_err(), libc::ENOENT);
    }
}

mod contents {
    use super::*;

    #[test]
    fn a_mebibyte_is_written_and_read_in_one_request() {
        let root = shared();
        let mut guest = Guest::mount(root.path());
        let (entry, fh) = guest.create(ROOT, "big", 0o600, 0).unwrap();
        let bytes: Vec<u8> = (0..1u32 << 18).flat_map(u32::to_le_bytes).collect();
        assert_eq!(guest.write(entry.nodeid, fh, 0, &bytes).unwrap(), 1 << 20);
        assert!(fs::read(root.path().join("big")).unwrap() == bytes);
        assert!(guest.read(entry.nodeid, fh, 0, 1 << 20).unwrap() == bytes);
        assert!(
            guest
                .read(entry.nodeid, fh, 1 << 20, 4096)
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn appending_follows_what_the_process_last_said() {
        let root = shared();
        let mut guest = Guest::mount(root.path());
        let (entry, fh) = guest.create(ROOT, "log", 0o600, 0).unwrap();
        let mut write = |flags: i32, bytes: &[u8]| {
            let body = WriteIn {
                fh,
                size: bytes.len() as u32,
                flags: (libc::O_RDWR | flags) as u32,
                ..WriteIn::default()
            };
            let body = [body.as_slice(), bytes].concat();
            guest.call(Opcode::Write, entry.nodeid, &body).unwrap();
            fs::read_to_string(root.path().join("log")).unwrap()
        };
        assert_eq!(write(0, b"one"), "one");
        assert_eq!(write(libc::O_APPEND, b"two"), "onetwo");
        assert_eq!(write(0, b"six"), "sixtwo");
    }

    #[test]
    fn an_open_file_lives_on_without_its_name() {
        let root = shared();
        fs::write(root.path().join("file"), "still here").unwrap();
        let mut guest = Guest::mount(root.path());
        let entry = guest.lookup(ROOT, b"file").unwrap();
        let fh = guest.open(entry.nodeid, libc::O_RDONLY).unwrap();
        guest.call(Opcode::Unlink, ROOT, b"file\0").unwrap();
        assert!(!root.path().join("file").exists());
        assert_eq!(guest.read(entry.nodeid, fh, 0, 64).unwrap(), b"still here");
    }

    #[test]
    fn holes_are_made_and_found() {
        let root = shared();
        let mut guest = Guest::mount(root.path());
        let (entry, fh) = guest.create(ROOT, "sparse", 0o600, 0).unwrap();
        let body = FallocateIn {
            fh,
            length: 1 << 20,
            ..FallocateIn::default()
        };
        guest
            .call(Opcode::Fallocate, entry.nodeid, body.as_slice())
            .unwrap();
        assert_eq!(
            root.path().join("sparse").metadata().unwrap().len(),
            1 << 20
        );
        let mut seek = |whence: i32| {
            let body = LseekIn {
                fh,
                whence: whence as u32,
                ..LseekIn::default()
            };
            guest.call(Opcode::Lseek, entry.nodeid, body.as_slice())
        };
        assert_eq!(seek(libc::SEEK_HOLE).unwrap().len(), 8);
        assert_eq!(seek(libc::SEEK_SET).unwrap_err(), libc::EINVAL);
    }

    #[test]
    fn a_handle_is_of_no_use_with_another_file_or_after_its_release() {
        let root = shared();
        let mut guest = Guest::mount(root.path());
        let (entry, fh) = guest.create(ROOT, "mine", 0o600, 0).unwrap();
        let (other, _) = guest.create(ROOT, "other", 0o600, 0).unwrap();
        assert_eq!(guest.read(other.nodeid, fh, 0, 1).unwrap_err(), libc::EBADF);
        let body = [fh.as_slice(), &[0; 16]].concat();
        guest.call(Opcode::Release, entry.nodeid, &body).unwrap();
        assert_eq!(guest.read(entry.nodeid, fh, 0, 1).unwrap_err(), libc::EBADF);
        assert_eq!(
            guest
                .call(Opcode::Release, entry.nodeid, &body)
                .unwrap_err(),
            libc::EBADF
        );
    }
}

mod names {
    use super::*;

    #[test]
    fn no_name_leads_elsewhere() {
        let root = shared();
        fs::create_dir(root.path().join("dir")).unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        let mut guest = Guest::mount(root.path());
        let dir = guest.lookup(ROOT, b"dir").unwrap().nodeid;
        let file = guest.lookup(ROOT, b"file").unwrap().nodeid;
        for bad in [&b".."[..], b".", b"", b"dir/..", b"/etc", b"a/b"] {
            let renamed = |old: &[u8], new: &[u8]| {
                let body = Rename2In {
                    newdir: dir,
                    ..Rename2In::default()
                };
                [body.as_slice(), old, b"\0", new, b"\0"].concat()
            };
            let link = named(&LinkIn { oldnodeid: file }, bad);
            let mkdir = named(&MkdirIn::default(), bad);
            let mknod = MknodIn {
                mode: libc::S_IFREG | 0o600,
                ..MknodIn::default()
            };
            let requests = [
                (Opcode::Lookup, [bad, b"\0"].concat()),
                (Opcode::Unlink, [bad, b"\0"].concat()),
                (Opcode::Rmdir, [bad, b"\0"].concat()),
                (Opcode::Mkdir, mkdir),
                (Opcode::Mknod, named(&mknod, bad)),
                (Opcode::Create, [&[0; 16], bad, b"\0"].concat()),
                (Opcode::Link, link),
                (Opcode::Symlink, [bad, b"\0target\0"].concat()),
                (Opcode::Rename2, renamed(bad, b"new")),
                (Opcode::Rename2, renamed(b"old", bad)),
            ];
            for (opcode, body) in requests {
                assert_eq!(
                    guest.call(opcode, dir, &body).unwrap_err(),
                    libc::EINVAL,
                    "{opcode:?} {}",
                    bad.escape_ascii()
                );
            }
        }
        assert_eq!(fs::read_dir(root.path().join("dir")).unwrap().count(), 0);
    }

    #[test]
    fn a_symbolic_link_is_a_file_of_its_own_and_leads_nowhere() {
        let outside = shared();
        fs::write(outside.path().join("secret"), "secret").unwrap();
        let root = shared();
        symlink(outside.path(), root.path().join("out")).unwrap();
        symlink(outside.path().join("secret"), root.path().join("leak")).unwrap();

        let mut guest = Guest::mount(root.path());
        for name in ["out", "leak"] {
            let link = guest.lookup(ROOT, name.as_bytes()).unwrap();
            assert_eq!(link.attr.mode & libc::S_IFMT, libc::S_IFLNK);
            for flags in [libc::O_RDONLY, libc::O_RDWR, libc::O_DIRECTORY] {
                assert_eq!(guest.open(link.nodeid, flags).unwrap_err(), libc::EBADF);
            }
            assert_eq!(guest.opendir(link.nodeid).unwrap_err(), libc::ENOTDIR);
            assert_eq!(
                guest.lookup(link.nodeid, b"secret").unwrap_err(),
                libc::ENOTDIR
            );
            let truncate = SetattrIn {
                valid: 8,
                ..SetattrIn::default()
            };
            assert_eq!(
                setattr(&mut guest, link.nodeid, &truncate).unwrap_err(),
                libc::EBADF
            );
        }
        let link = guest.lookup(ROOT, b"out").unwrap().nodeid;
        let target = guest.call(Opcode::Readlink, link, &[]).unwrap();
        assert_eq!(target, outside.path().as_os_str().as_bytes());
        // Creating through a link that dangles must not make its target.
        symlink(outside.path().join("new"), root.path().join("dangling")).unwrap();
        guest.create(ROOT, "dangling", 0o600, 0).unwrap_err();
        assert!(!outside.path().join("new").exists());
        let secret = outside.path().join("secret");
        assert_eq!(fs::read_to_string(secret).unwrap(), "secret");
    }

    #[test]
    fn a_directory_lists_names_of_any_bytes_and_its_dots() {
        let root = shared();
        let odd = [
            &b"\xff\xfe"[..],
            "zö".as_bytes(),
            b" ",
            b"new\nline",
            &[b'x'; 255],
        ];
        for name in odd {
            fs::write(root.path().join(std::ffi::OsStr::from_bytes(name)), "").unwrap();
        }
        let mut guest = Guest::mount(root.path());
        let mut expected: Vec<Vec<u8>> = odd.iter().map(|name| name.to_vec()).collect();
        expected.extend([b".".to_vec(), b"..".to_vec()]);
        expected.sort();
        for opcode in [Opcode::Readdir, Opcode::Readdirplus] {
            let mut names = guest.names(ROOT, opcode).unwrap();
            names.sort();
            assert_eq!(names, expected);
        }
        for name in odd {
            guest.lookup(ROOT, name).unwrap();
        }
    }

    #[test]
    fn a_hard_link_is_the_same_file_under_a_second_name() {
        let root = shared();
        fs::write(root.path().join("first"), "").unwrap();
        let mut guest = Guest::mount(root.path());
        let first = guest.lookup(ROOT, b"first").unwrap();
        let body = LinkIn {
            oldnodeid: first.nodeid,
        };
        let reply = guest
            .call(Opcode::Link, ROOT, &named(&body, b"second"))
            .unwrap();
        let second = *EntryOut::from_slice(&reply).unwrap();
        assert_eq!(second.nodeid, first.nodeid);
        assert_eq!(second.attr.nlink, 2);
        assert_eq!(root.path().join("second").metadata().unwrap().nlink(), 2);
    }

    #[test]
    fn renaming_heeds_its_flags() {
        let root = shared();
        fs::write(root.path().join("a"), "a").unwrap();
        fs::write(root.path().join("b"), "b").unwrap();
        let mut guest = Guest::mount(root.path());
        let mut rename = |flags| {
            let body = Rename2In {
                newdir: ROOT,
                flags,
                padding: 0,
            };
            guest.call(Opcode::Rename2, ROOT, &named(&body, b"a\0b"))
        };
        assert_eq!(rename(libc::RENAME_NOREPLACE).unwrap_err(), libc::EEXIST);
        rename(libc::RENAME_EXCHANGE).unwrap();
        assert_eq!(fs::read_to_string(root.path().join("a")).unwrap(), "b");
        rename(0).unwrap();
        assert_eq!(fs::read_to_string(root.path().join("b")).unwrap(), "b");
        assert!(!root.path().join("a").exists());
    }
}

mod attributes {
    use super::*;

    #[test]
    fn mode_owner_length_and_times_are_set_on_the_host() {
        let root = shared();
        let path = root.path().join("file");
        fs::write(&path, "0123456789").unwrap();
        let mut guest = Guest::mount(root.path());
        let node = guest.lookup(ROOT, b"file").unwrap().nodeid;
        let body = SetattrIn {
            valid: 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20,
            mode: libc::S_IFREG | 0o4711,
            uid: 1234,
            gid: 5678,
            size: 4,
            atime: 1_000_000_000,
            mtime: 1_100_000_000,
            mtimensec: 7,
            ..SetattrIn::default()
        };
        setattr(&mut guest, node, &body).unwrap();
        let found = path.metadata().unwrap();
        assert_eq!((found.uid(), found.gid(), found.len()), (1234, 5678, 4));
        assert_eq!(
            (found.atime(), found.mtime()),
            (1_000_000_000, 1_100_000_000)
        );
        assert_eq!(found.mtime_nsec(), 7);
        let mode = SetattrIn {
            valid: 1,
            mode: 0o640,
            ..SetattrIn::default()
        };
        assert_eq!(
            setattr(&mut guest, node, &mode).unwrap().attr.mode & 0o7777,
            0o640
        );
        let negative = SetattrIn {
            valid: 8,
            size: u64::MAX,
            ..SetattrIn::default()
        };
        assert_eq!(
            setattr(&mut guest, node, &negative).unwrap_err(),
            libc::EFBIG
        );
    }

    #[test]
    fn extended_attributes_are_set_read_listed_and_removed() {
        let root = shared();
        fs::write(root.path().join("file"), "").unwrap();
        let mut guest = Guest::mount(root.path());
        let node = guest.lookup(ROOT, b"file").unwrap().nodeid;
        let set = SetxattrIn { size: 5, flags: 0 };
        let body = [set.as_slice(), b"user.colour\0green"].concat();
        guest.call(Opcode::Setxattr, node, &body).unwrap();

        let mut ask = |opcode, size, name: &[u8]| {
            let body = GetxattrIn { size, padding: 0 };
            guest.call(opcode, node, &[body.as_slice(), name].concat())
        };
        let len = ask(Opcode::Getxattr, 0, b"user.colour\0").unwrap();
        assert_eq!(u32::from_le_bytes(len[..4].try_into().unwrap()), 5);
        assert_eq!(
            ask(Opcode::Getxattr, 64, b"user.colour\0").unwrap(),
            b"green"
        );
        assert_eq!(
            ask(Opcode::Getxattr, 2, b"user.colour\0").unwrap_err(),
            libc::ERANGE
        );
        assert_eq!(
            ask(Opcode::Getxattr, u32::MAX, b"user.colour\0").unwrap(),
            b"green"
        );
        assert_eq!(
            ask(Opcode::Getxattr, 64, b"user.none\0").unwrap_err(),
            libc::ENODATA
        );
        assert_eq!(
            ask(Opcode::Listxattr, u32::MAX, b"").unwrap(),
            b"user.colour\0"
        );
        guest
            .call(Opcode::Removexattr, node, b"user.colour\0")
            .unwrap();
        let body = GetxattrIn {
            size: 64,
            padding: 0,
        };
        let names = guest.call(Opcode::Listxattr, node, body.as_slice());
        assert_eq!(names.unwrap(), b"");
    }

    #[test]
    fn the_room_that_is_left_is_told() {
        let root = shared();
        let mut guest = Guest::mount(root.path());
        assert_eq!(guest.call(Opcode::Statfs, ROOT, &[]).unwrap().len(), 80);
    }
}

/// Runs `test` on a thread with no more capabilities than the monitor has.
fn with_the_monitors_capabilities<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    let few = CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::FOWNER
        | CapabilitySet::SETGID
        | CapabilitySet::SETUID
        | CapabilitySet::SETFCAP;
    let test = move || {
        let sets = CapabilitySets {
            effective: few,
            permitted: few,
            inheritable: CapabilitySet::empty(),
        };
        set_capabilities(None, sets).unwrap();
        test()
    };
    thread::scope(|scope| scope.spawn(test).join().unwrap())
}

mod callers {
    use super::*;

    const USER: Caller = Caller {
        uid: 1000,
        gid: 1001,
    };

    #[test]
    fn what_a_user_makes_is_the_users_wherever_the_guest_lets_him() {
        with_the_monitors_capabilities(|| {
            let root = shared();
            // On the host only root may write here; the guest knows of an ACL,
            // a group or a capability that lets the user.
            fs::set_permissions(root.path(), PermissionsExt::from_mode(0o700)).unwrap();
            let mut guest = Guest::mount(root.path());
            guest.caller = USER;
            guest.create(ROOT, "file", 0o666, 0o027).unwrap();
            let mkdir = MkdirIn {
                mode: 0o777,
                umask: 0o022,
            };
            guest
                .call(Opcode::Mkdir, ROOT, &named(&mkdir, b"dir"))
                .unwrap();
            guest
                .call(Opcode::Symlink, ROOT, b"link\0target\0")
                .unwrap();
            let mknod = MknodIn {
                mode: libc::S_IFIFO | 0o666,
                umask: 0o077,
                ..MknodIn::default()
            };
            guest
                .call(Opcode::Mknod, ROOT, &named(&mknod, b"fifo"))
                .unwrap();
            for (name, mode) in [
                ("file", 0o640),
                ("dir", 0o755),
                ("link", 0o777),
                ("fifo", 0o600),
            ] {
                let made = root.path().join(name).symlink_metadata().unwrap();
                assert_eq!((made.uid(), made.gid()), (1000, 1001), "{name}");
                assert_eq!(made.mode() & 0o7777, mode, "{name}");
            }
            // And the thread is itself again.
            guest.caller = Caller::default();
            guest.create(ROOT, "roots", 0o600, 0).unwrap();
            assert_eq!(root.path().join("roots").metadata().unwrap().uid(), 0);
        });
    }

    #[test]
    fn a_user_gets_no_set_group_id_file_of_a_group_that_is_not_his() {
        let root = shared();
        std::os::unix::fs::chown(root.path(), Some(0), Some(4242)).unwrap();
        fs::set_permissions(root.path(), PermissionsExt::from_mode(0o2777)).unwrap();
        let mut guest = Guest::mount(root.path());
        guest.caller = USER;
        guest.create(ROOT, "file", 0o2755, 0).unwrap();
        let made = root.path().join("file").metadata().unwrap();
        assert_eq!(made.gid(), 4242);
        assert_eq!(made.mode() & 0o7777, 0o755);
    }

    #[test]
    fn a_default_acl_takes_the_place_of_the_umask() {
        let root = shared();
        // Version 2; owner rwx, group rwx, mask rwx, others nothing.
        let mut acl = 2u32.to_le_bytes().to_vec();
        for (tag, permissions) in [(1u16, 7u16), (4, 7), (0x10, 7), (0x20, 0)] {
            acl.extend(tag.to_le_bytes());
            acl.extend(permissions.to_le_bytes());
            acl.extend(u32::MAX.to_le_bytes());
        }
        rustix::fs::setxattr(
            root.path(),
            "system.posix_acl_default",
            &acl,
            rustix::fs::XattrFlags::empty(),
        )
        .unwrap();
        let mut guest = Guest::mount(root.path());
        guest.create(ROOT, "file", 0o666, 0o077).unwrap();
        let made = root.path().join("file").metadata().unwrap();
        assert_eq!(made.mode() & 0o777, 0o660);
    }

    #[test]
    fn device_nodes_are_refused_but_for_the_whiteouts_of_an_overlay() {
        let root = shared();
        let mut guest = Guest::mount(root.path());
        let mut mknod = |mode, rdev| {
            let body = MknodIn {
                mode,
                rdev,
                ..MknodIn::default()
            };
            guest.call(Opcode::Mknod, ROOT, &named(&body, b"node"))
        };
        assert_eq!(mknod(libc::S_IFBLK, 0x0800).unwrap_err(), libc::EPERM);
        assert_eq!(mknod(libc::S_IFCHR, 0x0103).unwrap_err(), libc::EPERM);
        assert_eq!(mknod(libc::S_IFDIR, 0).unwrap_err(), libc::EPERM);
        mknod(libc::S_IFCHR, 0).unwrap();
        assert_eq!(root.path().join("node").metadata().unwrap().rdev(), 0);
    }

    #[test]
    fn nothing_on_the_share_that_could_block_or_is_a_device_is_opened() {
        let root = shared();
        let fifo = CString::new(root.path().join("fifo").as_os_str().as_bytes()).unwrap();
        // SAFETY: the name outlives the call.
        assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o666) }, 0);
        let _socket = std::os::unix::net::UnixListener::bind(root.path().join("socket")).unwrap();
        let mut guest = Guest::mount(root.path());
        for name in ["fifo", "socket"] {
            let node = guest.lookup(ROOT, name.as_bytes()).unwrap().nodeid;
            assert_eq!(guest.open(node, libc::O_RDWR).unwrap_err(), libc::EBADF);
        }
    }

    #[test]
    fn a_write_takes_set_id_bits_away() {
        with_the_monitors_capabilities(|| {
            let root = shared();
            let path = root.path().join("program");
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, PermissionsExt::from_mode(0o6755)).unwrap();
            let mut guest = Guest::mount(root.path());
            let node = guest.lookup(ROOT, b"program").unwrap().nodeid;
            let fh = guest.open(node, libc::O_RDWR).unwrap();
            assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o6755);
            guest.write(node, fh, 0, b"changed").unwrap();
            assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o755);
        });
    }
}

/// Runs `test` with a mount table of its own; says loudly where that cannot be.
fn with_mounts_of_its_own(test: impl FnOnce(&Path) + Send) {
    let root = shared();
    let test = || {
        // SAFETY: mounts and working directory of this thread's own, nothing in memory.
        let unshared =
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) };
        if let Err(error) = unshared {
            eprintln!("SKIPPED: this test needs a mount namespace: {error}");
            return;
        }
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).unwrap();
        test(root.path());
    };
    thread::scope(|scope| scope.spawn(test).join().unwrap());
}

mod mounts {
    use super::*;

    const SUBMOUNT: u32 = 1;

    fn mount_tmpfs(at: &Path) {
        mount(
            "tmpfs",
            at,
            "tmpfs",
            MountFlags::empty(),
            None::<&std::ffi::CStr>,
        )
        .unwrap();
    }

    #[test]
    fn a_read_only_share_can_be_read_and_nothing_else() {
        with_mounts_of_its_own(|root| {
            fs::write(root.join("file"), "text").unwrap();
            mount_bind(root, root).unwrap();
            let read_only = MountFlags::BIND | MountFlags::RDONLY;
            mount_remount(root, read_only, c"").unwrap();
            let mut guest = Guest::mount(root);
            let node = guest.lookup(ROOT, b"file").unwrap().nodeid;
            let fh = guest.open(node, libc::O_RDONLY).unwrap();
            assert_eq!(guest.read(node, fh, 0, 16).unwrap(), b"text");
            assert_eq!(guest.open(node, libc::O_RDWR).unwrap_err(), libc::EROFS);
            assert_eq!(
                guest.create(ROOT, "new", 0o600, 0).unwrap_err(),
                libc::EROFS
            );
            assert_eq!(
                guest.call(Opcode::Unlink, ROOT, b"file\0").unwrap_err(),
                libc::EROFS
            );
            let chmod = SetattrIn {
                valid: 1,
                ..SetattrIn::default()
            };
            assert_eq!(setattr(&mut guest, node, &chmod).unwrap_err(), libc::EROFS);
            let set = SetxattrIn { size: 1, flags: 0 };
            let body = [set.as_slice(), b"user.a\0b"].concat();
            assert_eq!(
                guest.call(Opcode::Setxattr, node, &body).unwrap_err(),
                libc::EROFS
            );
        });
    }

    #[test]
    fn a_mount_that_comes_later_is_seen_and_marked_as_another_file_system() {
        with_mounts_of_its_own(|root| {
            let at = root.join("volume");
            fs::create_dir(&at).unwrap();
            let mut guest = Guest::mount(root);
            let before = guest.lookup(ROOT, b"volume").unwrap();
            assert_eq!(before.attr.flags & SUBMOUNT, 0);
            mount_tmpfs(&at);
            fs::create_dir(at.join("dir")).unwrap();
            let after = guest.lookup(ROOT, b"volume").unwrap();
            assert_ne!(after.nodeid, before.nodeid);
            assert_eq!(after.attr.flags & SUBMOUNT, SUBMOUNT);
            let inside = guest.lookup(after.nodeid, b"dir").unwrap();
            assert_eq!(inside.attr.flags & SUBMOUNT, 0);
            // What the guest knew is still what it was.
            assert_eq!(
                guest.lookup(before.nodeid, b"dir").unwrap_err(),
                libc::ENOENT
            );
        });
    }

    #[test]
    fn one_file_in_two_mounts_keeps_what_each_mount_allows() {
        with_mounts_of_its_own(|root| {
            for name in ["source", "rw", "ro"] {
                fs::create_dir(root.join(name)).unwrap();
            }
            fs::write(root.join("source/file"), "").unwrap();
            mount_bind(root.join("source"), root.join("rw")).unwrap();
            mount_bind(root.join("source"), root.join("ro")).unwrap();
            let read_only = MountFlags::BIND | MountFlags::RDONLY;
            mount_remount(root.join("ro"), read_only, c"").unwrap();
            let mut guest = Guest::mount(root);
            let writable = guest.walk("rw/file").unwrap().nodeid;
            let read_only = guest.walk("ro/file").unwrap().nodeid;
            guest.open(writable, libc::O_RDWR).unwrap();
            assert_eq!(
                guest.open(read_only, libc::O_RDWR).unwrap_err(),
                libc::EROFS
            );
        });
    }

    #[test]
    fn a_mount_is_busy_until_the_guest_forgets_its_files() {
        with_mounts_of_its_own(|root| {
            let at = root.join("volume");
            fs::create_dir(&at).unwrap();
            mount_tmpfs(&at);
            fs::write(at.join("file"), "").unwrap();
            let mut guest = Guest::mount(root);
            let volume = guest.lookup(ROOT, b"volume").unwrap().nodeid;
            let file = guest.lookup(volume, b"file").unwrap().nodeid;
            guest.lookup(volume, b"file").unwrap();
            assert_eq!(
                unmount(&at, UnmountFlags::empty()).unwrap_err(),
                rustix::io::Errno::BUSY
            );
            guest.forget(file, 2);
            guest.forget(volume, 1);
            unmount(&at, UnmountFlags::empty()).unwrap();
        });
    }
}
