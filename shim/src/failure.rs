//! Why a call of containerd's fails: a code that it acts on, and a message.
//!
//! The kinds are those of the interfaces, and the ones that the agent gives keep
//! their kind on the way from the guest to containerd.

use nacre_pod::agent::AgentError;
use nacre_pod::assets::MissingAsset;
use nacre_pod::boot::BootError;
use nacre_pod::cgroup::CgroupError;
use nacre_pod::hooks::HookError;
use nacre_pod::host::ShareError;
use nacre_pod::network::NetworkError;
use nacre_pod::pod::PodError;
use nacre_pod::room::RoomError;
use nacre_pod::spec::BundleError;
use thiserror::Error;
use ttrpc::Code;

/// An error for containerd.
#[derive(Clone, Debug, Error, PartialEq)]
#[error("{message}")]
pub(crate) struct Failure {
    /// What kind of error it is.
    pub(crate) code: Code,
    /// One line for a person.
    pub(crate) message: String,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $code:ident;)*) => {
        impl Failure {
            $($(#[$doc])*
            pub(crate) fn $name(message: impl Into<String>) -> Self {
                Self { code: Code::$code, message: message.into() }
            })*
        }
    };
}

kinds! {
    /// There is no such container, process or sandbox.
    not_found = NOT_FOUND;
    /// There is one already.
    already_exists = ALREADY_EXISTS;
    /// The state forbids it.
    failed_precondition = FAILED_PRECONDITION;
    /// The request or the bundle cannot be honoured.
    invalid_argument = INVALID_ARGUMENT;
    /// It is not offered.
    unimplemented = UNIMPLEMENTED;
    /// The pod is gone, or going.
    unavailable = UNAVAILABLE;
    /// It took too long: only a guest says so.
    #[cfg(test)]
    deadline_exceeded = DEADLINE_EXCEEDED;
    /// Something else went wrong.
    internal = INTERNAL;
}

impl From<Failure> for ttrpc::Error {
    fn from(failure: Failure) -> Self {
        Self::RpcStatus(ttrpc::get_status(failure.code, failure.message))
    }
}

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Self {
        let code = match &error {
            AgentError::NotFound(_) => Code::NOT_FOUND,
            AgentError::AlreadyExists(_) => Code::ALREADY_EXISTS,
            AgentError::FailedPrecondition(_) => Code::FAILED_PRECONDITION,
            AgentError::InvalidArgument(_) => Code::INVALID_ARGUMENT,
            AgentError::PermissionDenied(_) => Code::PERMISSION_DENIED,
            AgentError::ResourceExhausted(_) => Code::RESOURCE_EXHAUSTED,
            AgentError::Unavailable(_) | AgentError::Disconnected(_) => Code::UNAVAILABLE,
            AgentError::DeadlineExceeded(_) => Code::DEADLINE_EXCEEDED,
            AgentError::Nonsense(_) | AgentError::Internal(_) => Code::INTERNAL,
        };
        Self {
            code,
            message: error.to_string(),
        }
    }
}

impl From<PodError> for Failure {
    fn from(error: PodError) -> Self {
        match error {
            PodError::Agent(error) => error.into(),
            PodError::Refused(_) | PodError::Disk(_) => Self::invalid_argument(error.to_string()),
            PodError::Gone(_) => Self::unavailable(error.to_string()),
            _ => Self::internal(error.to_string()),
        }
    }
}

impl From<RoomError> for Failure {
    fn from(error: RoomError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

impl From<BundleError> for Failure {
    fn from(error: BundleError) -> Self {
        match &error {
            BundleError::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                Self::not_found(error.to_string())
            }
            BundleError::Read { .. } => Self::internal(error.to_string()),
            _ => Self::invalid_argument(error.to_string()),
        }
    }
}

impl From<CgroupError> for Failure {
    fn from(error: CgroupError) -> Self {
        match &error {
            CgroupError::Path { .. } => Self::invalid_argument(error.to_string()),
            CgroupError::Kernel { .. } => Self::internal(error.to_string()),
        }
    }
}

macro_rules! internal {
    ($($error:ty),*) => {
        $(impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::internal(error.to_string())
            }
        })*
    };
}

impl From<BootError> for Failure {
    fn from(error: BootError) -> Self {
        let message = error.to_string();
        match error {
            BootError::SetUp(error) => Self {
                message,
                ..error.into()
            },
            _ => Self::internal(message),
        }
    }
}

internal!(HookError, MissingAsset, NetworkError, ShareError);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_of_an_error_in_the_guest_reaches_containerd() {
        for (error, code) in [
            (AgentError::NotFound("x".into()), Code::NOT_FOUND),
            (
                AgentError::FailedPrecondition("x".into()),
                Code::FAILED_PRECONDITION,
            ),
            (
                AgentError::InvalidArgument("x".into()),
                Code::INVALID_ARGUMENT,
            ),
            (AgentError::Disconnected("x"), Code::UNAVAILABLE),
            (AgentError::DeadlineExceeded("x"), Code::DEADLINE_EXCEEDED),
        ] {
            let message = error.to_string();
            let failure = Failure::from(PodError::from(error));
            assert_eq!(failure.code, code);
            let ttrpc::Error::RpcStatus(status) = ttrpc::Error::from(failure) else {
                panic!("not a status");
            };
            assert_eq!(status.code(), code);
            assert_eq!(status.message, message);
        }
    }
}
