//! What the share keeps of a guest's doings, and how much of it.

use std::ffi::CString;
use std::fs;

use fuse_backend_rs::abi::fuse_abi::CreateIn;
use fuse_backend_rs::api::filesystem::{Context, FileSystem, SetattrValid};

use super::inodes::ROOT;
use super::*;

/// A share of a directory with files named `0` to `9`, and so many descriptors.
fn share(descriptors: u64) -> (tempfile::TempDir, Share) {
    let root = tempfile::tempdir().unwrap();
    for index in 0..10 {
        fs::write(root.path().join(index.to_string()), "").unwrap();
    }
    let host = Host {
        budget: Budget::new(descriptors),
        ..Host::open(root.path()).unwrap()
    };
    let share = Share::new(Arc::new(host)).unwrap();
    (root, share)
}

fn name(index: u64) -> CString {
    CString::new(index.to_string()).unwrap()
}

fn code<T: std::fmt::Debug>(result: io::Result<T>) -> Option<i32> {
    result.unwrap_err().raw_os_error()
}

#[test]
fn without_descriptors_the_guest_sees_enfile_until_it_forgets_something() {
    let context = Context::default();
    let (_root, share) = share(4);
    let known: Vec<_> = (0..3)
        .map(|index| share.lookup(&context, ROOT, &name(index)).unwrap())
        .collect();
    assert_eq!(
        code(share.lookup(&context, ROOT, &name(3))),
        Some(libc::ENFILE)
    );
    assert_eq!(
        code(share.open(&context, known[0].inode, 0, 0)),
        Some(libc::ENFILE)
    );
    assert_eq!(code(share.opendir(&context, ROOT, 0)), Some(libc::ENFILE));
    let new = share.create(&context, ROOT, c"new", CreateIn::default());
    assert_eq!(code(new), Some(libc::ENFILE));
    // What needs no descriptor goes on.
    share.getattr(&context, known[0].inode, None).unwrap();
    share
        .setattr(
            &context,
            known[0].inode,
            Entry::default().attr,
            None,
            SetattrValid::empty(),
        )
        .unwrap();

    share.forget(&context, known[0].inode, 1);
    share.lookup(&context, ROOT, &name(3)).unwrap();
}

#[test]
fn a_listing_goes_on_without_attributes_when_descriptors_run_out() {
    let context = Context::default();
    let (_root, share) = share(4);
    let (dir, _) = share.opendir(&context, ROOT, 0).unwrap();
    let (mut names, mut with_attributes) = (0, 0);
    share
        .readdirplus(&context, ROOT, dir.unwrap(), 1 << 16, 0, &mut |_, entry| {
            names += 1;
            with_attributes += i32::from(entry.inode != 0);
            Ok(1)
        })
        .unwrap();
    assert_eq!((names, with_attributes), (12, 2));
}

#[test]
fn what_did_not_fit_into_a_listing_is_not_remembered() {
    let context = Context::default();
    let (_root, share) = share(1000);
    let (dir, _) = share.opendir(&context, ROOT, 0).unwrap();
    let mut room = 5;
    let mut list = |fail: bool| {
        share.readdirplus(&context, ROOT, dir.unwrap(), 1 << 16, 0, &mut |_, entry| {
            if entry.inode != 0 && fail {
                return Err(errno(libc::EIO));
            }
            room -= i32::from(entry.inode != 0);
            Ok(usize::from(room >= 0))
        })
    };
    list(false).unwrap();
    assert_eq!(share.inodes.len(), 1 + 5);
    assert_eq!(code(list(true)), Some(libc::EIO));
    assert_eq!(share.inodes.len(), 1 + 5);
}

#[test]
fn files_that_are_forgotten_leave_nothing_behind() {
    let context = Context::default();
    let (root, share) = share(1000);
    let mut last = 0;
    for round in 0..1000 {
        fs::write(root.path().join("new"), "").unwrap();
        let entry = share.lookup(&context, ROOT, c"new").unwrap();
        assert!(entry.inode > last, "numbers are not used again");
        last = entry.inode;
        let (fh, ..) = share.open(&context, entry.inode, 0, 0).unwrap();
        share
            .release(&context, entry.inode, 0, fh.unwrap(), false, false, None)
            .unwrap();
        share.unlink(&context, ROOT, c"new").unwrap();
        share.forget(&context, entry.inode, 1);
        assert_eq!((share.inodes.len(), share.handles.len()), (1, 0), "{round}");
    }
}

#[test]
fn looking_twice_takes_forgetting_twice() {
    let context = Context::default();
    let (_root, share) = share(1000);
    let first = share.lookup(&context, ROOT, c"0").unwrap().inode;
    assert_eq!(share.lookup(&context, ROOT, c"0").unwrap().inode, first);
    share.forget(&context, first, 1);
    share.getattr(&context, first, None).unwrap();
    share.forget(&context, first, 1);
    assert_eq!(
        code(share.getattr(&context, first, None)),
        Some(libc::EBADF)
    );
}

#[test]
fn a_failed_create_of_what_the_host_has_made_leaves_nothing_behind() {
    let (root, share) = share(1000);
    let user = Context {
        uid: 1000,
        gid: 1000,
        pid: 1,
    };
    // Everybody may make files, nobody else may read this one.
    let private = root.path().join("0");
    fs::set_permissions(
        root.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )
    .unwrap();
    fs::set_permissions(
        &private,
        std::os::unix::fs::PermissionsExt::from_mode(0o600),
    )
    .unwrap();
    let result = share.create(&user, ROOT, c"0", CreateIn::default());
    assert_eq!(code(result), Some(libc::EACCES));
    let args = CreateIn {
        flags: libc::O_EXCL.cast_unsigned(),
        ..CreateIn::default()
    };
    assert_eq!(
        code(share.create(&user, ROOT, c"0", args)),
        Some(libc::EEXIST)
    );
    assert_eq!((share.inodes.len(), share.handles.len()), (1, 0));
}
