//! How long the shim lives: until its last container is deleted and containerd
//! tells it to go, or as long as a sandbox of the Sandbox API.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::failure::Failure;
use crate::guest::Guest;
use crate::socket;

/// Decides on the shim's end.
#[derive(Debug)]
pub(crate) struct Lifetime {
    socket: PathBuf,
    state: Mutex<State>,
    over: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    /// A sandbox of the Sandbox API lives in this shim.
    sandbox: bool,
    ending: bool,
}

impl Lifetime {
    /// Of a shim that serves on `socket`.
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            state: Mutex::default(),
            over: watch::Sender::new(false),
        }
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
        self.state().ending = true;
        // The next pod of this name must not find this shim.
        socket::remove(&self.socket);
        guest.end().await;
        self.over.send_replace(true);
    }

    /// Waits for the end.
    pub(crate) async fn over(&self) {
        // The sender is ours: it cannot be gone.
        let _ = self.over.subscribe().wait_for(|over| *over).await;
    }
}
