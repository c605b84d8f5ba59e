//! The one directory tree of the host that a pod's guest may see.
//!
//! `<container>/rootfs` is a container's root. `.volumes/<n>` is the source of mounts: each a
//! mount of its own, so that nothing beside what the specification names is in the tree, and
//! one for all containers that name the same source. To the guest what is on it is then one
//! file system, in which a socket, a lock or a watch of one container is that of the others.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::mount::UnmountFlags;
use thiserror::Error;

use super::mount::{self, Access};
use super::source::{Identity, Source};

/// Directory of the volumes. No container is called so: an identifier begins with no dot.
const VOLUMES: &str = ".volumes";

/// Why something could not be put into the share.
#[derive(Debug, Error)]
#[error("cannot share {what} with the guest: {source}")]
pub struct ShareError {
    what: String,
    source: io::Error,
}

impl ShareError {
    fn of(what: &str) -> impl FnOnce(io::Error) -> Self {
        let what = what.to_owned();
        move |source| Self { what, source }
    }
}

/// A pod's share.
#[derive(Debug)]
pub struct Share {
    /// The directory itself.
    writable: OwnedFd,
    /// The read-only mount on top of it, which the monitor has a copy of.
    view: OwnedFd,
    volumes: Mutex<Volumes>,
}

/// The sources of mounts that are in a share.
#[derive(Debug, Default)]
struct Volumes {
    there: Vec<Volume>,
    /// How many there ever were. The guest may remember a name for a while, so none is used
    /// again.
    named: u64,
}

#[derive(Debug)]
struct Volume {
    place: String,
    is_dir: bool,
    identity: Identity,
    access: Access,
    /// The containers that mount it, each once for every mount.
    users: Vec<String>,
}

impl Volumes {
    /// The one that shows what a source does and may be written to as much. Of several the one
    /// that allows most, where those are who write; the guest's kernel keeps a container that
    /// may not from it.
    fn find(&mut self, source: &Source) -> Option<&mut Volume> {
        let same = self.there.iter_mut().filter(|volume| {
            volume.identity == *source.identity() && volume.access >= source.access()
        });
        same.max_by_key(|volume| volume.access)
    }
}

impl Share {
    /// Makes the share of its directory and the mount on top of that.
    pub(super) fn new(writable: OwnedFd, view: OwnedFd) -> io::Result<Self> {
        let share = Self {
            writable,
            view,
            volumes: Mutex::default(),
        };
        share.make_dir(VOLUMES)?;
        Ok(share)
    }

    /// Shares a container's root and the sources of its mounts, by their number
    /// in the specification, and tells each where it is. A running monitor sees
    /// them at once.
    ///
    /// # Errors
    /// [`ShareError`]; nothing of the container is then in the share.
    pub fn add<'a>(
        &self,
        container: &str,
        rootfs: &Source,
        mounts: impl IntoIterator<Item = (usize, &'a Source)>,
    ) -> Result<(), ShareError> {
        // A name that is taken stays with whom it belongs to.
        self.make_dir(container)
            .map_err(ShareError::of(container))?;
        let result = self.fill(container, rootfs, mounts);
        if result.is_err() {
            self.remove(container);
        }
        result
    }

    fn fill<'a>(
        &self,
        container: &str,
        rootfs: &Source,
        mounts: impl IntoIterator<Item = (usize, &'a Source)>,
    ) -> Result<(), ShareError> {
        let place = format!("{container}/rootfs");
        self.mount(&place, rootfs)
            .map_err(ShareError::of("the root"))?;
        rootfs.set_place(place);
        for (index, source) in mounts {
            self.add_volume(container, source)
                .map_err(ShareError::of(&format!("mounts[{index}]")))?;
        }
        Ok(())
    }

    fn add_volume(&self, container: &str, source: &Source) -> io::Result<()> {
        let mut volumes = self.lock();
        if let Some(volume) = volumes.find(source) {
            volume.users.push(container.to_owned());
            source.set_place(volume.place.clone());
            return Ok(());
        }
        let place = format!("{VOLUMES}/{}", volumes.named);
        volumes.named += 1;
        if let Err(error) = self.mount(&place, source) {
            self.unmount(&place, source.is_dir());
            return Err(error);
        }
        volumes.there.push(Volume {
            place: place.clone(),
            is_dir: source.is_dir(),
            identity: source.identity().clone(),
            access: source.access(),
            users: vec![container.to_owned()],
        });
        source.set_place(place);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Volumes> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make_dir(&self, place: &str) -> io::Result<()> {
        Ok(mkdirat(&self.writable, place, Mode::from_raw_mode(0o755))?)
    }

    fn mount(&self, place: &str, source: &Source) -> io::Result<()> {
        if source.is_dir() {
            self.make_dir(place)?;
        } else {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            openat(&self.writable, place, flags, Mode::from_raw_mode(0o644))?;
        }
        mount::attach(&source.tree()?, &self.view, place)
    }

    /// Takes a container out of the share, and the volumes that no other one has. What the
    /// guest still has open stays with it until it lets go.
    pub fn remove(&self, container: &str) {
        // Best effort: the mount namespace's end takes what is left.
        self.unmount(&format!("{container}/rootfs"), true);
        let _ = unlinkat(&self.writable, container, AtFlags::REMOVEDIR);
        self.lock().there.retain_mut(|volume| {
            volume.users.retain(|user| user != container);
            let is_used = !volume.users.is_empty();
            if !is_used {
                self.unmount(&volume.place, volume.is_dir);
            }
            is_used
        });
    }

    fn unmount(&self, place: &str, is_dir: bool) {
        let path = format!("/proc/thread-self/fd/{}/{place}", self.view.as_raw_fd());
        let _ = rustix::mount::unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        let remove = if is_dir {
            AtFlags::REMOVEDIR
        } else {
            AtFlags::empty()
        };
        let _ = unlinkat(&self.writable, place, remove);
    }
}
