//! Removal of a tree that a guest may have made as deep as it liked.
//!
//! A function that calls itself for each level, as that of the standard library, runs out of
//! descriptors. Here, what is below a directory is moved up until nothing is below it.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;

/// Names that are kept in memory at once.
const AT_ONCE: usize = 1024;

/// Removes a directory of ours and all that is in it; mounts stay, and are an error.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    let top = open_dir(&rustix::fs::CWD, path)?;
    let mut moved = 0_u64;
    loop {
        let names = subdirectories(&top)?;
        if names.is_empty() {
            break;
        }
        for name in names {
            flatten(&top, &name, &mut moved)?;
        }
    }
    std::fs::remove_dir(path)
}

fn open_dir<P: rustix::path::Arg>(at: &impl AsFd, name: P) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(at, name, flags, Mode::empty())?)
}

/// Removes the directory `name` of `top`; directories in it become such of `top`.
fn flatten(top: &OwnedFd, name: &CString, moved: &mut u64) -> io::Result<()> {
    let dir = open_dir(top, name)?;
    loop {
        let below = subdirectories(&dir)?;
        if below.is_empty() {
            break;
        }
        for name in below {
            move_up(&dir, &name, top, moved)?;
        }
    }
    Ok(unlinkat(top, name, AtFlags::REMOVEDIR)?)
}

/// Moves a directory to a name in `top` that nothing has.
fn move_up(dir: &OwnedFd, name: &CString, top: &OwnedFd, moved: &mut u64) -> io::Result<()> {
    loop {
        *moved += 1;
        match renameat(dir, name, top, format!("removed.{moved}")) {
            // Somebody has thought of that name.
            Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
            answer => return Ok(answer?),
        }
    }
}

/// Removes what is no directory, and names some of the directories; none when there are none.
fn subdirectories(dir: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        if names.len() == AT_ONCE {
            break;
        }
        match entry.file_type() {
            FileType::Directory => names.push(name.to_owned()),
            _ => match unlinkat(dir, name, AtFlags::empty()) {
                // A file system that does not tell types.
                Err(Errno::ISDIR) => names.push(name.to_owned()),
                answer => answer?,
            },
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_tree_deeper_than_there_are_descriptors_is_removed() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("kept"), "").unwrap();
        let parent = tempfile::tempdir().unwrap();
        let top = parent.path().join("top");
        fs::create_dir(&top).unwrap();
        symlink(outside.path(), top.join("link")).unwrap();
        fs::write(top.join("removed.1"), "").unwrap();
        let mut dir = open_dir(&rustix::fs::CWD, &top).unwrap();
        for _ in 0..2000 {
            rustix::fs::mkdirat(&dir, "removed.2", Mode::RWXU).unwrap();
            rustix::fs::symlinkat("/", &dir, "file").ok();
            dir = open_dir(&dir, "removed.2").unwrap();
        }
        drop(dir);
        remove_tree(&top).unwrap();
        assert!(!top.exists());
        assert!(outside.path().join("kept").exists());
    }
}
