//! A container's root, mounted as containerd hands it over.
//!
//! A snapshotter gives a list of mounts, for the most part one overlay of many
//! layers. They are made in the shim's own mount namespace: nobody else sees
//! them, and nothing is left of them when the shim is gone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use containerd_shim_protos::api::Mount;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::failure::Failure;
use crate::mount_options::Options;

/// Longest option string that the kernel takes: a page with its final zero.
const MAX_DATA: usize = 4095;

/// Most layers that are taken off when a root is removed.
const MAX_STACKED: usize = 64;

/// A mounted root. Dropping it unmounts it.
#[derive(Debug)]
pub(crate) struct Rootfs {
    /// Where mounts were made, in order.
    made: Vec<PathBuf>,
}

impl Rootfs {
    /// Mounts `mounts` at `bundle`'s `rootfs`, one upon the other. With none, the
    /// directory is taken as it is.
    ///
    /// # Errors
    /// [`Failure`]; nothing is then mounted.
    pub(crate) fn mount(bundle: &Path, mounts: &[Mount]) -> Result<Self, Failure> {
        let root = bundle.join("rootfs");
        let mut made = Self { made: Vec::new() };
        if mounts.is_empty() {
            return Ok(made);
        }
        match fs::create_dir(&root) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Failure::internal(format!("{}: {error}", root.display())));
            }
            _ => {}
        }
        for one in mounts {
            let place = place(&root, &one.target)?;
            mount_one(one, &place)?;
            made.made.push(place);
        }
        Ok(made)
    }
}

impl Drop for Rootfs {
    fn drop(&mut self) {
        for place in self.made.iter().rev() {
            let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
            if let Err(error) = unmount(place, flags) {
                log::warn!("unmounting {}: {error}", place.display());
            }
        }
    }
}

/// Takes away whatever is mounted at a bundle's `rootfs`.
pub(crate) fn unmount_all(bundle: &Path) {
    let root = bundle.join("rootfs");
    for _ in 0..MAX_STACKED {
        if unmount(&root, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_err() {
            break;
        }
    }
}

/// Where below `root` a mount goes; a target must not lead out of it.
fn place(root: &Path, target: &str) -> Result<PathBuf, Failure> {
    let target = target.trim_start_matches('/');
    let plain = |name: &str| !matches!(name, "" | "." | "..");
    if target.is_empty() {
        Ok(root.to_owned())
    } else if target.split('/').all(plain) {
        Ok(root.join(target))
    } else {
        Err(Failure::invalid_argument(format!(
            "rootfs: target {target:?} leads out of the root"
        )))
    }
}

fn mount_one(one: &Mount, place: &Path) -> Result<(), Failure> {
    let options = Options::parse(&one.options).map_err(|reason| refuse(one, &reason))?;
    let failed = |error: io::Error| {
        let what = format!("rootfs: cannot mount {:?} ({})", one.source, one.type_);
        Failure::internal(format!("{what}: {error}"))
    };
    let is_bind = options.flags.contains(MountFlags::BIND) || one.type_ == "bind";
    let flags = if is_bind {
        options.flags | MountFlags::BIND
    } else {
        options.flags
    };
    let data = options.data.join(",");
    if data.len() <= MAX_DATA {
        make(&one.source, place, &one.type_, flags, &data).map_err(failed)?;
    } else {
        make_from_within(one, place, flags, &options.data).map_err(failed)?;
    }
    // A bind mount takes over its source's flags; only changing it takes ours.
    let changes = flags - MountFlags::BIND - MountFlags::REC;
    if is_bind && !changes.is_empty() {
        mount_remount(place, changes | MountFlags::BIND, "").map_err(|error| {
            let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
            let _ = unmount(place, flags);
            failed(error.into())
        })?;
    }
    Ok(())
}

fn refuse(one: &Mount, reason: &str) -> Failure {
    Failure::invalid_argument(format!(
        "rootfs: mount of {:?} ({}): {reason}",
        one.source, one.type_
    ))
}

fn make(source: &str, place: &Path, kind: &str, flags: MountFlags, data: &str) -> io::Result<()> {
    let data = std::ffi::CString::new(data)?;
    Ok(mount(source, place, kind, flags, &*data)?)
}

/// Mounts an overlay of so many layers that their paths do not fit: in their
/// common directory, by the rest of their paths.
fn make_from_within(
    one: &Mount,
    place: &Path,
    flags: MountFlags,
    options: &[String],
) -> io::Result<()> {
    let too_long = || io::Error::other("its options are longer than a page");
    let (dir, options) = shorten(options).ok_or_else(too_long)?;
    let data = options.join(",");
    if data.len() > MAX_DATA {
        return Err(too_long());
    }
    let mount = || {
        // SAFETY: of what is unshared, working directory and umask, only this
        // thread's own copy changes; no memory or descriptor does.
        unsafe { unshare_unsafe(UnshareFlags::FS) }?;
        std::env::set_current_dir(&dir)?;
        make(&one.source, place, &one.type_, flags, &data)
    };
    std::thread::scope(|scope| scope.spawn(mount).join())
        .unwrap_or_else(|_| Err(io::Error::other("the thread that mounts panicked")))
}

/// The common directory of the layers in `lowerdir`, and the options with the
/// layers relative to it.
fn shorten(options: &[String]) -> Option<(String, Vec<String>)> {
    const LOWER: &str = "lowerdir=";
    let layers = options
        .iter()
        .find_map(|option| option.strip_prefix(LOWER))?;
    // A name with an escaped separator is left to the kernel to refuse.
    let mut dir = layers.split(':').next()?.rsplit_once('/')?.0;
    while !layers.split(':').all(|layer| {
        layer
            .strip_prefix(dir)
            .is_some_and(|rest| rest.starts_with('/'))
    }) {
        dir = dir.rsplit_once('/')?.0;
    }
    if dir.is_empty() {
        return None;
    }
    let prefix = dir.len() + 1;
    let relative: Vec<_> = layers.split(':').map(|layer| &layer[prefix..]).collect();
    let options = options
        .iter()
        .map(|option| match option.starts_with(LOWER) {
            true => format!("{LOWER}{}", relative.join(":")),
            false => option.clone(),
        })
        .collect();
    Some((dir.to_owned(), options))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_shortened_by_what_they_have_in_common() {
        let options: Vec<String> = [
            "workdir=/var/lib/s/9/work",
            "lowerdir=/var/lib/s/1/fs:/var/lib/s/22/fs",
            "index=off",
        ]
        .map(String::from)
        .to_vec();
        let (dir, options) = shorten(&options).unwrap();
        assert_eq!(dir, "/var/lib/s");
        assert_eq!(
            options,
            [
                "workdir=/var/lib/s/9/work",
                "lowerdir=1/fs:22/fs",
                "index=off"
            ]
        );
        let similar = ["lowerdir=/a/b1/x:/a/b2/x".to_owned()];
        assert_eq!(shorten(&similar).unwrap().0, "/a");
    }

    #[test]
    fn layers_with_nothing_in_common_stay_long() {
        assert!(shorten(&["lowerdir=/a/x:/b/x".to_owned()]).is_none());
        assert!(shorten(&["upperdir=/a".to_owned()]).is_none());
    }

    #[test]
    fn targets_stay_in_the_root() {
        let root = Path::new("/b/rootfs");
        assert_eq!(place(root, "").unwrap(), root);
        assert_eq!(place(root, "/").unwrap(), root);
        assert_eq!(place(root, "/a/b").unwrap(), root.join("a/b"));
        for target in ["..", "a/../..", "a//b", "/a/."] {
            let failure = place(root, target).unwrap_err();
            assert_eq!(failure.code, ttrpc::Code::INVALID_ARGUMENT, "{target}");
        }
    }

    #[test]
    fn a_mount_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let one = Mount {
            type_: "overlay".into(),
            source: "over".into(),
            options: vec!["loop".into()],
            ..Default::default()
        };
        let failure = Rootfs::mount(dir.path(), &[one]).unwrap_err();
        assert!(
            failure.message.contains("\"over\" (overlay): "),
            "{failure}"
        );
        assert!(failure.message.contains("loop"), "{failure}");
    }

    #[test]
    fn without_mounts_the_directory_is_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let rootfs = Rootfs::mount(dir.path(), &[]).unwrap();
        assert!(rootfs.made.is_empty());
    }
}
