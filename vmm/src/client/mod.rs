//! A front door's handle on its monitor: start it, talk to it, see it end.

mod child;
mod idmap;

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use thiserror::Error;

use self::child::Child;
use crate::config::{MonitorConfig, fds};
use crate::control::{self, FrontDoorSocket};

/// The descriptors of one pair of queues of a network device.
#[derive(Debug)]
pub struct QueuePairFds {
    /// A queue of the device's tap, made with `IFF_NO_PI` and `IFF_VNET_HDR`. Those of all
    /// pairs but the first are detached (`IFF_DETACH_QUEUE`).
    pub tap: OwnedFd,
    /// `/dev/vhost-net`, opened for this pair.
    pub vhost: Option<OwnedFd>,
}

/// All that a monitor is started with.
#[derive(Debug)]
pub struct Launch<'a> {
    /// The `nacre-vmm` binary.
    pub binary: &'a Path,
    /// The virtual machine.
    pub config: &'a MonitorConfig,
    /// `/dev/kvm`, read and write.
    pub kvm: OwnedFd,
    /// The guest kernel.
    pub kernel: OwnedFd,
    /// The initramfs.
    pub initramfs: OwnedFd,
    /// Descriptors of the network devices, pair by pair, in the order of
    /// [`MonitorConfig::network`].
    pub network: Vec<Vec<QueuePairFds>>,
    /// Where the monitor's log lines go: its standard error.
    pub log: OwnedFd,
    /// The directory of the cgroup (version 2) that the monitor is born in.
    pub cgroup: Option<OwnedFd>,
}

/// Why a monitor could not be started.
#[derive(Debug, Error)]
pub enum SpawnError {
    /// The binary is not there or may not be executed.
    #[error("cannot execute the monitor {}: {source}", path.display())]
    Execute {
        /// The binary.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The kernel refused the namespaces.
    #[error(
        "cannot create the monitor's namespaces: {0} (user namespaces must be enabled: see \
         /proc/sys/user/max_user_namespaces)"
    )]
    Namespaces(io::Error),
    /// Something else on the way to the monitor failed.
    #[error("cannot start the monitor: {what}: {source}")]
    Other {
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

impl SpawnError {
    /// What the answer of `clone3(2)` means.
    fn clone(source: io::Error) -> Self {
        match source.kind() {
            // Not allowed, or no more of them.
            io::ErrorKind::PermissionDenied | io::ErrorKind::StorageFull => {
                Self::Namespaces(source)
            }
            io::ErrorKind::InvalidInput => Self::Namespaces(source),
            _ => Self::Other {
                what: "process",
                source,
            },
        }
    }

    fn other<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Other {
            what,
            source: source.into(),
        }
    }
}

/// How a monitor's process ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ProcessEnd {
    /// It exited with this code.
    Exited(i32),
    /// This signal ended it.
    Signaled(i32),
}

impl std::fmt::Display for ProcessEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exited with status {code}"),
            Self::Signaled(libc::SIGSYS) => {
                write!(f, "was killed for a forbidden system call (SIGSYS)")
            }
            Self::Signaled(signal) => write!(f, "was killed by signal {signal}"),
        }
    }
}

/// A running monitor, a child of this process. Dropping it kills it.
#[derive(Debug)]
pub struct Monitor {
    pid: Pid,
    pidfd: OwnedFd,
    control: FrontDoorSocket,
    end: Option<ProcessEnd>,
}

impl Monitor {
    /// Starts a monitor in namespaces of its own. It dies with the calling
    /// thread, so that must be one that lasts.
    ///
    /// # Errors
    /// [`SpawnError`]; nothing is left behind.
    pub fn spawn(launch: Launch<'_>) -> Result<Self, SpawnError> {
        let (front_door, monitor) = control::pair().map_err(SpawnError::other("control socket"))?;
        let binary = c_string(launch.binary.as_os_str())?;
        let config = config_file(launch.config).map_err(SpawnError::other("configuration"))?;
        let null = File::open("/dev/null").map_err(SpawnError::other("/dev/null"))?;

        let places = [
            (0, null.into()),
            (1, launch.log.try_clone().map_err(SpawnError::other("log"))?),
            (2, launch.log),
            (fds::CONFIG, config),
            (fds::CONTROL, monitor.into()),
            (fds::KVM, launch.kvm),
            (fds::KERNEL, launch.kernel),
            (fds::INITRAMFS, launch.initramfs),
        ];
        let network = launch
            .network
            .into_iter()
            .flatten()
            .flat_map(|pair| [Some(pair.tap), pair.vhost])
            .flatten();
        let places: Vec<(RawFd, OwnedFd)> = places
            .into_iter()
            .chain((fds::FIRST_NETWORK..).zip(network))
            .collect();
        // First moved above all places, so that putting them there overwrites none that is
        // still needed.
        let above = places.iter().map(|(place, _)| place + 1).max().unwrap_or(0);
        let moved = places
            .into_iter()
            .map(|(place, fd)| Ok((place, fcntl_dupfd_cloexec(&fd, above)?)))
            .collect::<Result<Vec<(RawFd, OwnedFd)>, Errno>>()
            .map_err(SpawnError::other("descriptors"))?;

        let child = Child {
            binary: &binary,
            fds: &moved,
            cgroup: launch.cgroup.as_ref(),
        };
        let started = child.start().map_err(SpawnError::clone)?;
        let mut monitor = Self {
            pid: started.pid,
            pidfd: started.pidfd,
            control: front_door,
            end: None,
        };
        // From here on, dropping `monitor` on an error kills the child.
        release(
            &mut monitor,
            started.release,
            started.failure,
            launch.binary,
        )?;
        Ok(monitor)
    }

    /// Process identifier on the host.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Becomes readable when the process ends.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The socket for requests and events.
    #[must_use]
    pub fn control(&self) -> &FrontDoorSocket {
        &self.control
    }

    /// Ends the process at once, whatever its guest does. Harmless when it has
    /// ended already.
    pub fn kill(&self) {
        // The only possible failure is that there is nothing left to kill.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Waits for the process to end and says how; again and again if asked.
    ///
    /// # Errors
    /// What `waitid(2)` answers.
    pub fn wait(&mut self) -> io::Result<ProcessEnd> {
        if let Some(end) = self.end {
            return Ok(end);
        }
        let options = WaitIdOptions::EXITED;
        let status =
            rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(self.pidfd.as_fd()), options))?;
        let end = match status {
            Some(status) if status.killed() || status.dumped() => {
                ProcessEnd::Signaled(status.terminating_signal().unwrap_or(libc::SIGKILL))
            }
            Some(status) => ProcessEnd::Exited(status.exit_status().unwrap_or(0)),
            None => return Err(io::Error::other("waitid returned without a status")),
        };
        self.end = Some(end);
        Ok(end)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        if self.end.is_none() {
            self.kill();
            // Without the reaping it would stay as a zombie; a failure cannot be helped here.
            let _ = self.wait();
        }
    }
}

/// Maps the identities of the new user namespace, lets the child go on, and
/// waits until it has become the monitor.
fn release(
    monitor: &mut Monitor,
    release: OwnedFd,
    failure: OwnedFd,
    binary: &Path,
) -> Result<(), SpawnError> {
    idmap::write(monitor.pid).map_err(SpawnError::other("identity map"))?;
    File::from(release)
        .write_all(&[1])
        .map_err(SpawnError::other("start signal"))?;
    let mut report = [0; child::Failure::LEN];
    match File::from(failure).read_exact(&mut report) {
        // The pipe closes by itself when the child executes the monitor.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
        Err(error) => Err(SpawnError::other("failure pipe")(error)),
        Ok(()) => Err(child::Failure::decode(report).into_error(binary)),
    }
}

fn c_string(text: &OsStr) -> Result<CString, SpawnError> {
    CString::new(text.as_bytes()).map_err(|_| SpawnError::other("path of the binary")(Errno::INVAL))
}

fn config_file(config: &MonitorConfig) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("nacre-config", MemfdFlags::CLOEXEC)?);
    // In one piece: a writer without a buffer is asked for every token.
    file.write_all(&serde_json::to_vec(config)?)?;
    file.rewind()?;
    Ok(file.into())
}
