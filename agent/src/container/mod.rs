//! Containers of the guest and what can be done with each.

mod build;
mod cgroup;
mod copy_up;
mod create;
mod device_nodes;
mod devices;
mod directories;
mod enter;
mod exec;
mod executor;
mod fork;
mod freeze;
mod helper;
mod helper_process;
mod home;
mod id;
mod look;
mod lookup;
mod masked_paths;
mod mount_options;
mod mount_points;
mod mounted_disks;
mod null;
mod parked;
mod paths;
mod pid_namespace;
mod privileges;
mod process;
mod readonly_paths;
mod registry;
mod report;
mod rlimits;
mod spec;
mod start_hooks;
mod stats;
mod stdio;
mod sysctls;
mod table;
mod terminal;
mod update;
mod user_namespace;
mod verdict;
mod watched_file;

use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::Signal;
use tokio::sync::watch;

use cgroup::Cgroup;
use exec::Execs;
use freeze::Freezer;
pub use helper::run as run_helper;
pub use helper_process::Role;
pub(crate) use id::Id;
pub(crate) use paths::{CGROUP_PARENT, CGROUP_ROOT};
use pid_namespace::Held;
pub(crate) use pid_namespace::PodPidNamespace;
use process::Process;
pub(crate) use registry::Registry;
pub(crate) use sysctls::set_of_pod as set_sysctls;

use crate::error::{Doing, Error};
use crate::reaper::Reaper;
use crate::share::{Directories, Held as HeldDirectories};
use crate::streams::StreamTable;
use crate::volumes::{Use, Volumes};

/// What all containers of a guest share.
pub(crate) struct Guest {
    /// The agent's own program, for helpers.
    pub(crate) binary: PathBuf,
    pub(crate) reaper: Arc<Reaper>,
    pub(crate) streams: Arc<StreamTable>,
    pub(crate) pid_namespace: Arc<PodPidNamespace>,
    pub(crate) volumes: Arc<Volumes>,
    pub(crate) directories: Arc<Directories>,
}

/// A container from its creation to its deletion.
pub(crate) struct Container {
    id: Id,
    init: Arc<Process>,
    /// Says how executing the workload went; taken by the one start.
    verdict: Mutex<Option<OwnedFd>>,
    execs: Execs,
    freezer: Freezer,
    cgroup: Cgroup,
    /// Held while its limits change.
    updating: Mutex<()>,
    bundle: PathBuf,
    deleted: watch::Sender<bool>,
    /// There while its PID namespace is the pod's.
    pid_namespace: Mutex<Option<Held>>,
    /// Volumes that it has copies of.
    volumes: Mutex<Vec<Use>>,
    /// What it has of the share.
    directories: Mutex<Option<HeldDirectories>>,
}

/// What a container is made of.
struct Made {
    init: Arc<Process>,
    verdict: OwnedFd,
    cgroup: Cgroup,
    bundle: PathBuf,
    pid_namespace: Option<Held>,
    volumes: Vec<Use>,
    directories: HeldDirectories,
}

impl Container {
    fn new(id: Id, made: Made) -> Self {
        Self {
            execs: Execs::new(&id),
            freezer: Freezer::default(),
            id,
            init: made.init,
            verdict: Mutex::new(Some(made.verdict)),
            cgroup: made.cgroup,
            updating: Mutex::default(),
            bundle: made.bundle,
            deleted: watch::Sender::new(false),
            pid_namespace: Mutex::new(made.pid_namespace),
            volumes: Mutex::new(made.volumes),
            directories: Mutex::new(Some(made.directories)),
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
        let verdict = lock(&self.verdict)
            .take()
            .ok_or_else(|| self.precondition("has been started already"))?;
        match release(&paths::start_socket(&self.id)) {
            // Nobody waits to be started any more.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                return Err(self.precondition("has stopped"));
            }
            released => released.doing("cannot start the container")?,
        }
        verdict::read(verdict).await
    }

    /// Its first process, or the one that Exec has started as `exec_id`.
    pub(crate) fn process(&self, exec_id: &str) -> Result<Arc<Process>, Error> {
        if exec_id.is_empty() {
            return Ok(self.init.clone());
        }
        self.execs.get(exec_id)
    }

    /// Forgets a process that Exec has started and that has ended.
    pub(crate) fn delete_exec(&self, exec_id: &str) -> Result<(), Error> {
        self.execs.delete(exec_id)
    }

    /// Refuses what needs its first process, if only one that waits to be started.
    fn check_lives(&self) -> Result<(), Error> {
        match self.init.exit() {
            Some(_) => Err(self.precondition("has stopped")),
            None => Ok(()),
        }
    }

    /// Sends a signal to one process; see [`Container::process`].
    pub(crate) fn signal(&self, exec_id: &str, signal: Signal) -> Result<(), Error> {
        let process = self.process(exec_id)?;
        let sent = match process.exit() {
            Some(_) => Err(io::Error::from_raw_os_error(libc::ESRCH)),
            None => process.signal(signal),
        };
        match sent {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                if exec_id.is_empty() {
                    return Err(self.precondition("has stopped"));
                }
                let message = format!("process {exec_id:?} has stopped");
                Err(Error::FailedPrecondition(message))
            }
            sent => sent.doing("cannot send the signal"),
        }
    }

    /// Sends a signal to all of its processes.
    pub(crate) fn signal_all(&self, signal: Signal) -> Result<(), Error> {
        match signal {
            Signal::KILL => self.cgroup.kill(),
            signal => self.cgroup.signal_all(signal),
        }
        .doing("cannot send the signal")
    }

    /// Returns when it has been deleted.
    pub(crate) async fn deleted(&self) -> Error {
        // The sender lives as long as this container.
        let _ = self.deleted.subscribe().wait_for(|deleted| *deleted).await;
        Error::NotFound(format!("container {:?}", self.id.as_str()))
    }

    /// Removes what the guest keeps for a container that has stopped.
    async fn remove(&self) -> Result<(), Error> {
        self.cgroup
            .remove()
            .await
            .doing("cannot remove the container's cgroup")?;
        remove_bundle(&self.bundle);
        drop(lock(&self.pid_namespace).take());
        lock(&self.volumes).clear();
        drop(lock(&self.directories).take());
        self.deleted.send_replace(true);
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
