//! Volumes that the kubelet renews while their pod runs: ConfigMaps, Secrets, tokens.
//!
//! The guest sees what changes in the share, but no program in it is told by inotify. So of
//! these volumes the guest has copies, and is told here when one has changed: it then takes
//! the same steps in the copy. Everything else stays live in the share.

mod layout;
mod watch;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nacre_protocol::agent::CopiedVolume;
use thiserror::Error;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use self::layout::LayoutError;
pub(crate) use self::layout::is_of_pod;
use self::watch::Watcher;
use crate::agent::{Agent, AgentError};
use crate::host::Source;
use crate::spec::Bundle;

/// Volumes of one pod that are copied.
const MAX_VOLUMES: usize = 128;

/// An update is over when nothing has changed for so long.
const QUIET: Duration = Duration::from_millis(100);
/// But it is taken for over after so long.
const LONGEST: Duration = Duration::from_secs(1);

/// How often the guest is told of a change that it could not follow.
const TRIES: u32 = 3;
/// How long it is left alone in between, unless there is another change.
const RETRY: Duration = Duration::from_secs(5);

/// Why the guest has no copy of a volume.
#[derive(Debug, Error)]
enum WatchError {
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error("the pod has copies of {MAX_VOLUMES} volumes already")]
    TooMany,
    #[error("it cannot be watched (see fs.inotify in sysctl): {0}")]
    Watch(io::Error),
    #[error("{0}")]
    Open(io::Error),
}

/// Where the guest is told of a change.
trait Guest: Send + Sync + 'static {
    fn renew(
        &self,
        volume: &str,
        current: Vec<u8>,
    ) -> impl Future<Output = Result<(), AgentError>> + Send;
}

impl Guest for Agent {
    async fn renew(&self, volume: &str, current: Vec<u8>) -> Result<(), AgentError> {
        self.renew_volume(volume, current).await
    }
}

/// The volumes of a pod of which its guest has copies.
#[derive(Debug)]
pub(crate) struct Volumes {
    agent: Agent,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// There once there is something to watch.
    watcher: Option<Watcher>,
    /// By the watcher's numbers.
    volumes: HashMap<i32, Volume>,
    /// How many there ever were.
    named: u64,
}

#[derive(Debug)]
struct Volume {
    name: String,
    /// The containers that mount it, each once for every mount.
    containers: Vec<String>,
    _follower: JoinSet<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Volumes {
    /// None yet, of the pod that `agent` is in.
    pub(crate) fn new(agent: Agent) -> Self {
        Self {
            agent,
            state: Mutex::default(),
        }
    }

    /// Has the guest follow changes of a container's volumes. Says which it is to copy.
    pub(crate) fn add(&self, container: &str, bundle: &Bundle) -> Vec<CopiedVolume> {
        let mounts = bundle.read_only_binds();
        let renewed =
            mounts.filter(|(_, path, source)| source.is_dir() && layout::is_renewed(path));
        let copied =
            renewed.filter_map(
                |(mount, path, source)| match self.watch(container, path, source) {
                    Ok(volume_id) => Some(CopiedVolume {
                        mount: u32::try_from(mount).ok()?,
                        volume_id,
                        source: source.guest_path().display().to_string(),
                        ..Default::default()
                    }),
                    Err(error) => {
                        let path = path.display();
                        log::warn!(
                            "{path}: changes of it will fire no inotify in the guest: {error}"
                        );
                        None
                    }
                },
            );
        copied.collect()
    }

    fn watch(&self, container: &str, path: &Path, source: &Source) -> Result<String, WatchError> {
        // A mount of its own: whoever unmounts the volume does not find it busy.
        let dir = source.tree().map_err(WatchError::Open)?;
        layout::check(&dir)?;
        let mut state = lock(&self.state);
        let State {
            watcher,
            volumes,
            named,
        } = &mut *state;
        let watcher = match watcher {
            Some(watcher) => watcher,
            None => watcher.insert(Watcher::new().map_err(WatchError::Watch)?),
        };
        let (number, changed) = watcher.add(dir.as_fd()).map_err(WatchError::Watch)?;
        if !volumes.contains_key(&number) && volumes.len() >= MAX_VOLUMES {
            watcher.remove(number);
            return Err(WatchError::TooMany);
        }
        let volume = volumes.entry(number).or_insert_with(|| {
            *named += 1;
            let name = format!("volume-{named}");
            let followed = Followed {
                name: name.clone(),
                path: path.to_owned(),
                dir,
                changed,
            };
            let mut follower = JoinSet::new();
            follower.spawn(follow(self.agent.clone(), followed));
            Volume {
                name,
                containers: Vec::new(),
                _follower: follower,
            }
        });
        volume.containers.push(container.to_owned());
        Ok(volume.name.clone())
    }

    /// Forgets the volumes that only this container had.
    pub(crate) fn remove(&self, container: &str) {
        let mut state = lock(&self.state);
        let State {
            watcher, volumes, ..
        } = &mut *state;
        volumes.retain(|number, volume| {
            volume.containers.retain(|user| user != container);
            let is_used = !volume.containers.is_empty();
            if let (false, Some(watcher)) = (is_used, &watcher) {
                watcher.remove(*number);
            }
            is_used
        });
    }
}

/// A volume, as the task knows it that follows its changes.
struct Followed {
    name: String,
    path: PathBuf,
    dir: OwnedFd,
    changed: Arc<Notify>,
}

/// Tells the guest of each change.
async fn follow(guest: impl Guest, volume: Followed) {
    loop {
        volume.changed.notified().await;
        settle(&volume.changed).await;
        if let Err(Gone) = tell(&guest, &volume).await {
            return;
        }
    }
}

/// Waits until an update is over.
async fn settle(changed: &Notify) {
    let limit = Instant::now() + LONGEST;
    while Instant::now() < limit {
        let quiet = limit.min(Instant::now() + QUIET);
        if timeout_at(quiet, changed.notified()).await.is_err() {
            return;
        }
    }
}

/// There is no guest any more.
struct Gone;

/// Tells the guest of the last change, which may fail at first: it reads the volume while
/// somebody else writes it.
async fn tell(guest: &impl Guest, volume: &Followed) -> Result<(), Gone> {
    let mut tries = 0;
    while tries < TRIES {
        let told = match layout::current(&volume.dir) {
            Ok(current) => guest.renew(&volume.name, current).await,
            Err(error) => Err(AgentError::Internal(error.to_string())),
        };
        match told {
            Ok(()) => return Ok(()),
            Err(AgentError::Disconnected(_)) => return Err(Gone),
            Err(error) => {
                let path = volume.path.display();
                log::warn!("{path}: a change of it does not reach the guest: {error}");
            }
        }
        tries += 1;
        if timeout(RETRY, volume.changed.notified()).await.is_ok() {
            settle(&volume.changed).await;
            tries = 0;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "volumes_test.rs"]
mod tests;
