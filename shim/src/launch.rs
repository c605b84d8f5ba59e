//! How a shim gets its pod's listening socket from the `start` that launched it.
//!
//! containerd knows nothing of a shim whose `start` was killed before the answer. So a shim
//! serves only once it has the socket, and `start` gives that away last, when all else is done.
//! Without it the shim ends, and takes the dead socket along.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// What goes along with the socket: a descriptor needs a byte to travel with.
const WORD: &[u8] = b"!";

/// `start`'s end. The shim ends when this goes before the socket was given.
#[derive(Debug)]
pub(crate) struct Launcher(UnixStream);

impl Launcher {
    /// One, and the end that the shim is to have as its standard input.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair()?;
        Ok((Self(ours), theirs.into()))
    }

    /// Gives the shim its socket: from here on it serves.
    ///
    /// # Errors
    /// The system's; the shim has ended then.
    pub(crate) fn give(self, listener: &UnixListener) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = [listener.as_fd()];
        if !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        sendmsg(
            &self.0,
            &[IoSlice::new(WORD)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )?;
        Ok(())
    }
}

/// Waits for the socket on the shim's end; `None` when `start` has ended without giving it.
///
/// # Errors
/// The system's.
pub(crate) fn take(end: impl AsFd) -> io::Result<Option<UnixListener>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut word = [0; WORD.len()];
    rustix::io::retry_on_intr(|| {
        recvmsg(
            &end,
            &mut [IoSliceMut::new(&mut word)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )
    })?;
    let given = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok(given.map(UnixListener::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_that_is_given_is_the_one_that_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (launcher, end) = Launcher::pair().unwrap();
        launcher.give(&UnixListener::bind(&path).unwrap()).unwrap();
        let listener = take(&end).unwrap().unwrap();
        let _caller = UnixStream::connect(&path).unwrap();
        listener.accept().unwrap();
    }

    #[test]
    fn a_launcher_that_ends_before_gives_none() {
        let (launcher, end) = Launcher::pair().unwrap();
        drop(launcher);
        assert!(take(&end).unwrap().is_none());
    }

    #[test]
    fn a_shim_that_has_ended_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let (launcher, end) = Launcher::pair().unwrap();
        drop(end);
        launcher.give(&listener).unwrap_err();
    }
}
