//! Between a verb and the process that it starts: what to do, whether it worked, and
//! whether either of them is still there.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream as BlockingStream;
use std::process::{Child, Command};

use command_fds::{CommandFdExt, FdMapping};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

use super::cli::GlobalArgs;
use super::error::OciError;
use super::wire;
use crate::logger;

/// The started process's end.
const CHANNEL: i32 = 3;

/// What a started process says.
#[derive(Debug, Deserialize, Serialize)]
enum Outcome {
    Done,
    Failed(String),
}

/// A process that was started; it works on its own once it has said that it is done.
#[derive(Debug)]
pub(crate) struct Started {
    child: Child,
    channel: BlockingStream,
}

/// Starts this program as `role`, with the standard descriptors of this process, and
/// tells it what to do.
pub(crate) fn spawn(
    globals: &GlobalArgs,
    role: &str,
    id: &str,
    order: &impl Serialize,
) -> Result<Started, OciError> {
    let start = || -> io::Result<Started> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(globals.to_args());
        command.args([role, id]).current_dir("/");
        let mapping = FdMapping {
            parent_fd: theirs,
            child_fd: CHANNEL,
        };
        command
            .fd_mappings(vec![mapping])
            .map_err(|error| io::Error::other(error.to_string()))?;
        let child = command.spawn()?;
        // The command holds the other end.
        drop(command);
        let channel = BlockingStream::from(ours);
        wire::send(&channel, order, &[])?;
        Ok(Started { child, channel })
    };
    start().map_err(OciError::system("cannot start a process"))
}

impl Started {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the process is done with what it was told, or says why not.
    pub(crate) fn done(&mut self) -> Result<(), OciError> {
        match wire::receive(&self.channel) {
            Ok(Some(Outcome::Done)) => Ok(()),
            Ok(Some(Outcome::Failed(error))) => {
                // All that it made is gone when it is.
                let _ = self.child.wait();
                Err(OciError::Other(error))
            }
            Ok(None) | Err(_) => {
                let end = self.child.wait();
                let end = end.map(|status| status.to_string()).unwrap_or_default();
                Err(OciError::Other(format!(
                    "it ended before it was ready ({end})"
                )))
            }
        }
    }

    /// Lets the process work on its own. One that hears nothing of it undoes all.
    pub(crate) fn release(self) -> Result<(), OciError> {
        wire::send(&self.channel, &Outcome::Done, &[])
            .map_err(OciError::system("cannot let the container go on"))
    }
}

/// Takes the channel that this process was started with.
pub(crate) fn take<T: DeserializeOwned>() -> Result<(T, BlockingStream), OciError> {
    let failed = || OciError::system("not started by another command");
    // SAFETY: a flag of a descriptor is set, if there is such a descriptor.
    if unsafe { libc::fcntl(CHANNEL, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
        return Err(failed()(io::Error::last_os_error()));
    }
    // SAFETY: the descriptor is open, and nothing in this process has opened it: this
    // comes before all else that does, and the standard ones are below.
    let channel = BlockingStream::from(unsafe { OwnedFd::from_raw_fd(CHANNEL) });
    let order = wire::receive(&channel).map_err(failed())?;
    let order = order.ok_or_else(|| OciError::Other("the caller is gone".into()))?;
    Ok((order, channel))
}

/// Says why it could not be done.
pub(crate) fn fail(channel: &BlockingStream, error: &OciError) {
    if wire::send(channel, &Outcome::Failed(error.to_string()), &[]).is_err() {
        log::error!("{error}");
    }
}

/// The verb that has started this process.
#[derive(Debug)]
pub(crate) struct Caller {
    blocking: Option<BlockingStream>,
    polled: Option<UnixStream>,
}

impl Caller {
    pub(crate) fn new(channel: BlockingStream) -> Self {
        Self {
            blocking: Some(channel),
            polled: None,
        }
    }

    /// Waits until the verb is no more.
    pub(crate) async fn gone(&mut self) {
        let Ok(channel) = self.polled() else { return };
        // It says nothing until it is asked.
        let _ = wire::receive_async::<Outcome>(channel).await;
    }

    /// Says that all is done and waits until the verb has taken note.
    pub(crate) async fn done(&mut self) -> Result<(), OciError> {
        // The caller's standard error is that of the container.
        logger::keep_off_stderr();
        let told = async {
            let channel = self.polled()?;
            wire::send_async(channel, &Outcome::Done).await?;
            wire::receive_async::<Outcome>(channel).await
        };
        match told.await {
            Ok(Some(Outcome::Done)) => Ok(()),
            _ => Err(OciError::Other("the caller is gone".into())),
        }
    }

    fn polled(&mut self) -> io::Result<&mut UnixStream> {
        if let Some(blocking) = self.blocking.take() {
            blocking.set_nonblocking(true)?;
            self.polled = Some(UnixStream::from_std(blocking)?);
        }
        self.polled
            .as_mut()
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}
