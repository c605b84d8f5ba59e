//! A running pod and its containers.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nacre_protocol::STREAM_PORT;
use nacre_protocol::agent::{CreateContainerRequest, Stdio as StdioRequest};
use nacre_protocol::stream::StreamHeader;
use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use crate::agent::{self, Agent, AgentError, ContainerEnd, GuestInfo};
use crate::boot::{self, BootError, Booted, Booting};
use crate::diagnosis::Diagnosis;
use crate::monitor::Machine;
use crate::spec::Bundle;
use crate::stdio::{Pumps, Stdio, TerminalSize};
use crate::timing::Timing;

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
    #[error("cannot connect the container's {stream}: {source}")]
    Stream {
        /// Which.
        stream: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The specification could not be written for the guest.
    #[error("cannot write the specification for the guest: {0}")]
    Spec(#[from] serde_json::Error),
}

/// A running pod. Dropping it ends it at once.
#[derive(Debug)]
pub struct Pod {
    machine: Machine,
    agent: Agent,
    guest: GuestInfo,
    next_stream: u64,
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
        } = booting.ready().await?;
        let state = machine.state();
        let state = state.borrow();
        timing.monitor_up = state.entered.map(|(up, _)| up);
        timing.kernel_entered = state.entered.map(|(_, entered)| entered);
        timing.agent_ready = state.ready.map(|(ready, _)| ready);
        timing.exits_until_ready = state.ready.map(|(_, exits)| exits);
        drop(state);
        Ok(Self {
            machine,
            agent,
            guest,
            next_stream: 1,
        })
    }

    /// What the guest said of itself.
    #[must_use]
    pub fn guest(&self) -> &GuestInfo {
        &self.guest
    }

    /// Makes the bundle's container, whose files must be in the share as `id`,
    /// up to the point where only its process is not yet executed.
    ///
    /// # Errors
    /// [`PodError`]; the guest then keeps nothing of it.
    pub async fn create_container(
        &mut self,
        id: &str,
        bundle: &Bundle,
        stdio: Stdio,
    ) -> Result<Container, PodError> {
        let mut pumps = Pumps::new();
        let mut request = StdioRequest {
            terminal: stdio.terminal.is_some(),
            terminal_size: stdio.terminal.map(agent::terminal_size).into(),
            ..Default::default()
        };
        // Before the request: it names its streams by their identifiers.
        if let Some(host) = stdio.stdin {
            let (stream_id, stream) = self.open_stream("stdin").await?;
            request.stdin_stream = stream_id;
            pumps
                .start_input(host, stream)
                .map_err(stream_error("stdin"))?;
        }
        if let Some(host) = stdio.stdout {
            request.stdout_stream = self.start_output("stdout", host, &mut pumps).await?;
        }
        if let (Some(host), None) = (stdio.stderr, stdio.terminal) {
            request.stderr_stream = self.start_output("stderr", host, &mut pumps).await?;
        }
        let request = CreateContainerRequest {
            container_id: id.to_owned(),
            spec: bundle.guest_spec(id)?,
            stdio: Some(request).into(),
            ..Default::default()
        };
        let created = self.agent.create_container(&request).await;
        self.explain(created).await?;
        Ok(Container {
            id: id.to_owned(),
            agent: self.agent.clone(),
            pumps,
        })
    }

    async fn start_output(
        &mut self,
        name: &'static str,
        host: OwnedFd,
        pumps: &mut Pumps,
    ) -> Result<u64, PodError> {
        let (id, stream) = self.open_stream(name).await?;
        pumps
            .start_output(name, stream, host)
            .map_err(stream_error(name))?;
        Ok(id)
    }

    /// Opens a stream and sends its header.
    async fn open_stream(&mut self, name: &'static str) -> Result<(u64, UnixStream), PodError> {
        let id = self.next_stream;
        self.next_stream += 1;
        let opened = async {
            let mut stream = self.machine.connect(STREAM_PORT).await?;
            stream.write_all(&StreamHeader { id }.encode()).await?;
            Ok(stream)
        };
        let stream = opened.await.map_err(stream_error(name))?;
        Ok((id, stream))
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

    /// Starts a container's process.
    ///
    /// # Errors
    /// [`PodError`].
    pub async fn start(&self, container: &Container) -> Result<(), PodError> {
        let started = self.agent.start_container(&container.id).await;
        self.explain(started).await
    }

    /// Waits for a container's first process to end; its output may go on.
    ///
    /// # Errors
    /// [`PodError`], also when the pod ends.
    pub async fn wait(&self, container: &Container) -> Result<ContainerEnd, PodError> {
        let ended = tokio::select! {
            ended = self.agent.wait_container(&container.id) => ended,
            // The connection may hang when the agent or the monitor is no more.
            () = self.agent_gone() => Err(AgentError::Disconnected("wait_container")),
        };
        self.explain(ended).await
    }

    async fn agent_gone(&self) {
        let mut state = self.machine.state();
        // An error means that nobody watches the monitor any more.
        let _ = state
            .wait_for(|state| state.agent_gone || state.end.is_some())
            .await;
    }

    /// Fills in what the pod has used until now.
    pub async fn measure(&self, timing: &mut Timing) {
        if let Some(stats) = self.machine.stats().await {
            timing.exits = Some(stats.exits.total());
            timing.memory_touched = Some(stats.memory_touched);
        }
    }

    /// Ends the pod: politely for a moment, then for good.
    pub async fn end(self) {
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

fn stream_error(stream: &'static str) -> impl FnOnce(io::Error) -> PodError {
    move |source| PodError::Stream { stream, source }
}

/// What can be asked of a container while somebody else waits for it.
#[derive(Clone, Debug)]
pub struct ContainerControl {
    id: String,
    agent: Agent,
}

impl ContainerControl {
    /// Sends a signal to the container's first process.
    ///
    /// # Errors
    /// [`AgentError`], `NotFound` or `FailedPrecondition` when it has ended.
    pub async fn signal(&self, signal: u32) -> Result<(), AgentError> {
        self.agent.signal_container(&self.id, signal, false).await
    }

    /// Sets the size of its terminal.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn resize(&self, size: TerminalSize) -> Result<(), AgentError> {
        self.agent.resize_terminal(&self.id, size).await
    }
}

/// A container of a pod. Dropping it cuts its streams.
#[derive(Debug)]
pub struct Container {
    id: String,
    agent: Agent,
    pumps: Pumps,
}

impl Container {
    /// A handle for signals and the terminal.
    #[must_use]
    pub fn control(&self) -> ContainerControl {
        ContainerControl {
            id: self.id.clone(),
            agent: self.agent.clone(),
        }
    }

    /// Waits until all output of the container, which has ended, is written.
    pub async fn drain(&mut self, timing: &mut Timing) {
        self.pumps.drain().await;
        timing.first_output = self.pumps.first_output();
    }

    /// Removes the container, which has ended, from the guest.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn delete(self) -> Result<(), AgentError> {
        self.agent.delete_container(&self.id).await
    }
}
