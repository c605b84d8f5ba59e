//! Which directories of the host are volumes that the kubelet renews while a pod runs, and
//! what they look like: see `AtomicWriter` in its sources.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, readlinkat, statat};
use thiserror::Error;

/// The link to the directory with the content.
const DATA: &str = "..data";
/// Names that begin so are the kubelet's own.
const HIDDEN: &[u8] = b"..";

/// The kubelet's plugins whose volumes it renews.
const PLUGINS: [&str; 4] = [
    "kubernetes.io~configmap",
    "kubernetes.io~downward-api",
    "kubernetes.io~projected",
    "kubernetes.io~secret",
];

/// The one whose volumes are there for their pod alone.
const EMPTY_DIR: &str = "kubernetes.io~empty-dir";

/// Bytes of a volume that a guest is to have a copy of in its memory. A ConfigMap or a
/// Secret has one MiB at most.
const MAX_BYTES: u64 = 4 << 20;
/// Files and directories of such a volume.
const MAX_ENTRIES: u32 = 1000;
/// Directories within each other.
const MAX_DEPTH: u32 = 16;

/// Why a volume is not copied.
#[derive(Debug, Error)]
pub(super) enum LayoutError {
    /// It cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It was not written by the kubelet's atomic writer.
    #[error("it has not the layout of the kubelet's")]
    Other,
    /// It is larger than what a guest should have twice.
    #[error(
        "it is larger than {} MiB or has more than {MAX_ENTRIES} files",
        MAX_BYTES >> 20
    )]
    TooLarge,
}

impl From<rustix::io::Errno> for LayoutError {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Io(errno.into())
    }
}

/// Whether a path is one of a volume that the kubelet renews, wherever its root directory
/// is.
pub(super) fn is_renewed(path: &Path) -> bool {
    plugin_of(path).is_some_and(|plugin| PLUGINS.iter().any(|known| plugin == *known))
}

/// Whether a path is one of a volume that begins and ends with its pod, and that nobody else
/// has.
pub(crate) fn is_of_pod(path: &Path) -> bool {
    plugin_of(path).is_some_and(|plugin| plugin == EMPTY_DIR)
}

/// The plugin of the volume with a path that the kubelet gives it:
/// `…/pods/UID/volumes/PLUGIN/NAME`.
fn plugin_of(path: &Path) -> Option<&OsStr> {
    let mut names = path.components().rev().map_while(|part| match part {
        Component::Normal(name) => Some(name),
        _ => None,
    });
    let (_name, plugin, volumes) = (names.next()?, names.next()?, names.next()?);
    let (_uid, pods) = (names.next()?, names.next()?);
    (volumes == "volumes" && pods == "pods").then_some(plugin)
}

/// The name of the directory that has the content by now.
pub(super) fn current(volume: impl AsFd) -> io::Result<Vec<u8>> {
    Ok(readlinkat(volume, DATA, Vec::new())?.into_bytes())
}

/// Checks that a volume has the kubelet's layout, and is small.
pub(super) fn check(volume: impl AsFd) -> Result<(), LayoutError> {
    let current = OsString::from_vec(current(&volume).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::InvalidInput => LayoutError::Other,
        _ => error.into(),
    })?);
    if current == ".."
        || !current.as_encoded_bytes().starts_with(HIDDEN)
        || Path::new(&current).components().count() != 1
    {
        return Err(LayoutError::Other);
    }
    let mut left = Left {
        bytes: MAX_BYTES,
        entries: MAX_ENTRIES,
    };
    let top = open_dir(&volume, Path::new("."))?;
    for entry in Dir::read_from(top)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_bytes() == b"." || name.to_bytes().starts_with(HIDDEN) {
            continue;
        }
        left.take(0)?;
        let stat = statat(&volume, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            return Err(LayoutError::Other);
        }
    }
    left.measure(&volume, Path::new(&current), MAX_DEPTH)
}

fn open_dir(at: impl AsFd, name: &Path) -> rustix::io::Result<std::os::fd::OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::empty())
}

/// How much larger a volume may be.
struct Left {
    bytes: u64,
    entries: u32,
}

impl Left {
    fn take(&mut self, bytes: u64) -> Result<(), LayoutError> {
        self.bytes = self.bytes.checked_sub(bytes).ok_or(LayoutError::TooLarge)?;
        self.entries = self.entries.checked_sub(1).ok_or(LayoutError::TooLarge)?;
        Ok(())
    }

    fn measure(&mut self, at: impl AsFd, name: &Path, depth: u32) -> Result<(), LayoutError> {
        let depth = depth.checked_sub(1).ok_or(LayoutError::TooLarge)?;
        let dir = open_dir(at, name)?;
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            self.take(stat.st_size.unsigned_abs())?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                let name = OsString::from_vec(name.to_bytes().to_vec());
                self.measure(&dir, Path::new(&name), depth)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn volumes_that_the_kubelet_renews_are_known_by_their_path() {
        for plugin in ["configmap", "secret", "projected", "downward-api"] {
            for root in ["/var/lib/kubelet", "/", "/data/k8s root"] {
                let path = format!("{root}/pods/0a-1/volumes/kubernetes.io~{plugin}/name");
                assert!(is_renewed(Path::new(&path)), "{path}");
            }
        }
        for path in [
            "/var/lib/kubelet/pods/1/volumes/kubernetes.io~empty-dir/name",
            "/var/lib/kubelet/pods/1/volumes/kubernetes.io~secret",
            "/var/lib/kubelet/pods/1/volumes/kubernetes.io~secret/name/file",
            "/var/lib/kubelet/pods/1/volumes/kubernetes.io~secret/..",
            "/var/lib/kubelet/pods/1/volume-subpaths/name/main/0",
            "/pods/volumes/kubernetes.io~secret/name",
            "/etc/kubernetes.io~secret/name",
            "/",
        ] {
            assert!(!is_renewed(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn a_pods_own_volumes_are_known_by_their_path() {
        let of = |plugin: &str| format!("/var/lib/kubelet/pods/1/volumes/{plugin}/name");
        assert!(is_of_pod(Path::new(&of("kubernetes.io~empty-dir"))));
        assert!(!is_of_pod(Path::new(&of("kubernetes.io~secret"))));
        assert!(!is_of_pod(Path::new(&of("kubernetes.io~empty-dir/of"))));
    }

    fn volume(current: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("..1/sub")).unwrap();
        fs::write(dir.path().join("..1/sub/key"), "text").unwrap();
        symlink(current, dir.path().join(DATA)).unwrap();
        symlink("..data/sub", dir.path().join("sub")).unwrap();
        dir
    }

    fn check_dir(dir: &tempfile::TempDir) -> Result<(), LayoutError> {
        check(File::open(dir.path()).unwrap())
    }

    #[test]
    fn a_volume_of_the_kubelets_is_copied() {
        let dir = volume("..1");
        check_dir(&dir).unwrap();
        assert_eq!(current(File::open(dir.path()).unwrap()).unwrap(), b"..1");
    }

    #[test]
    fn what_the_kubelet_has_not_written_is_not() {
        for current in ["..", "/etc", "sub", "../..1", "..1/sub"] {
            let error = check_dir(&volume(current)).unwrap_err();
            assert!(matches!(error, LayoutError::Other), "{current}: {error}");
        }
        let plain = tempfile::tempdir().unwrap();
        fs::write(plain.path().join("key"), "text").unwrap();
        assert!(matches!(check_dir(&plain), Err(LayoutError::Other)));
        let mixed = volume("..1");
        fs::write(mixed.path().join("file"), "text").unwrap();
        assert!(matches!(check_dir(&mixed), Err(LayoutError::Other)));
        let dangling = volume("..2");
        assert!(matches!(check_dir(&dangling), Err(LayoutError::Io(_))));
    }

    #[test]
    fn what_is_large_is_not() {
        let large = volume("..1");
        let file = File::create(large.path().join("..1/large")).unwrap();
        file.set_len(MAX_BYTES).unwrap();
        assert!(matches!(check_dir(&large), Err(LayoutError::TooLarge)));
        let many = volume("..1");
        for number in 0..MAX_ENTRIES {
            File::create(many.path().join(format!("..1/{number}"))).unwrap();
        }
        assert!(matches!(check_dir(&many), Err(LayoutError::TooLarge)));
        let deep = volume("..1");
        fs::create_dir_all(deep.path().join("..1").join("d/".repeat(20))).unwrap();
        assert!(matches!(check_dir(&deep), Err(LayoutError::TooLarge)));
    }
}
