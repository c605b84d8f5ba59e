//! Pausing and resuming: the freezer of the container's cgroup.
//!
//! A frozen process can be killed, so a paused container ends like any other.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::timeout;

use super::Container;
use super::cgroup::counter;
use super::watched_file::WatchedFile;
use crate::error::{Doing, Error};

/// How long all processes of a container may take to stand still.
const FREEZING: Duration = Duration::from_secs(10);

const FREEZE: &str = "cgroup.freeze";

/// Whether a container is paused.
#[derive(Default)]
pub(super) struct Freezer {
    paused: AtomicBool,
    /// Held while it is being changed.
    changing: Mutex<()>,
}

impl Freezer {
    /// Whether the container is paused, or about to be.
    pub(super) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }
}

impl Container {
    /// Freezes all processes of the container, which must not have ended.
    pub(crate) async fn pause(&self) -> Result<(), Error> {
        let _changing = self.freezer.changing.lock().await;
        self.check_lives()?;
        if self.freezer.is_paused() {
            return Err(self.precondition("is paused already"));
        }
        self.freezer.paused.store(true, Ordering::Relaxed);
        let frozen = self.freeze().await;
        if frozen.is_err() {
            self.freezer.paused.store(false, Ordering::Relaxed);
            if let Err(error) = self.cgroup.write(FREEZE, "0") {
                log::warn!("cannot thaw the container again: {error}");
            }
        }
        frozen
    }

    async fn freeze(&self) -> Result<(), Error> {
        let doing = "cannot pause the container";
        let mut events = WatchedFile::open(&self.cgroup.file("cgroup.events")).doing(doing)?;
        self.cgroup.write(FREEZE, "1").doing(doing)?;
        let is_frozen = |events: &str| (counter(events, "frozen") == 1).then_some(());
        match timeout(FREEZING, events.until(is_frozen)).await {
            Ok(frozen) => frozen.doing(doing)?,
            Err(_late) => {
                let message = format!("{doing}: not all of it stands still after {FREEZING:?}");
                return Err(Error::Internal(message));
            }
        }
        // One that ended meanwhile is not paused.
        self.check_lives()
    }

    /// Lets all processes of a paused container go on.
    pub(crate) async fn resume(&self) -> Result<(), Error> {
        let _changing = self.freezer.changing.lock().await;
        self.check_lives()?;
        if !self.freezer.is_paused() {
            return Err(self.precondition("is not paused"));
        }
        self.cgroup
            .write(FREEZE, "0")
            .doing("cannot resume the container")?;
        self.freezer.paused.store(false, Ordering::Relaxed);
        Ok(())
    }
}
