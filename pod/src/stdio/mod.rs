//! A container's stdin, stdout and stderr on the host.
//!
//! Each is one connection to the guest (a *stream*) and one pump that copies
//! between it and a descriptor of the host. A pump holds one bounded buffer: who
//! reads slowly slows down who writes, all the way to the other end.

mod endpoint;
mod pump;

use std::os::fd::OwnedFd;

pub(crate) use self::pump::Pumps;

/// A container's descriptors on the host; what is not given is `/dev/null`.
#[derive(Debug, Default)]
pub struct Stdio {
    /// Read from until its end.
    pub stdin: Option<OwnedFd>,
    /// Written to, also with all output of a terminal.
    pub stdout: Option<OwnedFd>,
    /// Written to, unless there is a terminal.
    pub stderr: Option<OwnedFd>,
    /// The process gets a terminal of this size; `None`: it gets none.
    pub terminal: Option<TerminalSize>,
}

/// Size of a terminal in characters.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct TerminalSize {
    /// Characters in a row.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}
