//! The user's home directory, from the container's own `/etc/passwd`.
//!
//! libcontainer would ask the C library, which in a static program loads
//! whatever name service modules the container's files name.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use pathrs::Root;
use pathrs::flags::OpenFlags;
use rustix::fs::FileType;

/// Bytes of `/etc/passwd` that are looked through.
const MAX_FILE: u64 = 1 << 20;

/// Home of a user the container does not know.
const DEFAULT_HOME: &str = "/";

/// Adds `HOME` to an environment that has none, or an empty one.
pub(super) fn add_home(
    env: &mut Vec<String>,
    uid: u32,
    read_passwd: impl FnOnce() -> Option<String>,
) {
    let has_home = env.iter().any(|entry| {
        entry
            .strip_prefix("HOME=")
            .is_some_and(|home| !home.is_empty())
    });
    if has_home {
        return;
    }
    env.retain(|entry| !entry.starts_with("HOME="));
    let home = read_passwd()
        .and_then(|passwd| home_of(&passwd, uid).map(str::to_owned))
        .unwrap_or_else(|| DEFAULT_HOME.to_owned());
    env.push(format!("HOME={home}"));
}

/// The `/etc/passwd` below a root file system, read inside it: the image may have
/// made it a link to anywhere.
pub(super) fn read_passwd(rootfs: &Path) -> Option<String> {
    let root = Root::open(rootfs).ok()?;
    let handle = root.resolve("etc/passwd").ok()?;
    let status = rustix::fs::fstat(&handle).ok()?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return None;
    }
    read_bounded(handle.reopen(OpenFlags::O_RDONLY).ok()?)
}

/// The beginning of a file, which is all of any that is what it should be.
pub(super) fn read_bounded(file: File) -> Option<String> {
    let mut text = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// Sixth field of the first line whose third is the user's number.
fn home_of(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let fields: Vec<_> = line.split(':').collect();
        let is_user = fields.get(2).and_then(|id| id.parse().ok()) == Some(uid);
        let home = fields.get(5).filter(|home| home.starts_with('/'))?;
        is_user.then_some(*home)
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:33::/srv/web:/bin/sh\n";

    fn home_in(rootfs: &Path, env: &[&str], uid: u32) -> Vec<String> {
        let mut env = env.iter().map(|entry| (*entry).to_owned()).collect();
        add_home(&mut env, uid, || read_passwd(rootfs));
        env
    }

    #[test]
    fn the_home_is_the_containers() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/passwd"), PASSWD).unwrap();
        assert_eq!(home_in(root.path(), &["A=1"], 33), ["A=1", "HOME=/srv/web"]);
        assert_eq!(home_in(root.path(), &["HOME="], 0), ["HOME=/root"]);
        assert_eq!(home_in(root.path(), &["HOME=/x"], 0), ["HOME=/x"]);
        assert_eq!(home_in(root.path(), &[], 77), ["HOME=/"]);
    }

    #[test]
    fn a_link_out_of_the_root_is_not_followed_there() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::NamedTempFile::new().unwrap();
        fs::write(outside.path(), "x:x:5:5::/outside:/bin/sh\n").unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        symlink(outside.path(), root.path().join("etc/passwd")).unwrap();
        assert_eq!(home_in(root.path(), &[], 5), ["HOME=/"]);
    }

    #[test]
    fn a_device_or_directory_instead_of_the_file_is_no_hang() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc/passwd")).unwrap();
        assert_eq!(home_in(root.path(), &[], 0), ["HOME=/"]);
        fs::remove_dir(root.path().join("etc/passwd")).unwrap();
        let fifo = root.path().join("etc/passwd");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert_eq!(home_in(root.path(), &[], 0), ["HOME=/"]);
    }
}
