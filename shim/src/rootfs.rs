//! A container's root, mounted as containerd hands it over.
//!
//! A snapshotter gives a list of mounts, for the most part one overlay of many
//! layers. They are made in the shim's own mount namespace: nobody else sees
//! them, and nothing is left of them when the shim is gone.
//!
//! What is mounted comes from an image, so each further mount goes to a descriptor that
//! openat2(2) has found inside of it: symbolic links lead to where they would in the container.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use containerd_shim_protos::api::Mount;
use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};
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
    /// What was mounted, in order.
    made: Vec<Mounted>,
}

/// The root of a mount. Dropping it unmounts it.
#[derive(Debug)]
struct Mounted(OwnedFd);

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = unmount(path_of(&self.0), UnmountFlags::DETACH) {
            log::warn!("unmounting a part of a container's root: {error}");
        }
    }
}

/// A place for a mount.
struct Place<'a> {
    root: &'a Path,
    /// Where in the root, without a leading slash; empty: the root itself.
    target: &'a str,
}

impl<'a> Place<'a> {
    fn new(root: &'a Path, target: &'a str) -> Result<Self, Failure> {
        let target = target.trim_start_matches('/');
        let plain = |name: &str| !matches!(name, "" | "." | "..");
        if target.is_empty() || target.split('/').all(plain) {
            return Ok(Self { root, target });
        }
        Err(Failure::invalid_argument(format!(
            "rootfs: target {target:?} leads out of the root"
        )))
    }

    /// What is there now, on top of all mounts.
    fn open(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let of_root = flags | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let root = open(self.root, of_root, Mode::empty())?;
        if self.target.is_empty() {
            return Ok(root);
        }
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        Ok(openat2(root, self.target, flags, Mode::empty(), inside)?)
    }
}

/// A name for what is open, for calls that take no descriptor.
fn path_of(fd: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
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
            let place = Place::new(&root, &one.target)?;
            made.made.push(mount_one(one, &place)?);
        }
        Ok(made)
    }
}

impl Drop for Rootfs {
    fn drop(&mut self) {
        // The last first.
        while self.made.pop().is_some() {}
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

fn mount_one(one: &Mount, place: &Place<'_>) -> Result<Mounted, Failure> {
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
    let at = place.open().map_err(failed)?;
    let data = options.data.join(",");
    if data.len() <= MAX_DATA {
        make(&one.source, &path_of(&at), &one.type_, flags, &data).map_err(failed)?;
    } else {
        make_from_within(one, &path_of(&at), flags, &options.data).map_err(failed)?;
    }
    let mounted = Mounted(place.open().map_err(failed)?);
    // A bind mount takes over its source's flags; only changing it takes ours.
    let changes = flags - MountFlags::BIND - MountFlags::REC;
    if is_bind && !changes.is_empty() {
        mount_remount(path_of(&mounted.0), changes | MountFlags::BIND, "")
            .map_err(|error| failed(error.into()))?;
    }
    Ok(mounted)
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
    use rustix::mount::{MountPropagationFlags, mount_change};

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
    fn targets_are_named_from_the_root() {
        let root = Path::new("/b/rootfs");
        for (target, place) in [("", ""), ("/", ""), ("/a/b", "a/b")] {
            assert_eq!(Place::new(root, target).unwrap().target, place);
        }
        for target in ["..", "a/../..", "a//b", "/a/."] {
            let failure = Place::new(root, target).err().unwrap();
            assert_eq!(failure.code, ttrpc::Code::INVALID_ARGUMENT, "{target}");
        }
    }

    /// Runs `test` in a mount namespace of its own; says loudly where that cannot be.
    fn in_a_mount_namespace(test: impl FnOnce() + Send) {
        let test = || {
            // SAFETY: only this thread's mounts, working directory and umask are replaced, no
            // memory or descriptor.
            let unshared = unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) };
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            match unshared.and_then(|()| mount_change("/", private)) {
                Ok(()) => test(),
                Err(error) => eprintln!("SKIPPED: this test needs a mount namespace: {error}"),
            }
        };
        std::thread::scope(|scope| scope.spawn(test).join()).unwrap();
    }

    fn bind(source: &Path, target: &str, options: &[&str]) -> Mount {
        Mount {
            type_: "bind".into(),
            source: source.to_str().unwrap().into(),
            target: target.into(),
            options: options.iter().copied().map(String::from).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn links_of_an_image_lead_no_mount_out_of_its_root() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["bundle", "image", "image/data", "more", "data"] {
            fs::create_dir(at(name)).unwrap();
        }
        fs::write(at("more/file"), "").unwrap();
        std::os::unix::fs::symlink("/data", at("image/absolute")).unwrap();
        std::os::unix::fs::symlink("../../../../data", at("image/relative")).unwrap();
        in_a_mount_namespace(|| {
            for link in ["absolute", "/relative"] {
                let mounts = [
                    bind(&at("image"), "", &["rbind", "rw"]),
                    bind(&at("more"), link, &["bind", "ro"]),
                ];
                let rootfs = Rootfs::mount(&at("bundle"), &mounts).unwrap();
                assert!(at("bundle/rootfs/data/file").exists(), "{link}");
                assert!(fs::write(at("bundle/rootfs/data/new"), "").is_err());
                assert!(!at("data/file").exists() && !at("image/data/file").exists());
                drop(rootfs);
                assert_eq!(fs::read_dir(at("bundle/rootfs")).unwrap().count(), 0);
            }
        });
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
