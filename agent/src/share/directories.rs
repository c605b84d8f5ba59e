//! Directories of the share that containers are given, each mounted once for all of them.
//!
//! The kernel mounts what is a file system of its own in the share when somebody comes to it, in
//! the mount namespace where that is. If each container did so by itself, each had a file system
//! of its own: the same files, but no socket, lock or watch in common. So they are mounted here
//! first, for the containers to bind, and stay until the last of these is gone.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nacre_protocol::GUEST_SHARE;
use nacre_protocol::agent::{SharedDirectory, Submount};
use rustix::fs::OFlags;
use rustix::mount::{MountFlags, UnmountFlags, mount_remount, unmount};

use super::open;
use crate::error::{Doing, Error};

/// Directories of one container.
const MAX_OF_CONTAINER: usize = 16 << 10;

/// The directories that containers have, and how many uses each has.
#[derive(Debug, Default)]
pub(crate) struct Directories(Mutex<HashMap<PathBuf, usize>>);

/// A container's use of directories.
#[derive(Debug)]
pub(crate) struct Held {
    directories: Arc<Directories>,
    paths: Vec<PathBuf>,
}

impl Directories {
    /// Mounts those of a container that are not yet mounted.
    pub(crate) async fn hold(
        self: &Arc<Self>,
        requests: Vec<SharedDirectory>,
    ) -> Result<Held, Error> {
        if requests.len() > MAX_OF_CONTAINER {
            let message = format!("directories: more than {MAX_OF_CONTAINER}");
            return Err(Error::ResourceExhausted(message));
        }
        let held = self.count(&requests);
        // Reading the share may take long, so that a thread of its own does.
        let mounting = tokio::task::spawn_blocking(move || requests.iter().for_each(mount));
        mounting.await.doing("cannot mount directories")?;
        Ok(held)
    }

    fn count(self: &Arc<Self>, requests: &[SharedDirectory]) -> Held {
        let paths: Vec<_> = requests
            .iter()
            .map(|request| PathBuf::from(&request.path))
            .collect();
        let mut uses = self.lock();
        for path in &paths {
            *uses.entry(path.clone()).or_default() += 1;
        }
        Held {
            directories: Arc::clone(self),
            paths,
        }
    }

    /// Takes uses back, and hands what has none any more to `unmount`.
    fn release(&self, paths: &[PathBuf], unmount: impl Fn(&Path)) {
        // Locked until it is unmounted: who comes meanwhile would find it there, and lose it.
        let mut uses = self.lock();
        for path in paths {
            let Some(count) = uses.get_mut(path) else {
                continue;
            };
            *count -= 1;
            if *count == 0 {
                uses.remove(path);
                unmount(path);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let directories = Arc::clone(&self.directories);
        let paths = std::mem::take(&mut self.paths);
        let release = move || directories.release(&paths, unmount_shared);
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(release)),
            Err(_) => release(),
        }
    }
}

/// Comes to a directory and to what is mounted below it. What cannot be reached is refused by
/// its field when the container is built, or was moved by another container.
fn mount(request: &SharedDirectory) {
    let path = Path::new(&request.path);
    if let Err(error) = come_to(path, &[]) {
        log::debug!("{}: {error}", path.display());
        return;
    }
    for Submount {
        path: below,
        options,
        ..
    } in &request.below
    {
        let place = path.join(OsStr::from_bytes(below));
        if let Err(error) = come_to(&place, options) {
            log::debug!("{}: {error}", place.display());
        }
    }
}

fn come_to(path: &Path, options: &[String]) -> Result<(), Error> {
    // Looking at a directory does not mount what is in its place; using it as one does.
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let directory = open(path, flags)?.doing("cannot be opened")?;
    let flags = options.iter().filter_map(|option| flag(option));
    let flags = flags.fold(MountFlags::empty(), MountFlags::union);
    if flags.is_empty() {
        return Ok(());
    }
    let link = format!("/proc/self/fd/{}", directory.as_raw_fd());
    mount_remount(link, MountFlags::BIND | flags, c"").doing("cannot be restricted")
}

fn flag(option: &str) -> Option<MountFlags> {
    match option {
        "nosuid" => Some(MountFlags::NOSUID),
        "nodev" => Some(MountFlags::NODEV),
        "noexec" => Some(MountFlags::NOEXEC),
        "ro" => Some(MountFlags::RDONLY),
        _ => None,
    }
}

fn unmount_shared(path: &Path) {
    if !path.starts_with(GUEST_SHARE) {
        return;
    }
    match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).map_err(io::Error::from) {
        // It was in the same file system, or is gone from the share.
        Err(error)
            if !matches!(
                error.raw_os_error(),
                Some(libc::EINVAL | libc::ENOENT | libc::ENOTDIR)
            ) =>
        {
            log::error!("{}: {error}", path.display());
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn a_directory_goes_with_its_last_use() {
        let directories = Arc::new(Directories::default());
        let request = |path: &str| SharedDirectory {
            path: path.to_owned(),
            ..SharedDirectory::default()
        };
        let mut one = directories.count(&[request("/a"), request("/a"), request("/b")]);
        let mut two = directories.count(&[request("/a")]);
        let gone = RefCell::new(Vec::new());
        let release = |held: &mut Held| {
            let paths = std::mem::take(&mut held.paths);
            directories.release(&paths, |path| gone.borrow_mut().push(path.to_owned()));
        };
        release(&mut one);
        assert_eq!(gone.take(), [Path::new("/b")]);
        release(&mut two);
        assert_eq!(gone.take(), [Path::new("/a")]);
    }

    #[test]
    fn options_of_the_hosts_mounts_are_the_guests() {
        assert_eq!(flag("ro"), Some(MountFlags::RDONLY));
        assert_eq!(flag("rw"), None);
    }
}
