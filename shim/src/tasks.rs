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

/// How long a process may take to end after SIGKILL. Then a container ends with its pod, and a
/// further process is given up: a guest can answer a signal and do nothing.
const KILLED: Duration = Duration::from_secs(10);

/// How long a container's further processes may take to end after its first.
const LAST_EXECS: Duration = Duration::from_secs(10);

/// Least time between two events about lack of memory in a container: a guest can make up as
/// many as it likes, and each costs containerd and the host's log something.
const OOM_PAUSE: Duration = Duration::from_secs(5);

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
        let end = tokio::select! {
            end = self.guest().wait(container.name(&process)) => Some(end),
            () = process.given_up() => None,
        };
        process.note_end();
        let (exit, out_of_memory) = match &end {
            Some(Ok(end)) => (Exit::now(end.status.into()), end.oom_killed),
            Some(Err(failure)) => {
                log::info!("container {:?} ends with its pod: {failure}", container.id);
                (Exit::killed(), false)
            }
            None => (Exit::killed(), false),
        };
        match end {
            Some(_) => process.drain().await,
            None => process.cut().await,
        }
        process.not_starting().await;
        if is_init {
            // Their ends come before the container's.
            let mut execs = container.execs();
            execs.retain(|exec| matches!(exec.stage(), Stage::Starting | Stage::Running));
            let ends = async {
                for exec in &execs {
                    exec.stopped().await;
                }
            };
            if tokio::time::timeout(LAST_EXECS, ends).await.is_err() {
                execs.iter().for_each(|exec| exec.give_up());
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

    /// Tells that a container's memory was not enough, and again when it was not since then.
    async fn watch_memory(self, container: Arc<Container>) {
        let mut known = 0;
        while let Ok(kills) = self.guest().wait_out_of_memory(&container.id, known).await {
            if kills <= known || matches!(container.init.stage(), Stage::Stopped(_)) {
                break;
            }
            known = kills;
            container.oom_events.fetch_add(1, Ordering::Relaxed);
            self.send_out_of_memory(&container);
            // What comes meanwhile is in the next count.
            tokio::time::sleep(OOM_PAUSE).await;
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
        if !exec.is_empty() {
            process.not_starting().await;
        }
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
            self.kill_created(container).await;
        }
        let exit = container.init.stopped().await;
        self.delete_in_guest(container).await?;
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
    async fn kill_created(&self, container: &Arc<Container>) {
        let init = &container.init;
        match self.guest().signal(container.name(init), KILL, false).await {
            Err(failure) if failure.code == Code::DEADLINE_EXCEEDED => {
                self.signalled_in_vain(&container.id, KILL).await;
            }
            Err(failure) => log::debug!("killing container {:?}: {failure}", container.id),
            Ok(()) => {}
        }
        self.clone()
            .make_sure(container.clone(), init.clone())
            .await;
    }

    /// Waits for the end that SIGKILL brings, whatever the guest has answered to it, and brings
    /// it about without the guest when it does not come.
    async fn make_sure(self, container: Arc<Container>, process: Arc<Process>) {
        if tokio::time::timeout(KILLED, process.ended()).await.is_ok() {
            return;
        }
        let (id, exec) = (&container.id, &process.exec);
        if exec.is_empty() {
            log::error!("container {id:?} does not end though it was killed; the pod is killed");
            self.guest().kill().await;
        } else {
            log::error!("process {exec:?} does not end though it was killed; it is given up");
            process.give_up();
        }
    }

    /// Has the guest forget a container that has stopped. A guest that refuses that lies, or is
    /// broken: its pod is killed. One that does not answer may only be slow, which the other
    /// containers are not to pay for.
    async fn delete_in_guest(&self, container: &Container) -> Result<(), Failure> {
        let id = &container.id;
        let failure = match self.guest().delete(id).await {
            Err(failure) if failure.code != Code::NOT_FOUND => failure,
            _ => return Ok(()),
        };
        if failure.code == Code::DEADLINE_EXCEEDED && self.is_any_alive() {
            return Err(failure);
        }
        log::error!("container {id:?} cannot be deleted ({failure}); the pod is killed");
        self.guest().kill().await;
        self.guest().gone().await;
        self.guest().delete(id).await
    }

    /// Whether a container has not stopped, or is being created.
    fn is_any_alive(&self) -> bool {
        self.containers().values().any(|container| {
            let stage = container.as_ref().map(|container| container.init.stage());
            !matches!(stage, Some(Stage::Stopped(_)))
        })
    }

    async fn delete_exec(
        &self,
        container: &Container,
        process: &Process,
    ) -> Result<Deleted, Failure> {
        let exit = process.exit();
        process.end_unstarted()?;
        if process.guest_pid() != 0 {
            match self.guest().delete_exec(container.name(process)).await {
                Err(failure)
                    if failure.code == Code::DEADLINE_EXCEEDED && !process.is_given_up() =>
                {
                    return Err(failure);
                }
                // It goes with its container at the latest.
                Err(failure) => log::debug!("process {:?}: {failure}", process.exec),
                Ok(()) => {}
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
        if !exec.is_empty() {
            process.not_starting().await;
        }
        match process.stage() {
            Stage::Stopped(_) => return Err(finished()),
            Stage::Created if !exec.is_empty() => {
                return Err(Failure::failed_precondition("the process is not started"));
            }
            _ => {}
        }
        let name = container.name(&process);
        // All of a container is meant by its first process only.
        let all = all && exec.is_empty();
        let sent = self.guest().signal(name, signal, all).await;
        if signal == KILL {
            // Who kills is answered at once.
            let sure = self.clone().make_sure(container.clone(), process.clone());
            tokio::spawn(sure);
        }
        match sent {
            Err(failure) if has_ended(&failure) => Err(finished()),
            // A further process does not end its pod: it may be a probe, which a guest that is
            // only slow outlives.
            Err(failure) if failure.code == Code::DEADLINE_EXCEEDED && exec.is_empty() => {
                self.signalled_in_vain(id, signal).await;
                Ok(())
            }
            other => other,
        }
    }

    /// The guest has a signal for a container's first process, and has not said so. A KILL is to
    /// have its effect all the same; another one waits in the guest, as it would for a frozen
    /// process, so that the caller who sends KILL next comes to do so.
    async fn signalled_in_vain(&self, id: &str, signal: u32) {
        if signal == KILL {
            log::error!("the guest does not answer; the pod is killed");
            self.guest().kill().await;
        } else {
            log::warn!("the guest does not answer; signal {signal} for container {id:?} waits");
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

    /// All containers that are made, in the order of their identifiers.
    pub(crate) fn all(&self) -> Vec<Arc<Container>> {
        let mut all: Vec<_> = self.containers().values().flatten().cloned().collect();
        all.sort_by(|one, other| one.id.cmp(&other.id));
        all
    }

    /// What a container uses, as containerd's message.
    pub(crate) async fn stats(&self, id: &str) -> Result<Any, Failure> {
        let container = self.container(id)?;
        if let Stage::Stopped(_) = container.init.stage() {
            let message = format!("container {id:?} is stopped and uses nothing");
            return Err(Failure::not_found(message));
        }
        let guest = self.guest();
        let (stats, interfaces) = tokio::join!(guest.stats(id), guest.interfaces());
        stats::metrics(&stats?, &interfaces)
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
        stats::metrics(&sum, &self.guest().interfaces().await)
    }

    /// The process of the host that stands for a container; 0 if there is no such
    /// container.
    pub(crate) fn pid(&self, id: &str) -> u32 {
        self.container(id).map_or(0, |container| container.pid)
    }

    /// Waits until every container has stopped.
    pub(crate) async fn stopped(&self) {
        for container in self.all() {
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
