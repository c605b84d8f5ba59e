//! What the uses of rtnetlink have in common.

use std::io;

use rtnetlink::Error;
use rustix::io::Errno;

use super::NetworkError;

/// Names the step that failed.
pub(super) fn failed(what: impl Into<String>) -> impl FnOnce(Error) -> NetworkError {
    move |error| NetworkError::Kernel {
        what: what.into(),
        source: match error {
            Error::NetlinkError(message) => message.to_io(),
            other => io::Error::other(other),
        },
    }
}

/// The kernel's answer, if that is what went wrong.
pub(super) fn errno(error: &Error) -> Option<Errno> {
    match error {
        Error::NetlinkError(message) => Errno::from_io_error(&message.to_io()),
        _ => None,
    }
}
