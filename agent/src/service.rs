//! The calls of the contract, each handed to the part that carries it out.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use nacre_protocol::agent::{
    AttachDiskRequest, AttachDiskResponse, ConnectPortRequest, ConnectPortResponse,
    ContainerStatsRequest, ContainerStatsResponse, CreateContainerRequest, CreateContainerResponse,
    DeleteContainerRequest, DeleteContainerResponse, DeleteExecRequest, DeleteExecResponse,
    DetachDiskRequest, DetachDiskResponse, ExecRequest, ExecResponse, GuestStatsRequest,
    GuestStatsResponse, ListProcessesRequest, ListProcessesResponse, PauseContainerRequest,
    PauseContainerResponse, RenewVolumeRequest, RenewVolumeResponse, ResizeTerminalRequest,
    ResizeTerminalResponse, ResumeContainerRequest, ResumeContainerResponse, SetCpusRequest,
    SetCpusResponse, SetUpPodRequest, SetUpPodResponse, ShutDownRequest, ShutDownResponse,
    SignalContainerRequest, SignalContainerResponse, StartContainerRequest, StartContainerResponse,
    UpdateContainerRequest, UpdateContainerResponse, UpdateNetworkRequest, UpdateNetworkResponse,
    WaitContainerRequest, WaitContainerResponse, WaitOutOfMemoryRequest, WaitOutOfMemoryResponse,
};
use nacre_protocol::agent_ttrpc::{Agent, create_agent};
use rustix::process::Signal;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use ttrpc::r#async::TtrpcContext;

use crate::container::{Container, Guest, Registry};
use crate::error::Error;
use crate::pod::{Pod, disks, port};
use crate::reaper::Reaper;
use crate::stats;
use crate::streams::{StreamTable, accept_streams};
use crate::transport::Listener;
use crate::volumes::Volumes;

/// What the agent needs to serve.
pub struct Serve {
    /// Where the host connects to for calls.
    pub control: Listener,
    /// Where the host connects to for stdio streams.
    pub streams: Listener,
    /// The agent's own program, executed anew to build a container.
    pub binary: PathBuf,
}

/// A running service. The agent ends when [`Service::shut_down`] does.
pub struct Service {
    agent: Arc<AgentService>,
    server: ttrpc::r#async::Server,
}

/// Begins to serve the contract; returns once connections are accepted.
///
/// # Errors
/// When the server cannot be started.
pub async fn serve(setup: Serve) -> Result<Service, ttrpc::Error> {
    let reaper = Arc::new(Reaper::default());
    let streams = Arc::new(StreamTable::default());
    tokio::spawn(accept_streams(setup.streams, streams.clone()));
    let orphans = reaper.clone();
    tokio::spawn(async move {
        if let Err(error) = orphans.reap_orphans().await {
            log::error!("orphans are not reaped: {error}");
        }
    });
    let volumes = Arc::<Volumes>::default();
    let agent = Arc::new(AgentService {
        registry: Arc::new(Registry::new(Guest {
            binary: setup.binary,
            reaper,
            streams: streams.clone(),
            pid_namespace: Arc::default(),
            volumes: volumes.clone(),
            directories: Arc::default(),
        })),
        volumes,
        pod: Arc::default(),
        streams,
        shutting_down: AtomicBool::new(false),
        shut_down: Notify::new(),
    });
    let connections = futures::stream::unfold(setup.control, |listener| async move {
        let accepted = listener.accept().await;
        Some((accepted, listener))
    });
    let mut server = ttrpc::r#async::Server::new()
        .add_listener(ttrpc::asynchronous::transport::Listener::new(connections))
        .register_service(create_agent(agent.clone()));
    server.start().await?;
    Ok(Service { agent, server })
}

impl Service {
    /// Returns after the host has asked for the end and got its reply, with all
    /// containers killed.
    pub async fn shut_down(mut self) {
        self.agent.shut_down.notified().await;
        // The reply is on its way only after the call that has asked returned.
        tokio::time::sleep(REPLYING).await;
        self.server.stop_listen().await;
        self.agent.kill_all().await;
    }
}

struct AgentService {
    registry: Arc<Registry>,
    volumes: Arc<Volumes>,
    pod: Arc<Pod>,
    streams: Arc<StreamTable>,
    shutting_down: AtomicBool,
    shut_down: Notify,
}

impl AgentService {
    fn check_up(&self) -> Result<(), Error> {
        if self.shutting_down.load(Ordering::Relaxed) {
            return Err(Error::ShuttingDown);
        }
        Ok(())
    }

    fn container(&self, id: &str) -> Result<Arc<Container>, Error> {
        self.check_up()?;
        self.registry.get(id)
    }

    async fn kill_all(&self) {
        let containers = self.registry.all();
        for container in &containers {
            if let Err(error) = container.signal_all(Signal::KILL) {
                log::warn!("at shutdown: {error}");
            }
        }
        for container in &containers {
            let ended = tokio::time::timeout(KILLING, container.init().wait()).await;
            if ended.is_err() {
                log::warn!("a container outlives SIGKILL");
            }
        }
    }
}

/// How long the reply to a shutdown may take to leave the guest.
const REPLYING: Duration = Duration::from_millis(10);

/// How long a killed container may take to end when the guest goes down.
const KILLING: Duration = Duration::from_secs(2);

/// Runs what must not stop half-way when the host gives up waiting for it.
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::spawn(work).await;
    done.map_err(|panic| Error::internal("the agent failed", panic))?
}

#[async_trait]
impl Agent for AgentService {
    async fn set_up_pod(
        &self,
        _: &TtrpcContext,
        request: SetUpPodRequest,
    ) -> ttrpc::Result<SetUpPodResponse> {
        self.check_up()?;
        self.pod.set_up(&request).await?;
        Ok(SetUpPodResponse {
            kernel_release: stats::kernel_release(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..SetUpPodResponse::default()
        })
    }

    async fn update_network(
        &self,
        _: &TtrpcContext,
        request: UpdateNetworkRequest,
    ) -> ttrpc::Result<UpdateNetworkResponse> {
        self.check_up()?;
        self.pod.update_network(&request).await?;
        Ok(UpdateNetworkResponse::default())
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<CreateContainerResponse> {
        self.check_up()?;
        let registry = self.registry.clone();
        let pid = to_the_end(async move { registry.create(&request).await }).await?;
        Ok(CreateContainerResponse {
            pid: pid.unsigned_abs(),
            ..CreateContainerResponse::default()
        })
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        request: StartContainerRequest,
    ) -> ttrpc::Result<StartContainerResponse> {
        let container = self.container(&request.container_id)?;
        to_the_end(async move { container.start().await }).await?;
        Ok(StartContainerResponse::default())
    }

    async fn signal_container(
        &self,
        _: &TtrpcContext,
        request: SignalContainerRequest,
    ) -> ttrpc::Result<SignalContainerResponse> {
        let container = self.container(&request.container_id)?;
        let signal = parse_signal(request.signal)?;
        if request.all {
            container.signal_all(signal)?;
        } else {
            container.signal(&request.exec_id, signal)?;
        }
        Ok(SignalContainerResponse::default())
    }

    async fn wait_container(
        &self,
        _: &TtrpcContext,
        request: WaitContainerRequest,
    ) -> ttrpc::Result<WaitContainerResponse> {
        let container = self.container(&request.container_id)?;
        let process = container.process(&request.exec_id)?;
        // Somebody who waits keeps nothing of the container that is deleted.
        drop(container);
        let exit = process.wait().await?;
        Ok(WaitContainerResponse {
            exit_status: exit.status.0,
            exited_at_ns: exit.at_ns,
            oom_killed: exit.oom_killed,
            ..WaitContainerResponse::default()
        })
    }

    async fn resize_terminal(
        &self,
        _: &TtrpcContext,
        request: ResizeTerminalRequest,
    ) -> ttrpc::Result<ResizeTerminalResponse> {
        let container = self.container(&request.container_id)?;
        let size = request.size.unwrap_or_default();
        let bounded = |number: u32, field: &str| {
            u16::try_from(number)
                .map_err(|_| Error::InvalidArgument(format!("size.{field}: must be below 65536")))
        };
        let columns = bounded(size.columns, "columns")?;
        let rows = bounded(size.rows, "rows")?;
        container.process(&request.exec_id)?.resize(columns, rows)?;
        Ok(ResizeTerminalResponse::default())
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecRequest) -> ttrpc::Result<ExecResponse> {
        self.check_up()?;
        let registry = self.registry.clone();
        let pid = to_the_end(async move { registry.exec(&request).await }).await?;
        Ok(ExecResponse {
            pid: pid.unsigned_abs(),
            ..ExecResponse::default()
        })
    }

    async fn delete_exec(
        &self,
        _: &TtrpcContext,
        request: DeleteExecRequest,
    ) -> ttrpc::Result<DeleteExecResponse> {
        let container = self.container(&request.container_id)?;
        container.delete_exec(&request.exec_id)?;
        Ok(DeleteExecResponse::default())
    }

    async fn renew_volume(
        &self,
        _: &TtrpcContext,
        request: RenewVolumeRequest,
    ) -> ttrpc::Result<RenewVolumeResponse> {
        self.check_up()?;
        let volumes = self.volumes.clone();
        to_the_end(async move { volumes.renew(&request).await }).await?;
        Ok(RenewVolumeResponse::default())
    }

    async fn delete_container(
        &self,
        _: &TtrpcContext,
        request: DeleteContainerRequest,
    ) -> ttrpc::Result<DeleteContainerResponse> {
        self.check_up()?;
        let registry = self.registry.clone();
        let id = request.container_id;
        to_the_end(async move { registry.delete(&id).await }).await?;
        Ok(DeleteContainerResponse::default())
    }

    async fn pause_container(
        &self,
        _: &TtrpcContext,
        request: PauseContainerRequest,
    ) -> ttrpc::Result<PauseContainerResponse> {
        let container = self.container(&request.container_id)?;
        to_the_end(async move { container.pause().await }).await?;
        Ok(PauseContainerResponse::default())
    }

    async fn resume_container(
        &self,
        _: &TtrpcContext,
        request: ResumeContainerRequest,
    ) -> ttrpc::Result<ResumeContainerResponse> {
        let container = self.container(&request.container_id)?;
        to_the_end(async move { container.resume().await }).await?;
        Ok(ResumeContainerResponse::default())
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: UpdateContainerRequest,
    ) -> ttrpc::Result<UpdateContainerResponse> {
        let container = self.container(&request.container_id)?;
        // A limit below what is used is reclaimed first, while others are served.
        let updated = spawn_blocking(move || container.update(&request.resources)).await;
        updated.map_err(|panic| Error::internal("the agent failed", panic))??;
        Ok(UpdateContainerResponse::default())
    }

    async fn list_processes(
        &self,
        _: &TtrpcContext,
        request: ListProcessesRequest,
    ) -> ttrpc::Result<ListProcessesResponse> {
        let container = self.container(&request.container_id)?;
        let pids = container.processes()?;
        let processes = if request.details {
            self.registry.look(&container).await?
        } else {
            Vec::new()
        };
        Ok(ListProcessesResponse {
            pids,
            processes,
            ..ListProcessesResponse::default()
        })
    }

    async fn container_stats(
        &self,
        _: &TtrpcContext,
        request: ContainerStatsRequest,
    ) -> ttrpc::Result<ContainerStatsResponse> {
        Ok(self.container(&request.container_id)?.stats()?)
    }

    async fn wait_out_of_memory(
        &self,
        _: &TtrpcContext,
        request: WaitOutOfMemoryRequest,
    ) -> ttrpc::Result<WaitOutOfMemoryResponse> {
        let container = self.container(&request.container_id)?;
        Ok(WaitOutOfMemoryResponse {
            kills: container.wait_out_of_memory(request.known).await?,
            ..WaitOutOfMemoryResponse::default()
        })
    }

    async fn attach_disk(
        &self,
        _: &TtrpcContext,
        request: AttachDiskRequest,
    ) -> ttrpc::Result<AttachDiskResponse> {
        self.check_up()?;
        Ok(to_the_end(disks::attach(request.device)).await?)
    }

    async fn detach_disk(
        &self,
        _: &TtrpcContext,
        request: DetachDiskRequest,
    ) -> ttrpc::Result<DetachDiskResponse> {
        self.check_up()?;
        to_the_end(disks::detach(request.device)).await?;
        Ok(DetachDiskResponse::default())
    }

    async fn connect_port(
        &self,
        _: &TtrpcContext,
        request: ConnectPortRequest,
    ) -> ttrpc::Result<ConnectPortResponse> {
        self.check_up()?;
        let stream = self
            .streams
            .claim(request.stream)
            .await
            .map_err(Error::from)?;
        let connection = port::connect(request.port).await?;
        port::relay(stream, connection);
        Ok(ConnectPortResponse::default())
    }

    async fn set_cpus(
        &self,
        _: &TtrpcContext,
        request: SetCpusRequest,
    ) -> ttrpc::Result<SetCpusResponse> {
        self.check_up()?;
        let pod = self.pod.clone();
        to_the_end(async move { pod.set_cpus(request.cpus).await }).await?;
        Ok(SetCpusResponse::default())
    }

    async fn guest_stats(
        &self,
        _: &TtrpcContext,
        request: GuestStatsRequest,
    ) -> ttrpc::Result<GuestStatsResponse> {
        let mut response = stats::read()?;
        for id in request.container_ids {
            // One that is not there, or goes at this moment, is left out.
            if let Ok(container) = self.container(&id)
                && let Ok(stats) = container.stats()
            {
                response.containers.insert(id, stats);
            }
        }
        Ok(response)
    }

    async fn shut_down(
        &self,
        _: &TtrpcContext,
        _: ShutDownRequest,
    ) -> ttrpc::Result<ShutDownResponse> {
        self.shutting_down.store(true, Ordering::Relaxed);
        self.shut_down.notify_one();
        Ok(ShutDownResponse::default())
    }
}

/// A signal that a process may be sent: 1 to 64, real-time ones included.
fn parse_signal(number: u32) -> Result<Signal, Error> {
    const LAST: i32 = 64;
    let parsed = i32::try_from(number)
        .ok()
        .filter(|number| (1..=LAST).contains(number))
        // SAFETY: any number the kernel knows may be sent; none of those that
        // the C library reserves is raised in this process.
        .map(|number| unsafe { Signal::from_raw_unchecked(number) });
    parsed.ok_or_else(|| Error::InvalidArgument(format!("signal: {number} is not 1 to {LAST}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_1_to_64() {
        assert_eq!(parse_signal(9).unwrap(), Signal::KILL);
        assert_eq!(parse_signal(64).unwrap().as_raw(), 64);
        for number in [0, 65, u32::MAX] {
            parse_signal(number).unwrap_err();
        }
    }
}
