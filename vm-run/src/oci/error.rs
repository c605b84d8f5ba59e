//! Why a verb fails. Where tools read the words, they are runc's.

use std::io;

use nacre_pod::pod::PodError;
use thiserror::Error;

use super::state::Status;
use crate::launch::RunError;

/// Why a verb fails.
#[derive(Debug, Error)]
pub(crate) enum OciError {
    #[error("container does not exist")]
    Missing,
    #[error("container with given ID already exists")]
    Exists,
    #[error("invalid container ID format")]
    Id,
    #[error("container not running")]
    NotRunning,
    #[error("container not paused")]
    NotPaused,
    #[error("cannot start an already running container")]
    AlreadyRunning,
    #[error("cannot start a container that has stopped")]
    HasStopped,
    #[error("cannot start a container in the {0} state")]
    StartIn(Status),
    #[error("cannot delete container {id} that is not stopped: {status}")]
    NotStopped { id: String, status: Status },
    #[error("cannot exec in a stopped container")]
    ExecStopped,
    #[error("cannot exec in a paused container (use --ignore-paused to override)")]
    ExecPaused,
    #[error("process args cannot be empty")]
    NoArgs,
    #[error("unknown signal {0:?}")]
    Signal(String),
    #[error("cannot allocate tty if the container is detached without setting console socket")]
    NoConsole,
    #[error("cannot use console socket if the container will not detach or allocate tty")]
    NoTerminal,
    #[error("the container's keeper answered something else")]
    Nonsense,
    #[error("{what}: {source}")]
    System { what: String, source: io::Error },
    /// In the words of whoever found out.
    #[error("{0}")]
    Other(String),
}

impl OciError {
    /// Gives an answer of the system its subject.
    pub(crate) fn system<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |source| Self::System {
            what: what.into(),
            source: source.into(),
        }
    }
}

impl From<PodError> for OciError {
    fn from(error: PodError) -> Self {
        Self::Other(error.to_string())
    }
}

impl From<RunError> for OciError {
    fn from(error: RunError) -> Self {
        match &error {
            // Engines look for runc's words around a program that is missing.
            RunError::Pod(_) => Self::Other(format!("unable to start container process: {error}")),
            _ => Self::Other(error.to_string()),
        }
    }
}
