//! Containers of the guest and what can be done with each.

mod cgroup;
mod create;
mod devices;
mod executor;
mod helper;
mod home;
mod id;
mod lookup;
mod paths;
mod process;
mod registry;
mod report;
mod spec;
mod stdio;
mod terminal;
mod workdir;

use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::Signal;

use cgroup::Cgroup;
pub use create::HELPER_ROLE;
pub use helper::run as build_container;
use id::ContainerId;
pub(crate) use paths::{CGROUP_PARENT, CGROUP_ROOT};
use process::Process;
pub(crate) use registry::Registry;
use report::Failure;

use crate::error::{Doing, Error};
use crate::reaper::Reaper;
use crate::streams::{PipeOrTerminal, StreamTable};

/// What all containers of a guest share.
pub(crate) struct Guest {
    /// The agent's own program, for helpers.
    pub(crate) binary: PathBuf,
    pub(crate) reaper: Arc<Reaper>,
    pub(crate) streams: Arc<StreamTable>,
}

/// A container from its creation to its deletion.
pub(crate) struct Container {
    id: ContainerId,
    init: Process,
    /// Says how executing the workload went; taken by the one start.
    verdict: Mutex<Option<OwnedFd>>,
    cgroup: Cgroup,
    bundle: PathBuf,
}

/// Bytes of a verdict on a workload.
const MAX_VERDICT: usize = 16 * 1024;

impl Container {
    fn new(
        id: ContainerId,
        init: Process,
        verdict: OwnedFd,
        cgroup: Cgroup,
        bundle: PathBuf,
    ) -> Self {
        Self {
            id,
            init,
            verdict: Mutex::new(Some(verdict)),
            cgroup,
            bundle,
        }
    }

    /// Its first process.
    pub(crate) fn init(&self) -> &Process {
        &self.init
    }

    fn precondition(&self, state: &str) -> Error {
        Error::FailedPrecondition(format!("container {:?} {state}", self.id.as_str()))
    }

    /// Executes the workload and waits until it runs, or could not be executed.
    pub(crate) async fn start(&self) -> Result<(), Error> {
        if self.init.exit().is_some() {
            return Err(self.precondition("has stopped"));
        }
        let verdict = self
            .verdict
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
            .ok_or_else(|| self.precondition("has been started already"))?;
        match release(&paths::start_socket(&self.id)) {
            // Nobody waits to be started any more.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                return Err(self.precondition("has stopped"));
            }
            released => released.doing("cannot start the container")?,
        }
        let verdict = read_verdict(verdict)
            .await
            .doing("cannot start the container")?;
        if verdict.is_empty() {
            return Ok(());
        }
        let failure: Failure = serde_json::from_slice(&verdict)
            .map_err(|error| Error::internal("cannot read why the start failed", error))?;
        Err(failure.into())
    }

    /// Sends a signal to the first process or to all.
    pub(crate) fn signal(&self, signal: Signal, all: bool) -> Result<(), Error> {
        if self.init.exit().is_some() && !all {
            return Err(self.precondition("has stopped"));
        }
        let sent = match (all, signal) {
            (true, Signal::KILL) => self.cgroup.kill(),
            (true, signal) => self.cgroup.signal_all(signal),
            (false, signal) => self.init.signal(signal),
        };
        match sent {
            // It ended in between.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                Err(self.precondition("has stopped"))
            }
            sent => sent.doing("cannot send the signal"),
        }
    }

    /// Removes what the guest keeps for a container that has stopped.
    async fn remove(&self) -> Result<(), Error> {
        self.cgroup
            .remove()
            .await
            .doing("cannot remove the container's cgroup")?;
        remove_bundle(&self.bundle);
        Ok(())
    }
}

fn remove_bundle(bundle: &Path) {
    match std::fs::remove_dir_all(bundle) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            log::error!("cannot remove {}: {error}", bundle.display());
        }
        _ => {}
    }
}

/// Tells the process that waits on `socket` to go on. The path may be longer
/// than an address can be, so the address goes through a descriptor.
fn release(socket: &Path) -> io::Result<()> {
    use rustix::fs::{Mode, OFlags, open};
    let socket = open(socket, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let address = format!("/proc/self/fd/{}", socket.as_raw_fd());
    UnixStream::connect(address)?.write_all(b"start container")
}

async fn read_verdict(verdict: OwnedFd) -> io::Result<Vec<u8>> {
    let pipe = PipeOrTerminal::new(verdict)?;
    let mut text = Vec::new();
    let mut chunk = [0; 1024];
    while text.len() < MAX_VERDICT {
        let count = pipe.read(&mut chunk).await?;
        if count == 0 {
            break;
        }
        text.extend_from_slice(chunk.get(..count).unwrap_or_default());
    }
    Ok(text)
}
