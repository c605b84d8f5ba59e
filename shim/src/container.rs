//! A container as containerd sees it: its processes, and whether it is frozen.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use containerd_shim_protos::types::task::Status;
use nacre_pod::agent::ProcessId;

use crate::annotations;
use crate::failure::Failure;
use crate::process::{Process, Stage};
use crate::stdio::Places;

/// Most processes that are executed in a container and not yet deleted.
const MAX_EXECS: usize = 4096;

/// Whether a container is frozen.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Frozen {
    #[default]
    No,
    /// Pausing or resuming is under way.
    Changing,
    Yes,
}

/// A container.
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) bundle: String,
    /// Its name in the pod, if it was told.
    pub(crate) name_in_pod: Option<String>,
    /// The process of the host that stands for its first process.
    pub(crate) pid: u32,
    pub(crate) init: Arc<Process>,
    execs: Mutex<HashMap<String, Exec>>,
    frozen: Mutex<Frozen>,
    /// Events about lack of memory that were sent.
    pub(crate) oom_events: AtomicU64,
}

/// A further process.
#[derive(Clone)]
pub(crate) struct Exec {
    pub(crate) process: Arc<Process>,
    /// `process` of the specification as JSON.
    pub(crate) spec: Arc<[u8]>,
}

impl Container {
    pub(crate) fn new(id: String, bundle: String, pid: u32, init: Arc<Process>) -> Self {
        Self {
            name_in_pod: annotations::container_name(Path::new(&bundle)),
            id,
            bundle,
            pid,
            init,
            execs: Mutex::default(),
            frozen: Mutex::default(),
            oom_events: AtomicU64::new(0),
        }
    }

    /// The process `exec`; empty: the first.
    ///
    /// # Errors
    /// `NotFound`.
    pub(crate) fn process(&self, exec: &str) -> Result<Arc<Process>, Failure> {
        if exec.is_empty() {
            return Ok(self.init.clone());
        }
        Ok(self.exec(exec)?.process)
    }

    /// The further process `exec`.
    ///
    /// # Errors
    /// `NotFound`.
    pub(crate) fn exec(&self, exec: &str) -> Result<Exec, Failure> {
        let found = lock(&self.execs).get(exec).cloned();
        found.ok_or_else(|| {
            Failure::not_found(format!("no process {exec:?} in container {:?}", self.id))
        })
    }

    /// Adds a further process, which is created.
    ///
    /// # Errors
    /// `AlreadyExists`; `FailedPrecondition` when the container is stopped or frozen.
    pub(crate) fn add(&self, exec: &str, places: Places, spec: Vec<u8>) -> Result<(), Failure> {
        if let Stage::Stopped(_) = self.init.stage() {
            return Err(Failure::failed_precondition(
                "cannot exec in a stopped container",
            ));
        }
        if self.frozen() != Frozen::No {
            return Err(Failure::failed_precondition(
                "cannot exec in a paused container",
            ));
        }
        let mut execs = lock(&self.execs);
        if execs.contains_key(exec) {
            return Err(Failure::already_exists(format!(
                "there is a process {exec:?} in container {:?} already",
                self.id
            )));
        }
        if execs.len() >= MAX_EXECS {
            return Err(Failure::failed_precondition(format!(
                "container {:?} has {MAX_EXECS} processes that nobody has deleted",
                self.id
            )));
        }
        let process = Arc::new(Process::new(exec, places));
        let spec = spec.into();
        execs.insert(exec.to_owned(), Exec { process, spec });
        Ok(())
    }

    pub(crate) fn remove(&self, exec: &str) {
        lock(&self.execs).remove(exec);
    }

    /// All further processes.
    pub(crate) fn execs(&self) -> Vec<Arc<Process>> {
        let execs = lock(&self.execs);
        execs.values().map(|exec| exec.process.clone()).collect()
    }

    pub(crate) fn frozen(&self) -> Frozen {
        *lock(&self.frozen)
    }

    /// Begins to freeze (`true`) or to thaw.
    ///
    /// # Errors
    /// `FailedPrecondition` when the state forbids it.
    pub(crate) fn begin_freeze(&self, freeze: bool) -> Result<(), Failure> {
        let mut frozen = lock(&self.frozen);
        let stage = self.init.stage();
        let (verb, wanted) = match freeze {
            true => ("pause", Frozen::No),
            false => ("resume", Frozen::Yes),
        };
        if stage != Stage::Running || *frozen != wanted {
            let state = match (stage, *frozen) {
                (Stage::Running, Frozen::Yes) => "paused",
                (Stage::Running, Frozen::Changing) => "pausing",
                (stage, _) => stage.name(),
            };
            return Err(Failure::failed_precondition(format!(
                "cannot {verb} a {state} container"
            )));
        }
        *frozen = Frozen::Changing;
        Ok(())
    }

    pub(crate) fn set_frozen(&self, frozen: Frozen) {
        *lock(&self.frozen) = frozen;
    }

    /// The status of a process, in containerd's words.
    pub(crate) fn status(&self, process: &Process) -> Status {
        match (process.stage(), self.frozen()) {
            (Stage::Stopped(_), _) => Status::STOPPED,
            (_, Frozen::Yes) => Status::PAUSED,
            (_, Frozen::Changing) => Status::PAUSING,
            (Stage::Created | Stage::Starting, Frozen::No) => Status::CREATED,
            (Stage::Running, Frozen::No) => Status::RUNNING,
        }
    }

    /// Names a process for the guest.
    pub(crate) fn name<'a>(&'a self, process: &'a Process) -> ProcessId<'a> {
        ProcessId {
            container: &self.id,
            exec: &process.exec,
        }
    }

    /// Whether an event about lack of memory is due for a container that ended
    /// by it; afterwards it is not.
    pub(crate) fn take_oom_event(&self) -> bool {
        self.oom_events
            .compare_exchange(0, 1, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves nothing half-changed here.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
