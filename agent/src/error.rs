//! The one error that a call of the service can end with.
//!
//! The kinds are those of the contract (`proto/agent.proto`): the host decides
//! by the code, a person reads the message.

use std::io;

use thiserror::Error;
use ttrpc::proto::Code;

use crate::streams::StreamError;

/// Why a call failed.
#[derive(Debug, Error)]
pub enum Error {
    /// Nothing has this identifier.
    #[error("{0} does not exist")]
    NotFound(String),
    /// The identifier is taken.
    #[error("{0} exists already")]
    AlreadyExists(String),
    /// The state of the container or of the guest forbids the call.
    #[error("{0}")]
    FailedPrecondition(String),
    /// The request or the specification cannot be honoured.
    #[error("{0}")]
    InvalidArgument(String),
    /// A bound of the guest is reached.
    #[error("{0}")]
    ResourceExhausted(String),
    /// The pod is on its way down.
    #[error("the pod is shutting down")]
    ShuttingDown,
    /// The guest failed at something it should be able to do.
    #[error("{0}")]
    Internal(String),
}

impl Error {
    /// An [`Error::Internal`] that says what was being done when `source` happened.
    pub(crate) fn internal(doing: &str, source: impl std::fmt::Display) -> Self {
        Self::Internal(format!("{doing}: {source}"))
    }

    fn code(&self) -> Code {
        match self {
            Self::NotFound(_) => Code::NOT_FOUND,
            Self::AlreadyExists(_) => Code::ALREADY_EXISTS,
            Self::FailedPrecondition(_) => Code::FAILED_PRECONDITION,
            Self::InvalidArgument(_) => Code::INVALID_ARGUMENT,
            Self::ResourceExhausted(_) => Code::RESOURCE_EXHAUSTED,
            Self::ShuttingDown => Code::UNAVAILABLE,
            Self::Internal(_) => Code::INTERNAL,
        }
    }
}

impl From<StreamError> for Error {
    fn from(error: StreamError) -> Self {
        Self::FailedPrecondition(error.to_string())
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        Self::RpcStatus(ttrpc::get_status(error.code(), error))
    }
}

/// Adds what was being done to an error of the operating system.
pub(crate) trait Doing<T> {
    /// Turns the error into an [`Error::Internal`] that begins with `doing`.
    fn doing(self, doing: &str) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, doing: &str) -> Result<T, Error> {
        self.map_err(|error| Error::internal(doing, error.into()))
    }
}
