//! The agent in the guest, as the front door calls it.
//!
//! Every call has a deadline; only waiting for a container's end has none, and
//! ends with the pod. What the agent answers is hostile: texts are bounded and
//! escaped, numbers checked.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nacre_protocol::agent as messages;
pub use nacre_protocol::agent::{
    ContainerStatsResponse as ContainerStats, CpuStats, GuestStatsResponse as GuestStats, IoStats,
    MemoryStats,
};
use nacre_protocol::agent_ttrpc::AgentClient;
use thiserror::Error;
use tokio::net::UnixStream;
use ttrpc::context::{self, Context};
use ttrpc::proto::Code;

use crate::network::GuestView;
use crate::processes::GuestProcess;
use crate::stdio::TerminalSize;
use crate::text;

/// Least that calls which read files of the share or run a program are given.
const THOROUGH: Duration = Duration::from_secs(60);
/// Deadline of calls without which the pod ends all the same.
const FAREWELL: Duration = Duration::from_secs(2);
/// Most processes of a container that are told of: a guest's kernel gives no more numbers,
/// unless somebody has told it to, and what is made of each must not cost the host its memory.
const MAX_PROCESSES: usize = 32 << 10;
/// Most of them of which more is told than the number.
const MAX_DETAILS: usize = 4096;

/// Most block devices, and most counters of a file of cgroup v2, that are told of, and the
/// longest name of such a counter in bytes. A kernel has some 60 counters in the longest file.
const MAX_DEVICES: usize = 256;
const MAX_COUNTERS: usize = 256;
const MAX_COUNTER_NAME: usize = 64;

/// Why a call to the agent failed. The kinds are those that containerd knows.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum AgentError {
    /// There is no such container.
    #[error("{0}")]
    NotFound(String),
    /// There is such a container already.
    #[error("{0}")]
    AlreadyExists(String),
    /// The state of the container or the pod forbids it.
    #[error("{0}")]
    FailedPrecondition(String),
    /// The request or the specification cannot be honoured.
    #[error("{0}")]
    InvalidArgument(String),
    /// The file may not be executed.
    #[error("{0}")]
    PermissionDenied(String),
    /// A bound of the guest is reached.
    #[error("{0}")]
    ResourceExhausted(String),
    /// The pod is on its way down.
    #[error("{0}")]
    Unavailable(String),
    /// The agent did not answer in time.
    #[error("the agent in the guest did not answer in time ({0})")]
    DeadlineExceeded(&'static str),
    /// The connection to the agent is gone: it has ended, or the guest has.
    #[error("the connection to the agent in the guest is lost ({0})")]
    Disconnected(&'static str),
    /// The agent's answer makes no sense.
    #[error("the agent in the guest answered nonsense ({0})")]
    Nonsense(&'static str),
    /// Something went wrong in the guest.
    #[error("{0}")]
    Internal(String),
}

/// How the agent says that a program cannot be executed, as runc does.
const EXEC: &str = "exec: \"";
/// Ends of such messages that mean that there is no such file.
const NO_SUCH_FILE: &[&str] = &[
    ": executable file not found in $PATH",
    ": no such file or directory",
];

impl AgentError {
    /// The status that a shell gives to this error, if it is one about
    /// executing a program: 127 when there is none, 126 when it cannot be run.
    #[must_use]
    pub fn exec_status(&self) -> Option<u8> {
        let Self::InvalidArgument(message) = self else {
            return None;
        };
        let (_, exec) = message.split_once(EXEC)?;
        let missing = NO_SUCH_FILE.iter().any(|end| exec.ends_with(end));
        Some(if missing { 127 } else { 126 })
    }

    fn from_ttrpc(call: &'static str, error: ttrpc::Error) -> Self {
        let status = match error {
            ttrpc::Error::RpcStatus(status) => status,
            ttrpc::Error::Others(_) => return Self::Nonsense(call),
            _ => return Self::Disconnected(call),
        };
        let message = text::one_line(&status.message);
        match status.code.enum_value_or(Code::UNKNOWN) {
            Code::NOT_FOUND => Self::NotFound(message),
            Code::ALREADY_EXISTS => Self::AlreadyExists(message),
            Code::FAILED_PRECONDITION => Self::FailedPrecondition(message),
            Code::INVALID_ARGUMENT => Self::InvalidArgument(message),
            Code::PERMISSION_DENIED => Self::PermissionDenied(message),
            Code::RESOURCE_EXHAUSTED => Self::ResourceExhausted(message),
            Code::UNAVAILABLE => Self::Unavailable(message),
            Code::DEADLINE_EXCEEDED => Self::DeadlineExceeded(call),
            _ => Self::Internal(message),
        }
    }
}

/// What the guest said of itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct GuestInfo {
    /// `uname -r` of the guest.
    pub kernel_release: String,
    /// Version of the agent.
    pub agent_version: String,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ProcessEnd {
    /// Exit code, or 128+n when signal n ended it.
    pub status: u8,
    /// When, by the guest's clock.
    pub exited_at: SystemTime,
    /// The guest's kernel has killed a process of the container for want of memory.
    pub oom_killed: bool,
}

/// A disk as the guest has it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct GuestDisk {
    /// Its name in the guest's `/dev`.
    pub name: String,
    /// Number of its driver in the guest.
    pub major: u32,
    /// Its number among those of the driver.
    pub minor: u32,
}

/// Longest name of a disk in bytes: the kernel's DISK_NAME_LEN.
const MAX_DISK_NAME: usize = 32;

impl GuestDisk {
    /// What the agent said, if it makes sense.
    fn new(said: messages::AttachDiskResponse) -> Option<Self> {
        let is_name = (1..=MAX_DISK_NAME).contains(&said.name.len())
            && said.name.bytes().all(|byte| byte.is_ascii_alphanumeric());
        is_name.then_some(Self {
            name: said.name,
            major: said.major,
            minor: said.minor,
        })
    }
}

/// A process of a pod: a container's first, or one that was executed in it later.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct ProcessId<'a> {
    /// The container's identifier.
    pub container: &'a str,
    /// The identifier that the process was executed under; empty: the first.
    pub exec: &'a str,
}

impl<'a> ProcessId<'a> {
    /// The first process of a container.
    #[must_use]
    pub fn first_of(container: &'a str) -> Self {
        Self {
            container,
            exec: "",
        }
    }
}

/// A connection to the agent.
#[derive(Clone)]
pub struct Agent {
    client: AgentClient,
    /// Deadline of calls that read files of the share or run a program.
    thorough: Duration,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent").finish_non_exhaustive()
    }
}

/// Makes one call by its deadline and gives it its name in errors.
macro_rules! call {
    ($agent:ident.$method:ident($request:expr), $deadline:expr) => {{
        let call = $agent.client.$method(deadline($deadline), $request);
        match tokio::time::timeout($deadline, call).await {
            Ok(answer) => {
                answer.map_err(|error| AgentError::from_ttrpc(stringify!($method), error))
            }
            Err(_late) => Err(AgentError::DeadlineExceeded(stringify!($method))),
        }
    }};
}

/// ttrpc's own deadline tells nothing of its kind, so it comes after ours.
fn deadline(duration: Duration) -> Context {
    context::with_duration(duration + Duration::from_secs(1))
}

impl Agent {
    /// Talks to the agent at the other end of `connection`. A machine on which a boot may
    /// take longer than other calls do, `boot_timeout`, may be as slow at these.
    #[must_use]
    pub fn new(connection: UnixStream, boot_timeout: Duration) -> Self {
        let client = ttrpc::asynchronous::Client::new(connection.into());
        Self {
            client: AgentClient::new(client),
            thorough: boot_timeout.max(THOROUGH),
        }
    }

    /// Deadline of calls that look something up, send a signal, or hold up others.
    fn quick(&self) -> Duration {
        self.thorough / 6
    }

    /// Prepares the guest for its first container.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn set_up_pod(
        &self,
        request: &messages::SetUpPodRequest,
    ) -> Result<GuestInfo, AgentError> {
        let answer = call!(self.set_up_pod(request), self.thorough)?;
        Ok(GuestInfo {
            kernel_release: text::one_line(&answer.kernel_release),
            agent_version: text::one_line(&answer.agent_version),
        })
    }

    /// Makes the guest's network what it is now to be.
    ///
    /// # Errors
    /// [`AgentError`].
    pub(crate) async fn update_network(&self, view: GuestView) -> Result<(), AgentError> {
        let request = messages::UpdateNetworkRequest {
            interfaces: view.interfaces,
            policy_rules: view.rules,
            ..Default::default()
        };
        call!(self.update_network(&request), THOROUGH)?;
        Ok(())
    }

    /// Makes a container whose process waits to be started; gives the process's
    /// number in the guest.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn create_container(
        &self,
        request: &messages::CreateContainerRequest,
    ) -> Result<u32, AgentError> {
        Ok(call!(self.create_container(request), self.thorough)?.pid)
    }

    /// Starts a container's process.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn start_container(&self, id: &str) -> Result<(), AgentError> {
        let request = messages::StartContainerRequest {
            container_id: id.to_owned(),
            ..Default::default()
        };
        call!(self.start_container(&request), self.thorough)?;
        Ok(())
    }

    /// Starts a further process in a running container; gives its number in the
    /// guest.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn exec(&self, request: &messages::ExecRequest) -> Result<u32, AgentError> {
        Ok(call!(self.exec(request), self.thorough)?.pid)
    }

    /// Forgets a process that was executed later and has ended.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn delete_exec(&self, process: ProcessId<'_>) -> Result<(), AgentError> {
        let request = messages::DeleteExecRequest {
            container_id: process.container.to_owned(),
            exec_id: process.exec.to_owned(),
            ..Default::default()
        };
        call!(self.delete_exec(&request), self.quick())?;
        Ok(())
    }

    /// Sends a signal to a process, or to all of its container.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn signal(
        &self,
        process: ProcessId<'_>,
        signal: u32,
        all: bool,
    ) -> Result<(), AgentError> {
        let request = messages::SignalContainerRequest {
            container_id: process.container.to_owned(),
            exec_id: process.exec.to_owned(),
            signal,
            all,
            ..Default::default()
        };
        call!(self.signal_container(&request), self.quick())?;
        Ok(())
    }

    /// Waits for a process to end. Without a deadline: it ends with the
    /// connection at the latest.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn wait(&self, process: ProcessId<'_>) -> Result<ProcessEnd, AgentError> {
        let request = messages::WaitContainerRequest {
            container_id: process.container.to_owned(),
            exec_id: process.exec.to_owned(),
            ..Default::default()
        };
        let answer = self
            .client
            .wait_container(Context::default(), &request)
            .await
            .map_err(|error| AgentError::from_ttrpc("wait_container", error))?;
        let status =
            u8::try_from(answer.exit_status).map_err(|_| AgentError::Nonsense("wait_container"))?;
        let since_epoch = Duration::from_nanos(answer.exited_at_ns.max(0).unsigned_abs());
        Ok(ProcessEnd {
            status,
            exited_at: UNIX_EPOCH + since_epoch,
            oom_killed: answer.oom_killed,
        })
    }

    /// Waits until more processes of a container than `known` were killed for
    /// want of memory, and says how many. Without a deadline, as [`Agent::wait`].
    ///
    /// # Errors
    /// [`AgentError`], `NotFound` when the container is deleted.
    pub async fn wait_out_of_memory(&self, container: &str, known: u64) -> Result<u64, AgentError> {
        let request = messages::WaitOutOfMemoryRequest {
            container_id: container.to_owned(),
            known,
            ..Default::default()
        };
        let answer = self
            .client
            .wait_out_of_memory(Context::default(), &request)
            .await
            .map_err(|error| AgentError::from_ttrpc("wait_out_of_memory", error))?;
        // An agent that answers at once with no news would be asked for ever.
        if answer.kills <= known {
            return Err(AgentError::Nonsense("wait_out_of_memory"));
        }
        Ok(answer.kills)
    }

    /// Connects an opened stream with a TCP port of the pod's localhost.
    ///
    /// # Errors
    /// [`AgentError`], `FailedPrecondition` when nobody listens there.
    pub async fn connect_port(&self, stream: u64, port: u16) -> Result<(), AgentError> {
        let request = messages::ConnectPortRequest {
            stream,
            port: port.into(),
            ..Default::default()
        };
        call!(self.connect_port(&request), self.quick())?;
        Ok(())
    }

    /// Sets the size of a process's terminal.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn resize_terminal(
        &self,
        process: ProcessId<'_>,
        size: TerminalSize,
    ) -> Result<(), AgentError> {
        let request = messages::ResizeTerminalRequest {
            container_id: process.container.to_owned(),
            exec_id: process.exec.to_owned(),
            size: Some(terminal_size(size)).into(),
            ..Default::default()
        };
        call!(self.resize_terminal(&request), self.quick())?;
        Ok(())
    }

    /// Freezes all processes of a container.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn pause_container(&self, id: &str) -> Result<(), AgentError> {
        let request = messages::PauseContainerRequest {
            container_id: id.to_owned(),
            ..Default::default()
        };
        call!(self.pause_container(&request), self.thorough)?;
        Ok(())
    }

    /// Lets the processes of a paused container go on.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn resume_container(&self, id: &str) -> Result<(), AgentError> {
        let request = messages::ResumeContainerRequest {
            container_id: id.to_owned(),
            ..Default::default()
        };
        call!(self.resume_container(&request), self.thorough)?;
        Ok(())
    }

    /// Changes the limits of a container; `resources` is JSON as in the
    /// specification's `linux.resources`.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn update_container(&self, id: &str, resources: &[u8]) -> Result<(), AgentError> {
        let request = messages::UpdateContainerRequest {
            container_id: id.to_owned(),
            resources: resources.to_owned(),
            ..Default::default()
        };
        call!(self.update_container(&request), self.thorough)?;
        Ok(())
    }

    /// Has as many CPUs of the guest online, the boot CPU included.
    ///
    /// # Errors
    /// [`AgentError`].
    pub(crate) async fn set_cpus(&self, cpus: u8) -> Result<(), AgentError> {
        let request = messages::SetCpusRequest {
            cpus: cpus.into(),
            ..Default::default()
        };
        call!(self.set_cpus(&request), self.thorough)?;
        Ok(())
    }

    /// Numbers of a container's processes in the guest, the first one's first.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn list_processes(&self, id: &str) -> Result<Vec<u32>, AgentError> {
        let request = messages::ListProcessesRequest {
            container_id: id.to_owned(),
            ..Default::default()
        };
        let mut pids = call!(self.list_processes(&request), self.quick())?.pids;
        pids.truncate(MAX_PROCESSES);
        Ok(pids)
    }

    /// What the processes of a container are, the first one first. Of those that end meanwhile
    /// nothing is told.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn look_at_processes(&self, id: &str) -> Result<Vec<GuestProcess>, AgentError> {
        let request = messages::ListProcessesRequest {
            container_id: id.to_owned(),
            details: true,
            ..Default::default()
        };
        let listed = call!(self.list_processes(&request), self.quick())?;
        let first = listed.pids.first().copied();
        let processes = listed.processes.iter().take(MAX_DETAILS);
        let mut processes: Vec<_> = processes.map(GuestProcess::new).collect();
        processes.sort_by_key(|process| (Some(process.pid) != first, process.pid));
        Ok(processes)
    }

    /// What a container uses.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn container_stats(&self, id: &str) -> Result<ContainerStats, AgentError> {
        let request = messages::ContainerStatsRequest {
            container_id: id.to_owned(),
            ..Default::default()
        };
        let mut stats = call!(self.container_stats(&request), self.quick())?;
        bound(&mut stats);
        Ok(stats)
    }

    /// What the guest as a whole uses, and these containers of it, asked in one call.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn guest_stats(&self, containers: Vec<String>) -> Result<GuestStats, AgentError> {
        let request = messages::GuestStatsRequest {
            container_ids: containers,
            ..Default::default()
        };
        let mut stats = call!(self.guest_stats(&request), self.quick())?;
        let asked = &request.container_ids;
        stats.containers.retain(|id, _| asked.contains(id));
        stats.containers.shrink_to_fit();
        stats.containers.values_mut().for_each(bound);
        Ok(stats)
    }

    /// Has the guest renew its copy of a volume, whose content is in the directory `current`
    /// of it.
    ///
    /// # Errors
    /// [`AgentError`].
    pub(crate) async fn renew_volume(&self, id: &str, current: Vec<u8>) -> Result<(), AgentError> {
        let request = messages::RenewVolumeRequest {
            volume_id: id.to_owned(),
            current,
            ..Default::default()
        };
        call!(self.renew_volume(&request), self.thorough)?;
        Ok(())
    }

    /// Removes a container that has ended.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn delete_container(&self, id: &str) -> Result<(), AgentError> {
        let request = messages::DeleteContainerRequest {
            container_id: id.to_owned(),
            ..Default::default()
        };
        call!(self.delete_container(&request), self.thorough)?;
        Ok(())
    }

    /// Has the guest look at a device that a disk was given to.
    ///
    /// # Errors
    /// [`AgentError`].
    pub(crate) async fn attach_disk(&self, device: u32) -> Result<GuestDisk, AgentError> {
        let request = messages::AttachDiskRequest {
            device,
            ..Default::default()
        };
        let disk = call!(self.attach_disk(&request), self.thorough)?;
        GuestDisk::new(disk).ok_or(AgentError::Nonsense("attach_disk"))
    }

    /// Has the guest let go of a device.
    ///
    /// # Errors
    /// [`AgentError`].
    pub(crate) async fn detach_disk(&self, device: u32) -> Result<(), AgentError> {
        let request = messages::DetachDiskRequest {
            device,
            ..Default::default()
        };
        call!(self.detach_disk(&request), self.quick())?;
        Ok(())
    }

    /// Asks the guest to end all containers and to power off.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn shut_down(&self) -> Result<(), AgentError> {
        let request = messages::ShutDownRequest::new();
        call!(self.shut_down(&request), FAREWELL)?;
        Ok(())
    }
}

/// Leaves of what a container is said to use only what a kernel would say: each entry of the
/// answer becomes many times its size on the way to whoever asked.
fn bound(stats: &mut ContainerStats) {
    stats.io.truncate(MAX_DEVICES);
    stats.io.shrink_to_fit();
    if let Some(memory) = stats.memory.as_mut() {
        bound_counters(&mut memory.stat);
        bound_counters(&mut memory.events);
    }
}

fn bound_counters(counters: &mut HashMap<String, u64>) {
    let is_name = |name: &str| {
        let is_fit = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'.')
        };
        (1..=MAX_COUNTER_NAME).contains(&name.len()) && name.bytes().all(is_fit)
    };
    let mut room = MAX_COUNTERS;
    counters.retain(|name, _| {
        let kept = room > 0 && is_name(name);
        room -= usize::from(kept);
        kept
    });
    counters.shrink_to_fit();
}

/// The protocol's form of a terminal's size.
pub(crate) fn terminal_size(size: TerminalSize) -> messages::TerminalSize {
    messages::TerminalSize {
        columns: size.columns.into(),
        rows: size.rows.into(),
        ..Default::default()
    }
}

#[cfg(test)]
#[path = "agent_test.rs"]
mod tests;
