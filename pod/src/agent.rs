//! The agent in the guest, as the front door calls it.
//!
//! Every call has a deadline; only waiting for a container's end has none, and
//! ends with the pod. What the agent answers is hostile: texts are bounded and
//! escaped, numbers checked.

use std::time::Duration;

use nacre_protocol::agent as messages;
use nacre_protocol::agent_ttrpc::AgentClient;
use thiserror::Error;
use tokio::net::UnixStream;
use ttrpc::context::{self, Context};
use ttrpc::proto::Code;

use crate::stdio::TerminalSize;
use crate::text;

/// Deadline of calls that only look something up or send a signal.
const QUICK: Duration = Duration::from_secs(10);
/// Deadline of calls that read files of the share or run a program.
const THOROUGH: Duration = Duration::from_secs(60);
/// Deadline of calls without which the pod ends all the same.
const FAREWELL: Duration = Duration::from_secs(2);

/// Why a call to the agent failed. The kinds are those that containerd knows.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum AgentError {
    /// There is no such container.
    #[error("{0}")]
    NotFound(String),
    /// There is such a container already.
    #[error("{0}")]
    AlreadyExists(String),
    /// The state of the container or the pod forbids it.
    #[error("{0}")]
    FailedPrecondition(String),
    /// The request or the specification cannot be honoured.
    #[error("{0}")]
    InvalidArgument(String),
    /// The file may not be executed.
    #[error("{0}")]
    PermissionDenied(String),
    /// A bound of the guest is reached.
    #[error("{0}")]
    ResourceExhausted(String),
    /// The pod is on its way down.
    #[error("{0}")]
    Unavailable(String),
    /// The agent did not answer in time.
    #[error("the agent in the guest did not answer in time ({0})")]
    DeadlineExceeded(&'static str),
    /// The connection to the agent is gone: it has ended, or the guest has.
    #[error("the connection to the agent in the guest is lost ({0})")]
    Disconnected(&'static str),
    /// The agent's answer makes no sense.
    #[error("the agent in the guest answered nonsense ({0})")]
    Nonsense(&'static str),
    /// Something went wrong in the guest.
    #[error("{0}")]
    Internal(String),
}

/// How the agent says that a program cannot be executed, as runc does.
const EXEC: &str = "exec: \"";
/// Ends of such messages that mean that there is no such file.
const NO_SUCH_FILE: &[&str] = &[
    ": executable file not found in $PATH",
    ": no such file or directory",
];

impl AgentError {
    /// The status that a shell gives to this error, if it is one about
    /// executing a program: 127 when there is none, 126 when it cannot be run.
    #[must_use]
    pub fn exec_status(&self) -> Option<u8> {
        let Self::InvalidArgument(message) = self else {
            return None;
        };
        let (_, exec) = message.split_once(EXEC)?;
        let missing = NO_SUCH_FILE.iter().any(|end| exec.ends_with(end));
        Some(if missing { 127 } else { 126 })
    }

    fn from_ttrpc(call: &'static str, error: ttrpc::Error) -> Self {
        let status = match error {
            ttrpc::Error::RpcStatus(status) => status,
            ttrpc::Error::Others(_) => return Self::Nonsense(call),
            _ => return Self::Disconnected(call),
        };
        let message = text::one_line(&status.message);
        match status.code.enum_value_or(Code::UNKNOWN) {
            Code::NOT_FOUND => Self::NotFound(message),
            Code::ALREADY_EXISTS => Self::AlreadyExists(message),
            Code::FAILED_PRECONDITION => Self::FailedPrecondition(message),
            Code::INVALID_ARGUMENT => Self::InvalidArgument(message),
            Code::PERMISSION_DENIED => Self::PermissionDenied(message),
            Code::RESOURCE_EXHAUSTED => Self::ResourceExhausted(message),
            Code::UNAVAILABLE => Self::Unavailable(message),
            Code::DEADLINE_EXCEEDED => Self::DeadlineExceeded(call),
            _ => Self::Internal(message),
        }
    }
}

/// What the guest said of itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct GuestInfo {
    /// `uname -r` of the guest.
    pub kernel_release: String,
    /// Version of the agent.
    pub agent_version: String,
}

/// How a container's first process ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ContainerEnd {
    /// Exit code, or 128+n when signal n ended it.
    pub status: u8,
    /// The guest's kernel has killed a process of the container for want of memory.
    pub oom_killed: bool,
}

/// A connection to the agent.
#[derive(Clone)]
pub struct Agent {
    client: AgentClient,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent").finish_non_exhaustive()
    }
}

/// Makes one call by its deadline and gives it its name in errors.
macro_rules! call {
    ($agent:ident.$method:ident($request:expr), $deadline:expr) => {{
        let call = $agent.client.$method(deadline($deadline), $request);
        match tokio::time::timeout($deadline, call).await {
            Ok(answer) => {
                answer.map_err(|error| AgentError::from_ttrpc(stringify!($method), error))
            }
            Err(_late) => Err(AgentError::DeadlineExceeded(stringify!($method))),
        }
    }};
}

/// ttrpc's own deadline tells nothing of its kind, so it comes after ours.
fn deadline(duration: Duration) -> Context {
    context::with_duration(duration + Duration::from_secs(1))
}

impl Agent {
    /// Talks to the agent at the other end of `connection`.
    #[must_use]
    pub fn new(connection: UnixStream) -> Self {
        let client = ttrpc::asynchronous::Client::new(connection.into());
        Self {
            client: AgentClient::new(client),
        }
    }

    /// Prepares the guest for its first container.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn set_up_pod(
        &self,
        request: &messages::SetUpPodRequest,
    ) -> Result<GuestInfo, AgentError> {
        let answer = call!(self.set_up_pod(request), THOROUGH)?;
        Ok(GuestInfo {
            kernel_release: text::one_line(&answer.kernel_release),
            agent_version: text::one_line(&answer.agent_version),
        })
    }

    /// Makes a container whose process waits to be started.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn create_container(
        &self,
        request: &messages::CreateContainerRequest,
    ) -> Result<(), AgentError> {
        call!(self.create_container(request), THOROUGH)?;
        Ok(())
    }

    /// Starts a container's process.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn start_container(&self, id: &str) -> Result<(), AgentError> {
        let request = messages::StartContainerRequest {
            container_id: id.to_owned(),
            ..Default::default()
        };
        call!(self.start_container(&request), THOROUGH)?;
        Ok(())
    }

    /// Sends a signal to a container's first process, or to all of its processes.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn signal_container(
        &self,
        id: &str,
        signal: u32,
        all: bool,
    ) -> Result<(), AgentError> {
        let request = messages::SignalContainerRequest {
            container_id: id.to_owned(),
            signal,
            all,
            ..Default::default()
        };
        call!(self.signal_container(&request), QUICK)?;
        Ok(())
    }

    /// Waits for a container's first process to end. The one call without a
    /// deadline: it ends with the connection at the latest.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn wait_container(&self, id: &str) -> Result<ContainerEnd, AgentError> {
        let request = messages::WaitContainerRequest {
            container_id: id.to_owned(),
            ..Default::default()
        };
        let answer = self
            .client
            .wait_container(Context::default(), &request)
            .await
            .map_err(|error| AgentError::from_ttrpc("wait_container", error))?;
        let status =
            u8::try_from(answer.exit_status).map_err(|_| AgentError::Nonsense("wait_container"))?;
        Ok(ContainerEnd {
            status,
            oom_killed: answer.oom_killed,
        })
    }

    /// Sets the size of a container's terminal.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn resize_terminal(&self, id: &str, size: TerminalSize) -> Result<(), AgentError> {
        let request = messages::ResizeTerminalRequest {
            container_id: id.to_owned(),
            size: Some(terminal_size(size)).into(),
            ..Default::default()
        };
        call!(self.resize_terminal(&request), QUICK)?;
        Ok(())
    }

    /// Removes a container that has ended.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn delete_container(&self, id: &str) -> Result<(), AgentError> {
        let request = messages::DeleteContainerRequest {
            container_id: id.to_owned(),
            ..Default::default()
        };
        call!(self.delete_container(&request), QUICK)?;
        Ok(())
    }

    /// Asks the guest to end all containers and to power off.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn shut_down(&self) -> Result<(), AgentError> {
        let request = messages::ShutDownRequest::new();
        call!(self.shut_down(&request), FAREWELL)?;
        Ok(())
    }
}

/// The protocol's form of a terminal's size.
pub(crate) fn terminal_size(size: TerminalSize) -> messages::TerminalSize {
    messages::TerminalSize {
        columns: size.columns.into(),
        rows: size.rows.into(),
        ..Default::default()
    }
}

#[cfg(test)]
#[path = "agent_test.rs"]
mod tests;
