//! What the agent and its helpers say to each other.
//!
//! They share a pair of sequenced-packet sockets: one message for the request,
//! one for the report with descriptors beside it, and one empty message as the
//! agent's receipt.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Bytes of a message; a report's text is cut to fit.
const MAX_MESSAGE: usize = 16 * 1024;

/// Bytes of a failure's text.
const MAX_TEXT: usize = 4 * 1024;

/// Descriptors beside a message.
const MAX_FDS: usize = 3;

/// Which container to build from the bundle that lies ready.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct BuildRequest {
    /// The container's identifier.
    pub id: String,
    /// Whether the host wants a terminal; must agree with the specification.
    pub terminal: bool,
    /// Columns and rows of the terminal.
    pub terminal_size: Option<(u16, u16)>,
    /// The PID namespace is as the specification says. Else it is the one whose
    /// descriptor is beside the message, or a new one when there is none.
    pub own_pid_namespace: bool,
    /// Bind mounts, by their numbers, that show the copy of a volume instead.
    pub volumes: Vec<(usize, PathBuf)>,
}

/// To park a process in a new PID namespace.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct ParkRequest {}

/// At whose processes to look.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct LookRequest {
    /// The container's identifier.
    pub id: String,
}

/// Which process to start in a container. Beside it: the pidfd of the
/// container's first process, and a file with the `process` as JSON.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct JoinRequest {
    /// The container's identifier.
    pub id: String,
    /// Identifier of its first process in the agent's PID namespace.
    pub init: i32,
    /// Whether the host wants a terminal; must agree with the process.
    pub terminal: bool,
    /// Columns and rows of the terminal.
    pub terminal_size: Option<(u16, u16)>,
}

/// How it went.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) enum Report {
    /// A process was made: a container's first waits to be started, another
    /// executes. Beside it: its pidfd, the reading end of its verdict pipe, and
    /// the master side of its terminal if any.
    Created {
        /// Process identifier in the agent's PID namespace.
        pid: i32,
    },
    /// Processes were looked at. Beside it: a file with what was seen.
    Seen,
    /// Nothing was left behind.
    Failed(Failure),
}

/// Why a process could not be made or executed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Failure {
    /// Whose fault it is.
    pub kind: FailureKind,
    /// One line for a person.
    pub message: String,
}

/// Whose fault a [`Failure`] is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) enum FailureKind {
    /// The specification's or the image's.
    Invalid,
    /// The host's, who asks for what the state forbids.
    Precondition,
    /// The guest's.
    Internal,
}

impl Failure {
    /// A failure of the specification or the image.
    pub(crate) fn invalid(message: impl std::fmt::Display) -> Self {
        Self::new(FailureKind::Invalid, message)
    }

    /// A call that the container's state forbids.
    pub(crate) fn precondition(message: impl std::fmt::Display) -> Self {
        Self::new(FailureKind::Precondition, message)
    }

    /// A failure of the guest.
    pub(crate) fn internal(message: impl std::fmt::Display) -> Self {
        Self::new(FailureKind::Internal, message)
    }

    fn new(kind: FailureKind, message: impl std::fmt::Display) -> Self {
        let mut message = message.to_string();
        let end = message.floor_char_boundary(MAX_TEXT);
        message.truncate(end);
        Self { kind, message }
    }
}

/// Sends one message with descriptors beside it.
pub(crate) fn send(
    socket: impl AsFd,
    message: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg(
        socket,
        &[IoSlice::new(&bytes)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Receives one message and the descriptors beside it.
pub(crate) fn receive<M: DeserializeOwned>(socket: impl AsFd) -> io::Result<(M, Vec<OwnedFd>)> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let fds = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    let message = serde_json::from_slice(bytes.get(..received.bytes).unwrap_or_default())?;
    Ok((message, fds))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC;
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
    }

    #[test]
    fn a_report_carries_its_descriptors() {
        let (agent, helper) = pair();
        let (read, write) = crate::streams::open_ends().unwrap();
        send(&helper, &Report::Created { pid: 7 }, &[write.as_fd()]).unwrap();
        drop(write);
        let (report, mut fds) = receive::<Report>(&agent).unwrap();
        assert!(matches!(report, Report::Created { pid: 7 }));
        std::fs::File::from(fds.pop().unwrap())
            .write_all(b"x")
            .unwrap();
        let text = std::io::read_to_string(std::fs::File::from(read)).unwrap();
        assert_eq!(text, "x");
    }

    #[test]
    fn a_helper_that_dies_is_an_end_of_file() {
        let (agent, helper) = pair();
        drop(helper);
        let error = receive::<Report>(&agent).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn the_text_of_a_failure_is_bounded() {
        let (agent, helper) = pair();
        let failure = Failure::internal("ü".repeat(1 << 20));
        send(&helper, &Report::Failed(failure), &[]).unwrap();
        let (Report::Failed(failure), _) = receive(&agent).unwrap() else {
            panic!("no failure")
        };
        assert!(failure.message.len() <= MAX_TEXT);
    }
}
