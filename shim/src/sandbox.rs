//! The Sandbox API: a pod that its caller starts and stops by name, whether it
//! has containers or not.
//!
//! | call | created | running | stopped | never created |
//! | --- | --- | --- | --- | --- |
//! | Create | `AlreadyExists` | `AlreadyExists` | `AlreadyExists` | creates |
//! | Start | boots | `FailedPrecondition` | `FailedPrecondition` | `NotFound` |
//! | Stop | stops | stops | nothing to do | `NotFound` |
//! | Ping | fine | fine | `Unavailable` | `NotFound` |
//! | Wait | waits | waits | answers | `NotFound` |
//! | Status, Platform | fine | fine | fine | `NotFound` |
//! | Metrics | `FailedPrecondition` | fine | `FailedPrecondition` | `NotFound` |
//! | Shutdown | ends the shim | ends the shim | ends the shim | ends the shim |

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use containerd_shim_protos::sandbox_api::{CreateSandboxRequest, SandboxStatusResponse};
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::timestamp::Timestamp;
use tokio::sync::watch;

use crate::failure::Failure;
use crate::guest::Guest;
use crate::lifetime::Lifetime;
use crate::pod::Setup;
use crate::process::Exit;
use crate::sandbox_setup;
use crate::tasks::Tasks;

/// States as CRI calls them, which containerd passes on.
const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";

/// The shim's sandbox.
#[derive(Clone)]
pub(crate) struct Sandbox(Arc<Shared>);

struct Shared {
    /// The pod that this shim is for.
    id: String,
    guest: Arc<dyn Guest>,
    tasks: Tasks,
    lifetime: Arc<Lifetime>,
    phase: watch::Sender<Phase>,
    facts: Mutex<Facts>,
}

/// Where a sandbox is in its life.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    None,
    Created,
    Starting,
    Running,
    /// Its caller wants it to end.
    Stopping,
    Stopped(Exit),
}

#[derive(Default)]
struct Facts {
    setup: Setup,
    created_at: Option<SystemTime>,
    pid: u32,
}

impl Sandbox {
    pub(crate) fn new(
        id: &str,
        guest: Arc<dyn Guest>,
        tasks: Tasks,
        lifetime: Arc<Lifetime>,
    ) -> Self {
        Self(Arc::new(Shared {
            id: id.to_owned(),
            guest,
            tasks,
            lifetime,
            phase: watch::Sender::new(Phase::None),
            facts: Mutex::default(),
        }))
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        // A panic elsewhere leaves nothing half-changed here.
        self.0.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the sandbox `id` is in its life.
    fn phase(&self, id: &str) -> Result<Phase, Failure> {
        let phase = *self.0.phase.borrow();
        if id != self.0.id || phase == Phase::None {
            return Err(Failure::not_found(format!("no sandbox {id:?}")));
        }
        Ok(phase)
    }

    /// Moves from `from` to `to`.
    fn step(&self, from: Phase, to: Phase) -> bool {
        self.0.phase.send_if_modified(|phase| {
            let there = *phase == from;
            if there {
                *phase = to;
            }
            there
        })
    }

    /// Its end was asked for: whatever brings it is no failure.
    fn stopping(&self) {
        self.0.phase.send_if_modified(|phase| {
            let alive = !matches!(phase, Phase::Stopping | Phase::Stopped(_));
            if alive {
                *phase = Phase::Stopping;
            }
            alive
        });
    }

    /// It was lost, unless its end was asked for.
    fn lost(&self) {
        self.step(Phase::Running, Phase::Stopped(Exit::killed()));
    }

    /// It has ended, unless it had before.
    fn stopped(&self, exit: Exit) {
        self.0.phase.send_if_modified(|phase| {
            let alive = !matches!(phase, Phase::Stopped(_));
            if alive {
                *phase = Phase::Stopped(exit);
            }
            alive
        });
    }

    /// Takes note of what the sandbox is to be.
    pub(crate) fn create(&self, request: &CreateSandboxRequest) -> Result<(), Failure> {
        if request.sandbox_id != self.0.id {
            return Err(Failure::invalid_argument(format!(
                "sandbox {:?}: this shim is for {:?}",
                request.sandbox_id, self.0.id
            )));
        }
        self.0.lifetime.check_open()?;
        let setup = sandbox_setup::read(request)?;
        // Before the phase: who sees it may start at once.
        let mut facts = self.facts();
        if !self.step(Phase::None, Phase::Created) {
            let message = format!("there is a sandbox {:?} already", self.0.id);
            return Err(Failure::already_exists(message));
        }
        facts.setup = setup;
        facts.created_at = Some(SystemTime::now());
        self.0.lifetime.keep_for_sandbox();
        Ok(())
    }

    /// Boots the pod; returns its monitor's process and when it was created.
    pub(crate) async fn start(&self, id: &str) -> Result<(u32, Option<Timestamp>), Failure> {
        self.phase(id)?;
        if !self.step(Phase::Created, Phase::Starting) {
            let message = format!("sandbox {id:?} was started before");
            return Err(Failure::failed_precondition(message));
        }
        let setup = self.facts().setup.clone();
        if let Err(failure) = self.0.guest.boot(setup).await {
            self.stopped(Exit::never_ran());
            return Err(failure);
        }
        let pid = self.0.guest.pid();
        self.facts().pid = pid;
        if !self.step(Phase::Starting, Phase::Running) {
            self.0.guest.end().await;
            let message = format!("sandbox {id:?} was stopped while it started");
            return Err(Failure::failed_precondition(message));
        }
        let sandbox = self.clone();
        tokio::spawn(async move {
            sandbox.0.guest.gone().await;
            sandbox.lost();
        });
        Ok((pid, self.created_at()))
    }

    fn created_at(&self) -> Option<Timestamp> {
        self.facts().created_at.map(Timestamp::from)
    }

    /// Ends the pod and all that is in it.
    pub(crate) async fn stop(&self, id: &str) -> Result<(), Failure> {
        self.phase(id)?;
        self.end().await;
        Ok(())
    }

    async fn end(&self) {
        self.stopping();
        self.0.guest.end().await;
        self.stopped(Exit::now(0));
    }

    /// Waits for the pod's end.
    pub(crate) async fn wait(&self, id: &str) -> Result<Exit, Failure> {
        self.phase(id)?;
        let mut phase = self.0.phase.subscribe();
        loop {
            if let Phase::Stopped(exit) = *phase.borrow_and_update() {
                return Ok(exit);
            }
            // The sender is ours: it cannot be gone.
            let _ = phase.changed().await;
        }
    }

    /// What is known of the sandbox.
    pub(crate) fn status(&self, id: &str, verbose: bool) -> Result<SandboxStatusResponse, Failure> {
        let phase = self.phase(id)?;
        let exited_at = match phase {
            Phase::Stopped(exit) => Some(Timestamp::from(exit.at)),
            _ => None,
        };
        let state = match phase {
            Phase::Running => READY,
            _ => NOT_READY,
        };
        let pid = self.facts().pid;
        Ok(SandboxStatusResponse {
            sandbox_id: id.to_owned(),
            pid,
            state: state.to_owned(),
            info: if verbose { info() } else { HashMap::new() },
            created_at: self.created_at().into(),
            exited_at: exited_at.into(),
            ..Default::default()
        })
    }

    /// Whether the sandbox lives.
    pub(crate) fn ping(&self, id: &str) -> Result<(), Failure> {
        match self.phase(id)? {
            Phase::Stopping | Phase::Stopped(_) => {
                Err(Failure::unavailable(format!("sandbox {id:?} has stopped")))
            }
            _ => Ok(()),
        }
    }

    /// Whether there is such a sandbox.
    pub(crate) fn check(&self, id: &str) -> Result<(), Failure> {
        self.phase(id).map(drop)
    }

    /// What all containers of the pod use.
    pub(crate) async fn metrics(&self, id: &str) -> Result<Any, Failure> {
        match self.phase(id)? {
            Phase::Running => self.0.tasks.stats_of_all().await,
            _ => Err(Failure::failed_precondition(format!(
                "sandbox {id:?} does not run"
            ))),
        }
    }

    /// Ends the pod, whatever is in it, and then the shim.
    pub(crate) async fn shutdown(&self) {
        self.end().await;
        self.0.lifetime.end(&*self.0.guest).await;
    }
}

fn info() -> HashMap<String, String> {
    [("runtime", crate::info::RUNTIME)]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

#[cfg(test)]
#[path = "sandbox_test.rs"]
mod tests;
