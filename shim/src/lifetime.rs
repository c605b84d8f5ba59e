//! How long the shim lives: until its last container is deleted and containerd
//! tells it to go, or as long as a sandbox of the Sandbox API.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nacre_pod::status::Entry;
use tokio::sync::watch;

use crate::failure::Failure;
use crate::guest::Guest;
use crate::socket;

/// Decides on the shim's end.
#[derive(Debug)]
pub(crate) struct Lifetime {
    socket: PathBuf,
    /// By which operators find the pod.
    entry: Option<Arc<Entry>>,
    state: Mutex<State>,
    over: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    /// Nobody finds the pod by its socket and its entry any more.
    unlisted: bool,
    /// A sandbox of the Sandbox API lives in this shim.
    sandbox: bool,
    ending: bool,
}

impl Lifetime {
    /// Of a shim that serves on `socket`.
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            entry: None,
            state: Mutex::default(),
            over: watch::Sender::new(false),
        }
    }

    /// Also of this entry, which goes with the socket.
    pub(crate) fn with_entry(mut self, entry: Option<Arc<Entry>>) -> Self {
        self.entry = entry;
        self
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves nothing half-changed here.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing new may begin in a shim that ends.
    ///
    /// # Errors
    /// `Unavailable` when it ends.
    pub(crate) fn check_open(&self) -> Result<(), Failure> {
        if self.state().ending {
            return Err(Failure::unavailable("the shim is shutting down"));
        }
        Ok(())
    }

    /// From now on a sandbox keeps the shim alive, until it is shut down.
    pub(crate) fn keep_for_sandbox(&self) {
        self.state().sandbox = true;
    }

    /// Ends the pod and then the shim if it is `idle` and has no sandbox.
    pub(crate) async fn end_if(&self, idle: impl Fn() -> bool + Send, guest: &dyn Guest) {
        {
            let mut state = self.state();
            if state.sandbox || state.ending || !idle() {
                return;
            }
            state.ending = true;
        }
        self.end(guest).await;
    }

    /// Ends the pod and then the shim, whatever still is in it.
    pub(crate) async fn end(&self, guest: &dyn Guest) {
        self.unlist();
        guest.end().await;
        self.over.send_replace(true);
    }

    /// Lets the next pod of this name not find this shim. It can come from here on, so what then
    /// is at the same place is not ours.
    fn unlist(&self) {
        let mut state = self.state();
        state.ending = true;
        if std::mem::replace(&mut state.unlisted, true) {
            return;
        }
        if let Some(entry) = &self.entry {
            entry.remove();
        }
        socket::remove(&self.socket);
    }

    /// Waits for the end.
    pub(crate) async fn over(&self) {
        // The sender is ours: it cannot be gone.
        let _ = self.over.subscribe().wait_for(|over| *over).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_guest::FakeGuest;

    #[tokio::test]
    async fn a_shim_that_ends_twice_leaves_its_successor_alone() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        std::fs::write(&socket, "").unwrap();
        let lifetime = Lifetime::new(socket.clone());
        let guest = FakeGuest::new();
        lifetime.end(&*guest).await;
        assert!(!socket.exists());
        std::fs::write(&socket, "").unwrap();
        lifetime.end(&*guest).await;
        assert!(socket.exists());
        lifetime.check_open().unwrap_err();
    }
}
