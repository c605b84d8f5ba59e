//! Paths whose content a container must not read.
//!
//! libcontainer would lay the mask of a file over a link to it, and leave the file open to
//! whoever knows its own name. So the paths are taken from it, and masked when it is done.

use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use rustix::fs::{Dev, FileType, major, minor, stat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind};
use rustix::process::Pid;
use rustix::thread::ThreadNameSpaceType;

use super::enter::enter;
use super::report::Failure;

/// What masks a file, in the container.
const NULL: &str = "/dev/null";

/// Takes the masked paths out of a specification.
pub(super) fn take(spec: &mut Spec) -> Vec<PathBuf> {
    let linux = spec.linux_mut().as_mut();
    let paths = linux.and_then(|linux| linux.masked_paths_mut().take());
    paths
        .unwrap_or_default()
        .into_iter()
        .map(PathBuf::from)
        .collect()
}

/// Masks paths of a container that waits to be started: a directory with an empty one, all
/// else with the null device. The helper is in its mount namespace afterwards.
pub(super) fn mask(pid: Pid, paths: &[PathBuf]) -> Result<(), Failure> {
    if paths.is_empty() {
        return Ok(());
    }
    enter(pid, ThreadNameSpaceType::MOUNT).map_err(Failure::internal)?;
    paths.iter().try_for_each(|path| {
        cover(path)
            .map_err(|error| Failure::internal(format!("linux.maskedPaths: {path:?}: {error}")))
    })
}

/// Links are followed: what they lead to is masked, by whatever name it is read.
fn cover(path: &Path) -> io::Result<()> {
    let mode = match stat(path) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        found => found?.st_mode,
    };
    if FileType::from_raw_mode(mode) == FileType::Directory {
        return Ok(mount("tmpfs", path, "tmpfs", MountFlags::RDONLY, None)?);
    }
    let null = stat(NULL)?;
    if !is_null(null.st_mode, null.st_rdev) {
        let message = format!("the container's {NULL} is not the null device");
        return Err(io::Error::other(message));
    }
    Ok(mount_bind(NULL, path)?)
}

fn is_null(mode: u32, device: Dev) -> bool {
    FileType::from_raw_mode(mode) == FileType::CharacterDevice
        && (major(device), minor(device)) == (1, 3)
}

#[cfg(test)]
mod tests {
    use rustix::fs::makedev;

    use super::*;

    #[test]
    fn only_the_null_device_is_one() {
        assert!(is_null(libc::S_IFCHR | 0o666, makedev(1, 3)));
        assert!(!is_null(libc::S_IFCHR | 0o666, makedev(1, 5)));
        assert!(!is_null(libc::S_IFBLK | 0o666, makedev(1, 3)));
        assert!(!is_null(libc::S_IFREG | 0o666, makedev(1, 3)));
    }

    #[test]
    fn the_builder_is_left_no_path_to_mask() {
        let json = r#"{"ociVersion":"1.2.0","linux":{"maskedPaths":["/a","/b"]}}"#;
        let mut spec: Spec = serde_json::from_str(json).unwrap();
        assert_eq!(take(&mut spec), [Path::new("/a"), Path::new("/b")]);
        assert_eq!(take(&mut spec), Vec::<PathBuf>::new());
        let mut without: Spec = serde_json::from_str(r#"{"ociVersion":"1.2.0"}"#).unwrap();
        assert_eq!(take(&mut without), Vec::<PathBuf>::new());
    }
}
