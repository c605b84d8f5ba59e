//! The rules of the Task API: what each call does, in which state it may be made,
//! and which events follow from it.
//!
//! It is the one implementation behind Task v2 and v3. Calls for which runc's
//! shim has no error code of its own fail with `FailedPrecondition` here; those
//! that containerd acts on have the codes that it expects: `NotFound` for what
//! is not there (or not any more, when it is killed), `AlreadyExists` for names
//! that are taken.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use containerd_shim_protos::api::{CreateTaskRequest, ExecProcessRequest, StateResponse};
use containerd_shim_protos::events::task as events;
use nacre_pod::agent::ContainerStats;
use nacre_pod::stdio::TerminalSize;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::timestamp::Timestamp;
use serde_json::Value;
use ttrpc::Code;

use crate::cli::is_identifier;
use crate::container::{Container, Frozen};
use crate::events::Publisher;
use crate::failure::Failure;
use crate::guest::Guest;
use crate::lifetime::Lifetime;
use crate::process::{Exit, Process, Stage};
use crate::stats;
use crate::stdio::{Owner, Places};

/// SIGKILL.
const KILL: u32 = 9;

/// Largest number of a signal.
const MAX_SIGNAL: u32 = 64;

/// How long a container that is killed in order to delete it may take to end.
const KILLED: Duration = Duration::from_secs(10);

/// How long a container's further processes may take to end after its first.
const LAST_EXECS: Duration = Duration::from_secs(10);

/// Shares of what the Task service is made of.
#[derive(Clone)]
pub(crate) struct Tasks(Arc<Shared>);

struct Shared {
    guest: Arc<dyn Guest>,
    publisher: Publisher,
    namespace: String,
    lifetime: Arc<Lifetime>,
    /// `None`: it is being created.
    containers: Mutex<HashMap<String, Option<Arc<Container>>>>,
}

/// What is left of a process that is deleted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Deleted {
    pub(crate) pid: u32,
    /// `None`: it never ran.
    pub(crate) exit: Option<Exit>,
}

impl Tasks {
    pub(crate) fn new(
        guest: Arc<dyn Guest>,
        publisher: Publisher,
        namespace: &str,
        lifetime: Arc<Lifetime>,
    ) -> Self {
        Self(Arc::new(Shared {
            guest,
            publisher,
            namespace: namespace.to_owned(),
            lifetime,
            containers: Mutex::default(),
        }))
    }

    fn guest(&self) -> &dyn Guest {
        &*self.0.guest
    }

    fn containers(&self) -> MutexGuard<'_, HashMap<String, Option<Arc<Container>>>> {
        // A panic elsewhere leaves nothing half-changed here.
        let containers = &self.0.containers;
        containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn container(&self, id: &str) -> Result<Arc<Container>, Failure> {
        let found = self.containers().get(id).cloned().flatten();
        found.ok_or_else(|| Failure::not_found(format!("no container {id:?}")))
    }

    fn find(&self, id: &str, exec: &str) -> Result<(Arc<Container>, Arc<Process>), Failure> {
        let container = self.container(id)?;
        let process = container.process(exec)?;
        Ok((container, process))
    }

    /// Makes a container, up to the point where its process waits to be started.
    pub(crate) async fn create(&self, request: CreateTaskRequest) -> Result<u32, Failure> {
        if !request.checkpoint.is_empty() {
            return Err(Failure::unimplemented("checkpoints are not supported"));
        }
        check_identifier("container", &request.id)?;
        self.reserve(&request.id)?;
        let created = self.make(&request).await;
        match created {
            Ok(container) => {
                self.containers()
                    .insert(request.id.clone(), Some(container.clone()));
                tokio::spawn(
                    self.clone()
                        .watch(container.clone(), container.init.clone()),
                );
                tokio::spawn(self.clone().watch_memory(container.clone()));
                Ok(container.pid)
            }
            Err(failure) => {
                self.containers().remove(&request.id);
                log::warn!("creating container {:?}: {failure}", request.id);
                Err(failure)
            }
        }
    }

    fn reserve(&self, id: &str) -> Result<(), Failure> {
        self.0.lifetime.check_open()?;
        let mut containers = self.containers();
        if containers.contains_key(id) {
            let message = format!("there is a container {id:?} already");
            return Err(Failure::already_exists(message));
        }
        containers.insert(id.to_owned(), None);
        Ok(())
    }

    async fn make(&self, request: &CreateTaskRequest) -> Result<Arc<Container>, Failure> {
        let places = Places {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let owner = self.owner(&request.id);
        let (stdio, kept) = places.open(TerminalSize::default(), owner).await?;
        let bundle = Path::new(&request.bundle);
        let guest = self.guest();
        let output = guest
            .create(&request.id, bundle, &request.rootfs, stdio)
            .await?;
        let pid = guest.pid();
        let init = Arc::new(Process::new("", places));
        init.attach(output, kept);
        self.0.publisher.send(&events::TaskCreate {
            container_id: request.id.clone(),
            bundle: request.bundle.clone(),
            rootfs: request.rootfs.clone(),
            io: Some(events::TaskIO {
                stdin: request.stdin.clone(),
                stdout: request.stdout.clone(),
                stderr: request.stderr.clone(),
                terminal: request.terminal,
                ..Default::default()
            })
            .into(),
            pid,
            ..Default::default()
        });
        let (id, bundle) = (request.id.clone(), request.bundle.clone());
        Ok(Arc::new(Container::new(id, bundle, pid, init)))
    }

    fn owner<'a>(&'a self, id: &'a str) -> Owner<'a> {
        Owner {
            namespace: &self.0.namespace,
            id,
        }
    }

    /// Starts a process that was created.
    pub(crate) async fn start(&self, id: &str, exec: &str) -> Result<u32, Failure> {
        let container = self.container(id)?;
        if exec.is_empty() {
            self.start_init(&container).await?;
        } else {
            self.start_exec(&container, exec).await?;
        }
        Ok(container.pid)
    }

    async fn start_init(&self, container: &Arc<Container>) -> Result<(), Failure> {
        let init = &container.init;
        init.begin_start()?;
        match self.guest().start(&container.id).await {
            Ok(()) => {
                self.0.publisher.send(&events::TaskStart {
                    container_id: container.id.clone(),
                    pid: container.pid,
                    ..Default::default()
                });
                init.enter(Stage::Running);
                Ok(())
            }
            Err(failure) => {
                init.enter(Stage::Created);
                Err(failure)
            }
        }
    }

    async fn start_exec(&self, container: &Arc<Container>, name: &str) -> Result<(), Failure> {
        let exec = container.exec(name)?;
        let stage = container.init.stage();
        if stage != Stage::Running {
            return Err(Failure::failed_precondition(format!(
                "cannot exec in a {} container",
                stage.name()
            )));
        }
        let process = exec.process;
        process.begin_start()?;
        let started = self.exec_in_guest(container, &process, &exec.spec).await;
        if let Err(failure) = started {
            // It cannot be started again: a new one can.
            process.enter(Stage::Stopped(Exit::never_ran()));
            return Err(failure);
        }
        self.0.publisher.send(&events::TaskExecStarted {
            container_id: container.id.clone(),
            exec_id: name.to_owned(),
            pid: container.pid,
            ..Default::default()
        });
        process.enter(Stage::Running);
        tokio::spawn(self.clone().watch(container.clone(), process));
        Ok(())
    }

    async fn exec_in_guest(
        &self,
        container: &Container,
        process: &Process,
        spec: &[u8],
    ) -> Result<(), Failure> {
        let owner = self.owner(&process.exec);
        let (stdio, kept) = process.places.open(process.size(), owner).await?;
        let name = container.name(process);
        let output = self.guest().exec(name, spec, stdio).await?;
        process.attach(output, kept);
        Ok(())
    }

    /// Waits for a process to end and tells everybody.
    async fn watch(self, container: Arc<Container>, process: Arc<Process>) {
        let is_init = process.exec.is_empty();
        let end = self.guest().wait(container.name(&process)).await;
        let (exit, out_of_memory) = match end {
            Ok(end) => (Exit::now(end.status.into()), end.oom_killed),
            Err(failure) => {
                log::info!("container {:?} ends with its pod: {failure}", container.id);
                (Exit::killed(), false)
            }
        };
        process.drain().await;
        process.not_starting().await;
        if is_init {
            // Their ends come before the container's.
            let execs = container.execs();
            let ends = execs
                .iter()
                .filter(|exec| matches!(exec.stage(), Stage::Starting | Stage::Running));
            for exec in ends {
                let _ = tokio::time::timeout(LAST_EXECS, exec.stopped()).await;
            }
            container.set_frozen(Frozen::No);
            if out_of_memory && container.take_oom_event() {
                self.send_out_of_memory(&container);
            }
        }
        let id = if is_init {
            &container.id
        } else {
            &process.exec
        };
        self.0.publisher.send(&events::TaskExit {
            container_id: container.id.clone(),
            id: id.clone(),
            pid: container.pid,
            exit_status: exit.status,
            exited_at: timestamp(exit).into(),
            ..Default::default()
        });
        process.enter(Stage::Stopped(exit));
    }

    /// Tells of each time that a container's memory was not enough.
    async fn watch_memory(self, container: Arc<Container>) {
        let mut known = 0;
        while let Ok(kills) = self.guest().wait_out_of_memory(&container.id, known).await {
            if kills <= known || matches!(container.init.stage(), Stage::Stopped(_)) {
                break;
            }
            known = kills;
            container.oom_events.fetch_add(1, Ordering::Relaxed);
            self.send_out_of_memory(&container);
        }
    }

    fn send_out_of_memory(&self, container: &Container) {
        log::info!("container {:?} ran out of memory", container.id);
        self.0.publisher.send(&events::TaskOOM {
            container_id: container.id.clone(),
            ..Default::default()
        });
    }

    /// What is known of a process.
    pub(crate) fn state(&self, id: &str, exec: &str) -> Result<StateResponse, Failure> {
        let (container, process) = self.find(id, exec)?;
        let exit = process.exit();
        let places = &process.places;
        Ok(StateResponse {
            id: if exec.is_empty() { id } else { exec }.to_owned(),
            bundle: container.bundle.clone(),
            pid: container.pid,
            status: container.status(&process).into(),
            stdin: places.stdin.clone(),
            stdout: places.stdout.clone(),
            stderr: places.stderr.clone(),
            terminal: places.terminal,
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: exit.and_then(timestamp).into(),
            exec_id: exec.to_owned(),
            ..Default::default()
        })
    }

    /// Waits for a process to end and its output to be written.
    pub(crate) async fn wait(&self, id: &str, exec: &str) -> Result<Exit, Failure> {
        let (_, process) = self.find(id, exec)?;
        Ok(process.stopped().await)
    }

    /// Deletes a process that does not run, and with the first one its container.
    pub(crate) async fn delete(&self, id: &str, exec: &str) -> Result<Deleted, Failure> {
        let (container, process) = self.find(id, exec)?;
        if matches!(process.stage(), Stage::Starting | Stage::Running) {
            return Err(Failure::failed_precondition(match container.frozen() {
                Frozen::No => "cannot delete a running process",
                _ => "cannot delete a paused process",
            }));
        }
        process.begin_delete()?;
        let deleted = if exec.is_empty() {
            self.delete_container(&container).await
        } else {
            self.delete_exec(&container, &process).await
        };
        if deleted.is_err() {
            process.abandon_delete();
        }
        deleted
    }

    async fn delete_container(&self, container: &Arc<Container>) -> Result<Deleted, Failure> {
        if container.init.stage() == Stage::Created {
            self.kill_created(container).await?;
        }
        let exit = container.init.stopped().await;
        match self.guest().delete(&container.id).await {
            Err(failure) if failure.code != Code::NOT_FOUND => return Err(failure),
            _ => {}
        }
        self.containers().remove(&container.id);
        self.0.publisher.send(&events::TaskDelete {
            container_id: container.id.clone(),
            pid: container.pid,
            exit_status: exit.status,
            exited_at: timestamp(exit).into(),
            ..Default::default()
        });
        Ok(Deleted {
            pid: container.pid,
            exit: Some(exit),
        })
    }

    /// A container that was never started goes by force.
    async fn kill_created(&self, container: &Container) -> Result<(), Failure> {
        let init = &container.init;
        match self.guest().signal(container.name(init), KILL, false).await {
            Err(failure) if !has_ended(&failure) => return Err(failure),
            _ => {}
        }
        match tokio::time::timeout(KILLED, init.stopped()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Failure::deadline_exceeded(format!(
                "container {:?} does not end though it was killed",
                container.id
            ))),
        }
    }

    async fn delete_exec(
        &self,
        container: &Container,
        process: &Process,
    ) -> Result<Deleted, Failure> {
        let exit = process.exit();
        if process.guest_pid() != 0 {
            match self.guest().delete_exec(container.name(process)).await {
                Err(failure) if failure.code != Code::NOT_FOUND => return Err(failure),
                _ => {}
            }
        }
        container.remove(&process.exec);
        Ok(Deleted {
            pid: container.pid,
            exit,
        })
    }

    /// Adds a further process to a container; it is started later.
    pub(crate) fn exec(&self, request: &ExecProcessRequest) -> Result<(), Failure> {
        let container = self.container(&request.id)?;
        check_identifier("process", &request.exec_id)?;
        let spec = process_spec(&request.spec, request.terminal)?;
        let places = Places {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        container.add(&request.exec_id, places, spec)?;
        self.0.publisher.send(&events::TaskExecAdded {
            container_id: container.id.clone(),
            exec_id: request.exec_id.clone(),
            ..Default::default()
        });
        Ok(())
    }

    /// Sends a signal to a process, or to all of its container.
    pub(crate) async fn kill(
        &self,
        id: &str,
        exec: &str,
        signal: u32,
        all: bool,
    ) -> Result<(), Failure> {
        let (container, process) = self.find(id, exec)?;
        if !(1..=MAX_SIGNAL).contains(&signal) {
            let message = format!("signal {signal}: must be 1 to {MAX_SIGNAL}");
            return Err(Failure::invalid_argument(message));
        }
        let finished = || Failure::not_found("process already finished");
        match process.stage() {
            Stage::Stopped(_) => return Err(finished()),
            Stage::Created | Stage::Starting if !exec.is_empty() => {
                return Err(Failure::failed_precondition("the process is not started"));
            }
            _ => {}
        }
        let name = container.name(&process);
        match self.guest().signal(name, signal, all).await {
            Err(failure) if has_ended(&failure) => Err(finished()),
            Err(failure) if failure.code == Code::DEADLINE_EXCEEDED && signal == KILL => {
                log::error!("the guest does not answer; the pod is killed");
                self.guest().kill().await;
                Ok(())
            }
            other => other,
        }
    }

    /// Freezes a container.
    pub(crate) async fn pause(&self, id: &str) -> Result<(), Failure> {
        let container = self.container(id)?;
        container.begin_freeze(true)?;
        if let Err(failure) = self.guest().pause(id).await {
            container.set_frozen(Frozen::No);
            return Err(failure);
        }
        container.set_frozen(Frozen::Yes);
        self.0.publisher.send(&events::TaskPaused {
            container_id: container.id.clone(),
            ..Default::default()
        });
        Ok(())
    }

    /// Lets a frozen container go on.
    pub(crate) async fn resume(&self, id: &str) -> Result<(), Failure> {
        let container = self.container(id)?;
        container.begin_freeze(false)?;
        if let Err(failure) = self.guest().resume(id).await {
            container.set_frozen(Frozen::Yes);
            return Err(failure);
        }
        container.set_frozen(Frozen::No);
        self.0.publisher.send(&events::TaskResumed {
            container_id: container.id.clone(),
            ..Default::default()
        });
        Ok(())
    }

    /// Sets the size of a process's terminal. Without one there is nothing to do.
    pub(crate) async fn resize(
        &self,
        id: &str,
        exec: &str,
        size: TerminalSize,
    ) -> Result<(), Failure> {
        let (container, process) = self.find(id, exec)?;
        match process.stage() {
            Stage::Stopped(_) => {
                return Err(Failure::failed_precondition(
                    "cannot resize a stopped process",
                ));
            }
            _ if !process.places.terminal => return Ok(()),
            Stage::Created | Stage::Starting if !exec.is_empty() => {
                process.set_size(size);
                return Ok(());
            }
            _ => {}
        }
        self.guest().resize(container.name(&process), size).await
    }

    /// Lets a process's stdin end.
    pub(crate) fn close_io(&self, id: &str, exec: &str, stdin: bool) -> Result<(), Failure> {
        let (_, process) = self.find(id, exec)?;
        if stdin {
            process.close_stdin();
        }
        Ok(())
    }

    /// Changes a container's limits.
    pub(crate) async fn update(&self, id: &str, resources: &Any) -> Result<(), Failure> {
        let container = self.container(id)?;
        if let Stage::Stopped(_) = container.init.stage() {
            return Err(Failure::failed_precondition(
                "cannot update a stopped container",
            ));
        }
        let checked: serde_json::Result<Value> = serde_json::from_slice(&resources.value);
        match checked {
            Ok(Value::Object(_)) => self.guest().update(id, &resources.value).await,
            Ok(_) => Err(Failure::invalid_argument("resources: not an object")),
            Err(error) => Err(Failure::invalid_argument(format!("resources: {error}"))),
        }
    }

    /// Numbers of a container's processes in the guest, each with the identifier
    /// that it was executed under, if any.
    pub(crate) async fn pids(&self, id: &str) -> Result<Vec<(u32, Option<String>)>, Failure> {
        let container = self.container(id)?;
        if let Stage::Stopped(_) = container.init.stage() {
            return Ok(Vec::new());
        }
        let pids = self.guest().processes(id).await?;
        let execs = container.execs();
        let exec_of = |pid| {
            let exec = execs.iter().find(|exec| exec.guest_pid() == pid);
            exec.map(|exec| exec.exec.clone())
        };
        Ok(pids.into_iter().map(|pid| (pid, exec_of(pid))).collect())
    }

    /// What a container uses, as containerd's message.
    pub(crate) async fn stats(&self, id: &str) -> Result<Any, Failure> {
        let container = self.container(id)?;
        if let Stage::Stopped(_) = container.init.stage() {
            let message = format!("container {id:?} is stopped and uses nothing");
            return Err(Failure::not_found(message));
        }
        stats::metrics(&self.guest().stats(id).await?)
    }

    /// What all containers use, as containerd's message.
    pub(crate) async fn stats_of_all(&self) -> Result<Any, Failure> {
        let mut sum = ContainerStats::default();
        let ids: Vec<_> = self.containers().keys().cloned().collect();
        for id in ids {
            // One that has just ended uses nothing.
            if let Ok(stats) = self.guest().stats(&id).await {
                stats::add(&mut sum, &stats);
            }
        }
        stats::metrics(&sum)
    }

    /// The process of the host that stands for a container; 0 if there is no such
    /// container.
    pub(crate) fn pid(&self, id: &str) -> u32 {
        self.container(id).map_or(0, |container| container.pid)
    }

    /// Waits until every container has stopped.
    pub(crate) async fn stopped(&self) {
        let containers: Vec<_> = self.containers().values().flatten().cloned().collect();
        for container in containers {
            container.init.stopped().await;
        }
    }

    /// Ends the pod and the shim, unless something needs them still.
    pub(crate) async fn shutdown(&self) {
        let idle = || self.containers().is_empty();
        self.0.lifetime.end_if(idle, self.guest()).await;
    }
}

fn check_identifier(what: &str, id: &str) -> Result<(), Failure> {
    if is_identifier(id) {
        return Ok(());
    }
    let message = format!("{id:?} is not an identifier of a {what}");
    Err(Failure::invalid_argument(message))
}

/// Whether a signal has failed because there is no process any more.
fn has_ended(failure: &Failure) -> bool {
    matches!(
        failure.code,
        Code::NOT_FOUND | Code::FAILED_PRECONDITION | Code::UNAVAILABLE
    )
}

/// `process` of the specification, with the terminal that the request wants.
fn process_spec(spec: &Any, terminal: bool) -> Result<Vec<u8>, Failure> {
    let wrong = |error: serde_json::Error| Failure::invalid_argument(format!("spec: {error}"));
    let mut spec: Value = serde_json::from_slice(&spec.value).map_err(wrong)?;
    let fields = spec
        .as_object_mut()
        .ok_or_else(|| Failure::invalid_argument("spec: not an object"))?;
    fields.insert("terminal".to_owned(), Value::Bool(terminal));
    serde_json::to_vec(&spec).map_err(wrong)
}

/// When a process ended.
pub(crate) fn timestamp(exit: Exit) -> Option<Timestamp> {
    Some(Timestamp::from(exit.at))
}

#[cfg(test)]
#[path = "tasks_test.rs"]
mod tests;
