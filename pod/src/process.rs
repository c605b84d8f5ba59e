//! A process of a container, and the streams that carry its stdio.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use nacre_protocol::STREAM_PORT;
use nacre_protocol::agent::Stdio as StdioRequest;
use nacre_protocol::stream::StreamHeader;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use crate::agent::{self, Agent, AgentError, ProcessId};
use crate::monitor::Machine;
use crate::pod::PodError;
use crate::stdio::{Pumps, Stdio, TerminalSize};
use crate::timing::{FirstOutput, Timing};

/// Opens streams, each under a number of its own.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    opened: AtomicU64,
}

impl Streams {
    /// Opens a stream for each descriptor that there is, and pumps.
    pub(crate) async fn connect(
        &self,
        machine: &Machine,
        stdio: Stdio,
    ) -> Result<(StdioRequest, Pumps), PodError> {
        let mut pumps = Pumps::new();
        let mut request = StdioRequest {
            terminal: stdio.terminal.is_some(),
            terminal_size: stdio.terminal.map(agent::terminal_size).into(),
            ..Default::default()
        };
        if let Some(host) = stdio.stdin {
            let (id, stream) = self.open(machine, "stdin").await?;
            request.stdin_stream = id;
            pumps
                .start_input(host, stream)
                .map_err(stream_error("stdin"))?;
        }
        if let Some(host) = stdio.stdout {
            request.stdout_stream = self.output(machine, "stdout", host, &mut pumps).await?;
        }
        if let (Some(host), None) = (stdio.stderr, stdio.terminal) {
            request.stderr_stream = self.output(machine, "stderr", host, &mut pumps).await?;
        }
        Ok((request, pumps))
    }

    async fn output(
        &self,
        machine: &Machine,
        name: &'static str,
        host: OwnedFd,
        pumps: &mut Pumps,
    ) -> Result<u64, PodError> {
        let (id, stream) = self.open(machine, name).await?;
        pumps
            .start_output(name, stream, host)
            .map_err(stream_error(name))?;
        Ok(id)
    }

    /// Opens a stream and sends its header.
    pub(crate) async fn open(
        &self,
        machine: &Machine,
        name: &'static str,
    ) -> Result<(u64, UnixStream), PodError> {
        // 0 means that there is no stream.
        let id = self.opened.fetch_add(1, Ordering::Relaxed) + 1;
        let opened = async {
            let mut stream = machine.connect(STREAM_PORT).await?;
            stream.write_all(&StreamHeader { id }.encode()).await?;
            Ok(stream)
        };
        let stream = opened.await.map_err(stream_error(name))?;
        Ok((id, stream))
    }
}

fn stream_error(stream: &'static str) -> impl FnOnce(io::Error) -> PodError {
    move |source| PodError::Stream { stream, source }
}

/// A process of a container. Dropping it cuts its streams.
#[derive(Debug)]
pub struct Process {
    control: ProcessControl,
    pid: u32,
    pumps: Pumps,
}

impl Process {
    pub(crate) fn new(id: ProcessId<'_>, pid: u32, agent: Agent, pumps: Pumps) -> Self {
        let control = ProcessControl {
            container: id.container.to_owned(),
            exec: id.exec.to_owned(),
            agent,
        };
        Self {
            control,
            pid,
            pumps,
        }
    }

    /// Its number in the guest.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// A handle for signals and the terminal.
    #[must_use]
    pub fn control(&self) -> ProcessControl {
        self.control.clone()
    }

    /// When its output begins.
    #[must_use]
    pub fn first_output(&self) -> FirstOutput {
        self.pumps.first_output()
    }

    /// Waits until all output of the process, which has ended, is written.
    pub async fn drain(&mut self, timing: &mut Timing) {
        self.pumps.drain().await;
        timing.first_output = self.first_output().at();
    }
}

/// What can be asked of a process while somebody else waits for it.
#[derive(Clone, Debug)]
pub struct ProcessControl {
    container: String,
    exec: String,
    agent: Agent,
}

impl ProcessControl {
    /// Names the process.
    #[must_use]
    pub fn id(&self) -> ProcessId<'_> {
        ProcessId {
            container: &self.container,
            exec: &self.exec,
        }
    }

    /// Sends a signal to the process.
    ///
    /// # Errors
    /// [`AgentError`], `NotFound` or `FailedPrecondition` when it has ended.
    pub async fn signal(&self, signal: u32) -> Result<(), AgentError> {
        self.agent.signal(self.id(), signal, false).await
    }

    /// Sets the size of its terminal.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn resize(&self, size: TerminalSize) -> Result<(), AgentError> {
        self.agent.resize_terminal(self.id(), size).await
    }
}
