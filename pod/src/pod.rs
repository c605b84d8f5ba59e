//! A running pod and its containers.

use std::io;
use std::time::Duration;

use nacre_protocol::agent::{CreateContainerRequest, ExecRequest, Stdio as StdioRequest};
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use crate::agent::{
    Agent, AgentError, ContainerStats, GuestInfo, GuestStats, ProcessEnd, ProcessId,
};
use crate::boot::{self, BootError, Booted, Booting};
use crate::diagnosis::Diagnosis;
use crate::disks::{AttachError, Disks, Ends, Lease};
use crate::monitor::Machine;
use crate::network::{Changes, Counters};
use crate::process::{Process, Streams};
use crate::processes::GuestProcess;
use crate::spec::{self, Bundle, Refusal};
use crate::status::InterfaceReport;
use crate::stdio::{Pumps, Stdio, TerminalSize};
use crate::timing::Timing;
use crate::volumes::Volumes;

/// How long a guest that was asked to power off may take for it.
const POWER_OFF: Duration = Duration::from_secs(2);

/// Why something about a running pod failed.
#[derive(Debug, Error)]
pub enum PodError {
    /// The agent said so.
    #[error("{0}")]
    Agent(#[from] AgentError),
    /// The guest, or its monitor, is gone.
    #[error("{0}")]
    Gone(Box<Diagnosis>),
    /// A stream to the guest, or its descriptor on the host, failed.
    #[error("cannot open a stream to the guest ({stream}): {source}")]
    Stream {
        /// Which.
        stream: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// A field of a further process asks for what cannot be done.
    #[error("{0}")]
    Refused(Refusal),
    /// A block device of the host could not be attached.
    #[error(transparent)]
    Disk(#[from] AttachError),
    /// The specification could not be written for the guest.
    #[error("cannot write the specification for the guest: {0}")]
    Spec(#[from] serde_json::Error),
}

impl From<Refusal> for PodError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// A running pod. Dropping it ends it at once.
///
/// Everything takes it by reference, so that one call that hangs holds up no other.
#[derive(Debug)]
pub struct Pod {
    machine: Machine,
    agent: Agent,
    guest: GuestInfo,
    streams: Streams,
    disks: Disks,
    /// Tells the guest of changes of its network.
    _follower: Option<Follower>,
    counters: Option<Counters>,
    volumes: Volumes,
}

/// What a pod uses, as its monitor says.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct MachineUsage {
    /// VM exits that reached the monitor.
    pub exits: u64,
    /// Bytes of guest memory that the host has pages for.
    pub memory_resident: u64,
}

/// When a guest that could not follow a change is told again.
const RETRY: Duration = Duration::from_secs(5);

/// A task that ends when this is dropped.
#[derive(Debug)]
struct Follower(JoinHandle<()>);

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Has the guest follow what changes in its network namespace.
fn follow(changes: Changes, agent: Agent) -> Option<(Follower, Counters)> {
    let (mut views, counters) = match changes.watch() {
        Ok(watched) => watched,
        Err(error) => {
            log::warn!("changes of the pod's network do not reach the guest: {error}");
            return None;
        }
    };
    let task = tokio::spawn(async move {
        while views.changed().await.is_ok() {
            let view = views.borrow_and_update().clone();
            match agent.update_network(view).await {
                Ok(()) => {}
                // There is nobody any more; the watch ends with this task.
                Err(AgentError::Disconnected(_)) => return,
                Err(error) => {
                    log::warn!("a change of the pod's network does not reach the guest: {error}");
                    tokio::time::sleep(RETRY).await;
                    views.mark_changed();
                }
            }
        }
    });
    Some((Follower(task), counters))
}

impl Pod {
    /// Waits for a booting pod's agent and fills in what is known of its start.
    ///
    /// # Errors
    /// [`BootError`]; nothing of the pod is then left.
    pub async fn ready(booting: Booting, timing: &mut Timing) -> Result<Self, BootError> {
        let Booted {
            machine,
            agent,
            guest,
            changes,
        } = booting.ready().await?;
        let state = machine.state();
        let state = state.borrow();
        timing.monitor_up = state.entered.map(|(up, _)| up);
        timing.kernel_entered = state.entered.map(|(_, entered)| entered);
        timing.agent_ready = state.ready.map(|(ready, _)| ready);
        timing.exits_until_ready = state.ready.map(|(_, exits)| exits);
        drop(state);
        let followed = changes.and_then(|changes| follow(changes, agent.clone()));
        let (follower, counters) = followed.unzip();
        Ok(Self {
            machine,
            volumes: Volumes::new(agent.clone()),
            agent,
            guest,
            streams: Streams::default(),
            disks: Disks::default(),
            _follower: follower,
            counters,
        })
    }

    /// What the guest said of itself.
    #[must_use]
    pub fn guest(&self) -> &GuestInfo {
        &self.guest
    }

    /// The monitor's process on the host, which lives as long as the pod.
    #[must_use]
    pub fn monitor_pid(&self) -> u32 {
        self.machine.pid()
    }

    /// Makes the bundle's container, whose files must be in the share as `id`,
    /// up to the point where only its process is not yet executed.
    ///
    /// # Errors
    /// [`PodError`]; the guest then keeps nothing of it.
    pub async fn create_container(
        &self,
        id: &str,
        bundle: &Bundle,
        stdio: Stdio,
    ) -> Result<Process, PodError> {
        let attached = self.disks.attach(self.ends(), id, bundle.disks()).await;
        let lease = match attached {
            Err(AttachError::Agent(error)) => self.explain(Err(error)).await?,
            attached => attached?,
        };
        let created = self.create_with(id, bundle, stdio, &lease).await;
        if created.is_err() {
            self.disks.undo(self.ends(), id, &lease).await;
        }
        created
    }

    /// Makes the container once its disks are attached.
    async fn create_with(
        &self,
        id: &str,
        bundle: &Bundle,
        stdio: Stdio,
        lease: &Lease,
    ) -> Result<Process, PodError> {
        let (stdio, pumps) = self.connect(stdio).await?;
        let request = CreateContainerRequest {
            container_id: id.to_owned(),
            spec: bundle.guest_spec(&lease.guest)?,
            stdio: Some(stdio).into(),
            pid_namespace: bundle.pid_namespace().into(),
            copied_volumes: self.volumes.add(id, bundle),
            directories: bundle.directories(),
            ..Default::default()
        };
        let created = self.agent.create_container(&request).await;
        if created.is_err() {
            self.volumes.remove(id);
        }
        let pid = self.explain(created).await?;
        let id = ProcessId::first_of(id);
        Ok(Process::new(id, pid, self.agent.clone(), pumps))
    }

    /// Who has to agree on disks.
    fn ends(&self) -> Ends<'_> {
        Ends {
            machine: &self.machine,
            agent: &self.agent,
        }
    }

    /// Starts a further process in a running container; `process` is JSON as in
    /// the specification's `process`.
    ///
    /// # Errors
    /// [`PodError`]; the guest then keeps nothing of it.
    pub async fn exec(
        &self,
        id: ProcessId<'_>,
        process: &[u8],
        stdio: Stdio,
    ) -> Result<Process, PodError> {
        let process = spec::exec::for_guest(process)?;
        let (stdio, pumps) = self.connect(stdio).await?;
        let request = ExecRequest {
            container_id: id.container.to_owned(),
            exec_id: id.exec.to_owned(),
            process,
            stdio: Some(stdio).into(),
            ..Default::default()
        };
        let started = self.agent.exec(&request).await;
        let pid = self.explain(started).await?;
        Ok(Process::new(id, pid, self.agent.clone(), pumps))
    }

    /// Opens the streams of a process, which its request names.
    async fn connect(&self, stdio: Stdio) -> Result<(StdioRequest, Pumps), PodError> {
        self.streams.connect(&self.machine, stdio).await
    }

    /// Gives a lost connection its cause.
    async fn explain<T>(&self, result: Result<T, AgentError>) -> Result<T, PodError> {
        match result {
            Err(AgentError::Disconnected(_)) => {
                let diagnosis = boot::diagnose(&self.machine, None).await;
                Err(PodError::Gone(Box::new(diagnosis)))
            }
            other => other.map_err(PodError::from),
        }
    }

    /// Waits for an answer that may take for ever, and no longer than the pod lives:
    /// the connection may hang when the agent or the monitor is no more.
    async fn while_alive<T>(
        &self,
        call: &'static str,
        answer: impl Future<Output = Result<T, AgentError>>,
    ) -> Result<T, PodError> {
        let answer = tokio::select! {
            answer = answer => answer,
            () = self.agent_gone() => Err(AgentError::Disconnected(call)),
        };
        self.explain(answer).await
    }

    async fn agent_gone(&self) {
        let mut state = self.machine.state();
        // An error means that nobody watches the monitor any more.
        let _ = state
            .wait_for(|state| state.agent_gone || state.end.is_some())
            .await;
    }

    /// Starts a container's first process.
    ///
    /// # Errors
    /// [`PodError`].
    pub async fn start(&self, container: &str) -> Result<(), PodError> {
        let started = self.agent.start_container(container).await;
        self.explain(started).await
    }

    /// Waits for a process to end; its output may go on.
    ///
    /// # Errors
    /// [`PodError`], also when the pod ends.
    pub async fn wait(&self, process: ProcessId<'_>) -> Result<ProcessEnd, PodError> {
        self.while_alive("wait_container", self.agent.wait(process))
            .await
    }

    /// Waits until more processes of a container than `known` were killed for
    /// want of memory, and says how many.
    ///
    /// # Errors
    /// [`PodError`], also when the container is deleted or the pod ends.
    pub async fn wait_out_of_memory(&self, container: &str, known: u64) -> Result<u64, PodError> {
        let news = self.agent.wait_out_of_memory(container, known);
        self.while_alive("wait_out_of_memory", news).await
    }

    /// Sends a signal to a process, or to all of its container.
    ///
    /// # Errors
    /// [`PodError`]; `NotFound` or `FailedPrecondition` when it has ended.
    pub async fn signal(
        &self,
        process: ProcessId<'_>,
        signal: u32,
        all: bool,
    ) -> Result<(), PodError> {
        let sent = self.agent.signal(process, signal, all).await;
        self.explain(sent).await
    }

    /// Sets the size of a process's terminal.
    ///
    /// # Errors
    /// [`PodError`].
    pub async fn resize(&self, process: ProcessId<'_>, size: TerminalSize) -> Result<(), PodError> {
        let resized = self.agent.resize_terminal(process, size).await;
        self.explain(resized).await
    }

    /// Freezes all processes of a container.
    ///
    /// # Errors
    /// [`PodError`].
    pub async fn pause(&self, container: &str) -> Result<(), PodError> {
        let paused = self.agent.pause_container(container).await;
        self.explain(paused).await
    }

    /// Lets the processes of a paused container go on.
    ///
    /// # Errors
    /// [`PodError`].
    pub async fn resume(&self, container: &str) -> Result<(), PodError> {
        let resumed = self.agent.resume_container(container).await;
        self.explain(resumed).await
    }

    /// Changes the limits of a container; `resources` is JSON as in the
    /// specification's `linux.resources`.
    ///
    /// # Errors
    /// [`PodError`].
    pub async fn update(&self, container: &str, resources: &[u8]) -> Result<(), PodError> {
        let updated = self.agent.update_container(container, resources).await;
        self.explain(updated).await
    }

    /// Has as many CPUs of the guest online, of those that it was born with.
    ///
    /// # Errors
    /// [`PodError`].
    pub async fn set_cpus(&self, cpus: u8) -> Result<(), PodError> {
        let set = self.agent.set_cpus(cpus).await;
        self.explain(set).await
    }

    /// A container's processes, the first one first.
    ///
    /// # Errors
    /// [`PodError`].
    pub async fn processes(&self, container: &str) -> Result<Vec<GuestProcess>, PodError> {
        let seen = self.agent.look_at_processes(container).await;
        self.explain(seen).await
    }

    /// Numbers of a container's processes in the guest, the first one's first.
    ///
    /// # Errors
    /// [`PodError`].
    pub async fn process_numbers(&self, container: &str) -> Result<Vec<u32>, PodError> {
        let listed = self.agent.list_processes(container).await;
        self.explain(listed).await
    }

    /// What a container uses.
    ///
    /// # Errors
    /// [`PodError`].
    pub async fn stats(&self, container: &str) -> Result<ContainerStats, PodError> {
        let stats = self.agent.container_stats(container).await;
        self.explain(stats).await
    }

    /// Connects with a TCP port of the pod's localhost.
    ///
    /// # Errors
    /// [`PodError`]; the agent's `FailedPrecondition` when nobody listens there.
    pub async fn connect_port(&self, port: u16) -> Result<UnixStream, PodError> {
        let (id, stream) = self.streams.open(&self.machine, "connection").await?;
        let connected = self.agent.connect_port(id, port).await;
        self.explain(connected).await?;
        Ok(stream)
    }

    /// Removes a container that has ended, and all processes executed in it, and detaches the
    /// block devices that only it has used.
    ///
    /// # Errors
    /// [`PodError`].
    pub async fn delete_container(&self, container: &str) -> Result<(), PodError> {
        let deleted = self.agent.delete_container(container).await;
        // It may have gone by a call that nobody waited for to its end.
        if matches!(deleted, Ok(()) | Err(AgentError::NotFound(_))) {
            self.volumes.remove(container);
            self.disks.release(self.ends(), container).await;
        }
        self.explain(deleted).await
    }

    /// Forgets a process that was executed in a container and has ended.
    ///
    /// # Errors
    /// [`PodError`].
    pub async fn delete_exec(&self, process: ProcessId<'_>) -> Result<(), PodError> {
        let deleted = self.agent.delete_exec(process).await;
        self.explain(deleted).await
    }

    /// Fills in what the pod has used until now.
    pub async fn measure(&self, timing: &mut Timing) {
        if let Some(stats) = self.machine.stats().await {
            timing.exits = Some(stats.exits.total());
            timing.memory_touched = Some(stats.memory_touched);
        }
    }

    /// What the virtual machine uses; `None` if the monitor does not answer.
    pub async fn machine_usage(&self) -> Option<MachineUsage> {
        let stats = self.machine.stats().await?;
        Some(MachineUsage {
            exits: stats.exits.total(),
            memory_resident: stats.memory_touched,
        })
    }

    /// What the guest as a whole uses, and these containers of it, as its agent says.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn guest_stats(&self, containers: Vec<String>) -> Result<GuestStats, AgentError> {
        self.agent.guest_stats(containers).await
    }

    /// What has gone through the pod's network interfaces; empty if it has none, or it cannot
    /// be told.
    pub async fn interfaces(&self) -> Vec<InterfaceReport> {
        match &self.counters {
            Some(counters) => counters.read().await,
            None => Vec::new(),
        }
    }

    /// The newest part of the guest's console, which is hostile text; `None` if the monitor
    /// does not answer.
    pub async fn console(&self) -> Option<String> {
        self.machine.console().await
    }

    /// The newest part of the monitor's log. Some of it comes from a process that the guest
    /// may have taken over.
    #[must_use]
    pub fn monitor_log(&self) -> String {
        self.machine.log().so_far()
    }

    /// Waits until the pod is no more, or of no more use, makes sure of the
    /// former and says why.
    pub async fn lost(&self) -> Diagnosis {
        self.agent_gone().await;
        boot::diagnose(&self.machine, None).await
    }

    /// Ends the pod: politely for a moment, then for good.
    pub async fn end(&self) {
        if let Err(error) = self.agent.shut_down().await {
            log::debug!("{error}");
        }
        if tokio::time::timeout(POWER_OFF, self.machine.ended())
            .await
            .is_err()
        {
            self.kill().await;
        }
    }

    /// Ends the pod at once, whatever its guest does.
    pub async fn kill(&self) {
        self.machine.kill();
        self.machine.ended().await;
    }
}
