//! Volumes that Kubernetes renews while a pod runs: ConfigMaps, Secrets, tokens.
//!
//! What the host changes in the share shows in the guest, but no inotify tells of it: the
//! guest's kernel has not made the change. So such a volume is copied to a tmpfs of the
//! guest, which the containers have in the share's place, and the host says when there is
//! something new. [`writer`] then makes the same change by the same steps.

mod place;
mod writer;

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nacre_protocol::agent::{CopiedVolume, RenewVolumeRequest};
use rustix::fs::OFlags;

use crate::container::Id;
use crate::error::{Doing, Error};
use crate::share;
use place::Place;

/// Volumes of one pod.
const MAX_VOLUMES: usize = 256;

/// Copied volumes of one container.
const MAX_OF_CONTAINER: usize = 256;

/// How often a first copy is begun that an update of the source gets in the way of.
const ATTEMPTS: usize = 3;

/// What is known of names in the share is good for no longer.
const VALIDITY: Duration = Duration::from_millis(1100);

/// The copied volumes of the guest.
#[derive(Default)]
pub(crate) struct Volumes(Mutex<HashMap<Id, Arc<Volume>>>);

struct Volume {
    place: Place,
    /// Held while the copy is being written.
    writing: Mutex<()>,
    /// Paths of the share at which it is found, one for each mount of a container.
    sources: Mutex<Vec<PathBuf>>,
}

/// A mount of a container that shows the copy of a volume. With the last one goes the copy.
pub(crate) struct Use {
    volumes: Arc<Volumes>,
    volume: Id,
    source: PathBuf,
    mount: usize,
    copy: PathBuf,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Volumes {
    /// Copies the volumes of a container, those that are not yet there.
    pub(crate) async fn copy(
        self: &Arc<Self>,
        requests: &[CopiedVolume],
    ) -> Result<Vec<Use>, Error> {
        if requests.len() > MAX_OF_CONTAINER {
            let message = format!("copied_volumes: more than {MAX_OF_CONTAINER}");
            return Err(Error::ResourceExhausted(message));
        }
        let mut uses = Vec::with_capacity(requests.len());
        for request in requests {
            let id = Id::parse(&request.volume_id, "copied_volumes.volume_id")?;
            let (used, volume) = self.enter(id, request)?;
            let source = used.source.clone();
            uses.push(used);
            volume.copy_first(&source).await?;
        }
        Ok(uses)
    }

    fn enter(
        self: &Arc<Self>,
        id: Id,
        request: &CopiedVolume,
    ) -> Result<(Use, Arc<Volume>), Error> {
        let mut volumes = lock(&self.0);
        let volume = match volumes.get(&id) {
            Some(volume) => Arc::clone(volume),
            None if volumes.len() >= MAX_VOLUMES => {
                let message = format!("copied_volumes: the pod has {MAX_VOLUMES} already");
                return Err(Error::ResourceExhausted(message));
            }
            None => {
                let volume = Arc::new(Volume {
                    place: Place::make().doing("cannot make room for a copied volume")?,
                    writing: Mutex::default(),
                    sources: Mutex::default(),
                });
                volumes.insert(id.clone(), Arc::clone(&volume));
                volume
            }
        };
        let source = PathBuf::from(&request.source);
        lock(&volume.sources).push(source.clone());
        let used = Use {
            volumes: Arc::clone(self),
            volume: id,
            source,
            mount: usize::try_from(request.mount).unwrap_or(usize::MAX),
            copy: volume.place.path().to_owned(),
        };
        Ok((used, volume))
    }

    /// Renews the copy of a volume from its source.
    pub(crate) async fn renew(&self, request: &RenewVolumeRequest) -> Result<(), Error> {
        let id = Id::parse(&request.volume_id, "volume_id")?;
        let missing = || Error::NotFound(format!("volume {:?}", id.as_str()));
        let volume = lock(&self.0).get(&id).cloned().ok_or_else(missing)?;
        let source = lock(&volume.sources).first().cloned();
        let current = OsStr::from_bytes(&request.current).to_owned();
        volume
            .write(&source.ok_or_else(missing)?, Some(current))
            .await
    }
}

impl Volume {
    /// Copies the volume as it is, even if that changes just now.
    async fn copy_first(self: &Arc<Self>, source: &Path) -> Result<(), Error> {
        for _ in 1..ATTEMPTS {
            match self.write(source, None).await {
                Err(Error::FailedPrecondition(message)) => log::info!("{message}: once more"),
                done => return done,
            }
            tokio::time::sleep(VALIDITY).await;
        }
        self.write(source, None).await
    }

    /// Reading the share may take long, so that a thread of its own does.
    async fn write(
        self: &Arc<Self>,
        source: &Path,
        current: Option<OsString>,
    ) -> Result<(), Error> {
        let (volume, path) = (Arc::clone(self), source.to_owned());
        let write = move || {
            let _writing = lock(&volume.writing);
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK;
            let source = File::from(share::open(&path, flags)?.map_err(|error| {
                let message = format!("copied_volumes.source: {}: {error}", path.display());
                Error::InvalidArgument(message)
            })?);
            writer::renew(&source, volume.place.path(), current.as_deref())
                .map_err(|error| error.of(&path))
        };
        let done = tokio::task::spawn_blocking(write).await;
        done.map_err(|panic| Error::internal("the agent failed", panic))?
    }
}

impl Use {
    /// The number of the mount in the container's specification, and the directory that it is
    /// to show.
    pub(crate) fn mount(&self) -> (usize, PathBuf) {
        (self.mount, self.copy.clone())
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        let mut volumes = lock(&self.volumes.0);
        let Some(volume) = volumes.get(&self.volume) else {
            return;
        };
        let mut sources = lock(&volume.sources);
        if let Some(mine) = sources.iter().position(|source| *source == self.source) {
            sources.remove(mine);
        }
        let was_last = sources.is_empty();
        drop(sources);
        if was_last {
            volumes.remove(&self.volume);
        }
    }
}
