//! The shim's one pod: when it boots, what it is made of, and what is undone
//! when it ends.

use std::collections::HashMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use containerd_shim_protos::api::Mount;
use nacre_pod::agent::{AgentError, ContainerStats, ProcessEnd, ProcessId};
use nacre_pod::assets::{Assets, Choices, Given};
use nacre_pod::boot::{self, BootConfig, Booting};
use nacre_pod::cgroup::HostCgroup;
use nacre_pod::hooks::HostHooks;
use nacre_pod::host::{PrivateMounts, RuntimeNamespaces};
use nacre_pod::network::{Localhost, Network, Nic};
use nacre_pod::pod::Pod;
use nacre_pod::port_forward::PortForward;
use nacre_pod::process::Process;
use nacre_pod::spec::{Bundle, PodFile, Role};
use nacre_pod::status::{
    ContainerReport, Entry, InterfaceReport, PhaseReport, Report, State, TraceParent,
};
use nacre_pod::stdio::{Stdio, TerminalSize};
use nacre_pod::timing::{FirstOutput, Moment, Timing};
use tokio::sync::watch;
use ttrpc::Code;

use crate::annotations::{self, Annotations};
use crate::config::Config;
use crate::failure::Failure;
use crate::guest::{Guest, Output};
use crate::resources::Resources;
use crate::rootfs::Rootfs;
use crate::sandbox_files::SandboxFiles;
use crate::sizing::{Limits, Size};
use crate::trace;

/// How long a pod may take to end: containerd waits three seconds for Shutdown.
const FAREWELL: Duration = Duration::from_millis(2500);

/// How long the guest may take to say what it uses.
const ANSWER: Duration = Duration::from_secs(2);

/// Why a list of CPUs is refused.
const HOST_CPUS: &str = "linux.resources.cpu.cpus: names CPUs of the host, to which a pod under \
                         containerd is not confined";

/// Why hooks that look for the container's network are refused.
const NO_NETWORK: &str = "hooks: prestart and createRuntime would find a network namespace that is \
                          not the pod's: give it one in linux.namespaces";

/// Refuses what means nothing to a pod under containerd, though it does to one of `vm-run`.
fn refuse(bundle: &Bundle) -> Result<(), Failure> {
    if bundle.host_cpus().is_some() {
        return Err(Failure::invalid_argument(HOST_CPUS.to_owned()));
    }
    let hooks = bundle.hooks();
    let due = [hooks.prestart(), hooks.create_runtime()];
    if bundle.network_namespace().is_none()
        && due.into_iter().flatten().any(|list| !list.is_empty())
    {
        return Err(Failure::invalid_argument(NO_NETWORK.to_owned()));
    }
    Ok(())
}

/// What a pod is made of, whoever says it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Setup {
    /// They tell its size.
    pub(crate) annotations: Annotations,
    /// Its size where the annotations are silent.
    pub(crate) limits: Limits,
    /// The network namespace to take the place of.
    pub(crate) network: Option<PathBuf>,
    /// The cgroup of the host to account for it in.
    pub(crate) cgroup: Option<PathBuf>,
    pub(crate) hostname: String,
    /// Files for all of its containers, besides the one with its name.
    pub(crate) files: Option<SandboxFiles>,
    /// Kernel parameters of it, by their names.
    pub(crate) sysctls: HashMap<String, String>,
}

impl Setup {
    /// The pod of which `bundle` holds the first container.
    fn of(bundle: &Bundle, role: Role, annotations: Annotations) -> Self {
        let hostname = bundle.spec().hostname().clone();
        Self {
            annotations,
            // A sandbox's own container is only there to hold the pod.
            limits: match role {
                Role::Alone => Limits::of_container(bundle),
                Role::Sandbox | Role::Member => Limits::default(),
            },
            network: bundle.network_namespace().map(Path::to_owned),
            cgroup: bundle.cgroup().map(Path::to_owned),
            hostname: hostname.unwrap_or_default(),
            // Whoever makes a sandbox's own container gives each other one these.
            files: None,
            sysctls: HashMap::new(),
        }
    }

    /// Its files that containers are to have mounted.
    fn pod_files(&self) -> Vec<PodFile> {
        let files = self.files.as_ref();
        files.map_or_else(Vec::new, |files| files.list(&self.hostname))
    }
}

/// A pod that runs, with what belongs to it on the host.
#[derive(Debug)]
struct Running {
    pod: Pod,
    /// Becomes true when it is no more.
    gone: watch::Receiver<bool>,
    host: Mutex<Option<HostParts>>,
    resources: Resources,
    /// To be mounted into each container.
    files: Vec<PodFile>,
}

/// What is undone on the host after the monitor's end, in this order.
#[derive(Debug)]
struct HostParts {
    ports: Option<PortForward>,
    network: Option<Network>,
    _cgroup: Option<HostCgroup>,
}

impl HostParts {
    /// The localhost of the pod's network namespace; a pod without one is a pod all the same.
    fn localhost(&self) -> Option<Localhost> {
        let localhost = self.network.as_ref()?.localhost();
        localhost.map_err(|error| no_port_forward(&error)).ok()
    }
}

fn no_port_forward(error: &dyn Error) {
    log::warn!("port-forward will not work for this pod: {error}");
}

impl Start {
    fn add_to(&self, report: &mut Report) {
        let since = self.at.duration_since(UNIX_EPOCH);
        report.started_at = since.ok().map(|since| since.as_secs_f64());
        report.trace_parent = self.trace_parent;
        report.vcpus = self.size.vcpus;
        report.memory = self.size.memory_mib << 20;
        let timing = Timing {
            first_output: self.first_output.at(),
            ..self.timing
        };
        let mut before = Duration::ZERO;
        for (name, at) in timing.phases() {
            report.phases.push(PhaseReport {
                name: name.to_owned(),
                seconds: at.saturating_sub(before).as_secs_f64(),
            });
            before = at;
        }
    }
}

impl Running {
    /// Adds what the machine and the guest say, each of which may be silent.
    async fn add_to(&self, report: &mut Report) {
        report.add_process("monitor", self.pod.monitor_pid());
        let (machine, guest, interfaces) = tokio::join!(
            self.pod.machine_usage(),
            tokio::time::timeout(ANSWER, self.pod.guest_stats(report.not_stopped())),
            self.pod.interfaces(),
        );
        report.exits = machine.map(|machine| machine.exits);
        report.memory_resident = machine.map(|machine| machine.memory_resident);
        report.interfaces = interfaces;
        if let Ok(Ok(guest)) = guest {
            report.add_guest(&guest);
        }
    }

    /// Lets the guest's localhost be reached by way of `localhost` for as long as the pod runs.
    fn forward_ports(self: &Arc<Self>, localhost: Localhost) {
        let pod = Arc::downgrade(self);
        let connect = move |port| {
            let pod = pod.clone();
            async move {
                match pod.upgrade() {
                    Some(running) => running.pod.connect_port(port).await,
                    None => Err(AgentError::Unavailable("the pod has ended".into()).into()),
                }
            }
        };
        match (
            PortForward::start(localhost, connect),
            lock(&self.host).as_mut(),
        ) {
            (Ok(ports), Some(host)) => host.ports = Some(ports),
            (Err(error), _) => no_port_forward(&error),
            (Ok(_), None) => {}
        }
    }
}

/// What is kept of a container until it is deleted.
#[derive(Debug)]
struct Kept {
    _root: Rootfs,
    hooks: HostHooks,
}

/// The shim's pod.
#[derive(Debug)]
pub(crate) struct PodGuest {
    mounts: PrivateMounts,
    /// Where this process was started.
    host: Arc<RuntimeNamespaces>,
    config: Config,
    /// By which operators find the pod.
    entry: Option<Arc<Entry>>,
    running: Mutex<Option<Arc<Running>>>,
    /// Of the last start that succeeded.
    started: Mutex<Option<Start>>,
    /// Held while the pod boots.
    booting: tokio::sync::Mutex<()>,
    containers: Mutex<HashMap<String, Kept>>,
}

/// What a pod was started as, and how that went.
#[derive(Clone, Debug)]
struct Start {
    at: SystemTime,
    trace_parent: Option<TraceParent>,
    timing: Timing,
    /// Of the pod's first container, once there is one.
    first_output: FirstOutput,
    size: Size,
}

impl Start {
    /// A container that was requested at a moment has been created. What counts is the first.
    fn has_created(&mut self, requested: Moment, output: FirstOutput) {
        let timing = &mut self.timing;
        if timing.container_created.is_some() {
            return;
        }
        // One that the pod was booted for waited for the boot.
        timing.container_requested = Some(requested).filter(|at| Some(*at) > timing.agent_ready);
        timing.container_created = Some(Moment::now());
        self.first_output = output;
    }
}

impl PodGuest {
    /// A pod that is not there yet. `mounts` is the namespace of this process, which was
    /// started in `host`.
    pub(crate) fn new(
        mounts: PrivateMounts,
        host: Arc<RuntimeNamespaces>,
        config: Config,
        entry: Option<Arc<Entry>>,
    ) -> Self {
        Self {
            mounts,
            host,
            config,
            entry,
            running: Mutex::new(None),
            started: Mutex::new(None),
            booting: tokio::sync::Mutex::new(()),
            containers: Mutex::default(),
        }
    }

    fn running(&self) -> Result<Arc<Running>, Failure> {
        lock(&self.running)
            .clone()
            .ok_or_else(|| Failure::failed_precondition("the pod does not run"))
    }

    /// Starts the monitor, fills the share with `fill` while the kernel boots,
    /// and waits for the agent.
    async fn boot_with(
        &self,
        setup: Setup,
        fill: impl FnOnce() -> Result<(), Failure> + Send,
    ) -> Result<Arc<Running>, Failure> {
        let (at, mut timing) = (SystemTime::now(), Timing::new(Moment::now()));
        let size = Size::choose(&self.config, &setup.annotations, setup.limits)?;
        self.introduce(&setup.annotations);
        let files = setup.pod_files();
        let (booting, host) = self.launch(setup, size)?;
        let localhost = host.localhost();
        fill()?;
        let pod = Pod::ready(booting, &mut timing).await?;
        log::info!(
            "pod booted, monitor {}, Linux {}: {}",
            pod.monitor_pid(),
            pod.guest().kernel_release,
            phases(&timing)
        );
        let (sender, gone) = watch::channel(false);
        let running = Arc::new(Running {
            pod,
            gone,
            host: Mutex::new(Some(host)),
            resources: Resources::new(size),
            files,
        });
        if let Some(localhost) = localhost {
            running.forward_ports(localhost);
        }
        *lock(&self.started) = Some(Start {
            at,
            trace_parent: trace::parent(),
            timing,
            first_output: FirstOutput::default(),
            size,
        });
        *lock(&self.running) = Some(running.clone());
        tokio::spawn(watch_over(running.clone(), sender));
        Ok(running)
    }

    /// Tells operators by which name Kubernetes knows the pod.
    fn introduce(&self, annotations: &Annotations) {
        let Some(entry) = &self.entry else { return };
        let told = |name| {
            let text: Option<&String> = annotations.get(name);
            text.filter(|text| !text.is_empty()).cloned()
        };
        let learned = entry.learn(|identity| {
            identity.name = told(annotations::SANDBOX_NAME);
            identity.namespace = told(annotations::SANDBOX_NAMESPACE);
            identity.uid = told(annotations::SANDBOX_UID);
        });
        if let Err(error) = learned {
            log::warn!("operators do not see the pod's name: {error}");
        }
    }

    fn launch(&self, setup: Setup, size: Size) -> Result<(Booting, HostParts), Failure> {
        let assets = self.assets()?;
        let cgroup = setup
            .cgroup
            .as_deref()
            .map(HostCgroup::create)
            .transpose()?;
        let (network, nics) = attach(setup.network.as_deref(), size.cpus_online)?;
        let config = BootConfig {
            monitor: &assets.monitor,
            kernel: &assets.kernel,
            initramfs: &assets.initramfs,
            vcpus: size.vcpus,
            cpus_online: size.cpus_online,
            memory_mib: size.memory_mib,
            verbose_kernel: log::log_enabled!(log::Level::Debug),
            timeout: Duration::from_secs(self.config.boot_timeout_secs.into()),
            nics,
            changes: network.as_ref().map(Network::changes),
            hostname: setup.hostname,
            cgroup: cgroup.as_ref(),
        };
        let files = setup.files.unwrap_or_default();
        let booting = boot::launch(config, &self.mounts)?
            .with_resolv_conf(files.resolv_conf)
            .with_hosts(files.hosts)
            .with_sysctls(setup.sysctls);
        let host = HostParts {
            ports: None,
            network,
            _cgroup: cgroup,
        };
        Ok((booting, host))
    }

    fn assets(&self) -> Result<Assets, Failure> {
        fn given<'a>(path: Option<&'a PathBuf>, by: &'static str) -> Given<'a> {
            Given {
                path: path.map(PathBuf::as_path),
                by: Some(by),
            }
        }
        Ok(Assets::find(&Choices {
            monitor: given(self.config.monitor.as_ref(), "monitor in nacre.toml"),
            kernel: given(self.config.kernel.as_ref(), "kernel in nacre.toml"),
            initramfs: given(self.config.initramfs.as_ref(), "initramfs in nacre.toml"),
        })?)
    }

    fn share(&self, id: &str, bundle: &Bundle) -> Result<(), Failure> {
        let share = self.mounts.share();
        Ok(share.add(id, bundle.rootfs(), bundle.shared())?)
    }

    /// The pod for a container, with the container's files in its share. `true`:
    /// it was booted for it.
    async fn pod_for(
        &self,
        id: &str,
        bundle: &Bundle,
        role: Role,
        annotations: Annotations,
    ) -> Result<(Arc<Running>, bool), Failure> {
        // Only one boots it; the others find it booted.
        let _booting = self.booting.lock().await;
        let running = lock(&self.running).clone();
        match (running, role) {
            (Some(running), _) => {
                self.share(id, bundle)?;
                Ok((running, false))
            }
            (None, Role::Member) => Err(Failure::failed_precondition(
                "the pod of this container does not run",
            )),
            (None, Role::Alone | Role::Sandbox) => {
                let setup = Setup::of(bundle, role, annotations);
                let fill = || self.share(id, bundle);
                match self.boot_with(setup, fill).await {
                    Ok(running) => Ok((running, true)),
                    Err(failure) => {
                        self.mounts.share().remove(id);
                        Err(failure)
                    }
                }
            }
        }
    }
}

/// Mounts a container's root and opens all that it wants to see of the host. A file system may take
/// its time for that, and holds up nobody else.
async fn open(dir: &Path, rootfs: &[Mount], role: Role) -> Result<(Rootfs, Bundle), Failure> {
    let (dir, rootfs) = (dir.to_owned(), rootfs.to_vec());
    let opened = tokio::task::spawn_blocking(move || {
        let root = Rootfs::mount(&dir, &rootfs)?;
        Ok((root, Bundle::load_as(&dir, role)?))
    });
    opened
        .await
        .unwrap_or_else(|error| Err(Failure::internal(error.to_string())))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves nothing half-changed here.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn attach(namespace: Option<&Path>, vcpus: u8) -> Result<(Option<Network>, Vec<Nic>), Failure> {
    match namespace {
        None => Ok((None, Vec::new())),
        Some(path) => {
            let (network, nics) = Network::attach(path, vcpus)?;
            Ok((Some(network), nics))
        }
    }
}

/// Each phase of the boot with its end, in milliseconds from the request.
fn phases(timing: &Timing) -> String {
    let phases: Vec<_> = timing
        .phases()
        .into_iter()
        .map(|(name, at)| format!("{name} {:.1} ms", at.as_secs_f64() * 1e3))
        .collect();
    phases.join(", ")
}

async fn watch_over(running: Arc<Running>, gone: watch::Sender<bool>) {
    let diagnosis = running.pod.lost().await;
    // Who ends it takes the host's parts first.
    if lock(&running.host).take().is_some() {
        log::error!("the pod is lost: {diagnosis}");
    }
    gone.send_replace(true);
}

#[async_trait]
impl Output for Process {
    fn pid(&self) -> u32 {
        Self::pid(self)
    }

    async fn drain(&mut self) {
        Self::drain(self, &mut Timing::new(Moment::now())).await;
    }
}

#[async_trait]
impl Guest for PodGuest {
    async fn boot(&self, setup: Setup) -> Result<(), Failure> {
        let _booting = self.booting.lock().await;
        if lock(&self.running).is_some() {
            return Err(Failure::already_exists("the pod runs already"));
        }
        self.boot_with(setup, || Ok(())).await.map(drop)
    }

    fn pid(&self) -> u32 {
        self.running()
            .map_or(0, |running| running.pod.monitor_pid())
    }

    async fn gone(&self) {
        if let Ok(running) = self.running() {
            // An error means that nobody watches any more: it is gone.
            let _ = running.gone.clone().wait_for(|gone| *gone).await;
        }
    }

    async fn end(&self) {
        let _booting = self.booting.lock().await;
        let Some(running) = lock(&self.running).take() else {
            return;
        };
        // Until it has ended, so that nothing of the host goes before the monitor.
        let host = lock(&running.host).take();
        if tokio::time::timeout(FAREWELL, running.pod.end())
            .await
            .is_err()
        {
            running.pod.kill().await;
        }
        drop(host);
        let kept: Vec<_> = lock(&self.containers).drain().collect();
        for (_, container) in kept {
            container.hooks.deleted(Some(&self.host)).await;
        }
    }

    async fn kill(&self) {
        if let Ok(running) = self.running() {
            running.pod.kill().await;
        }
    }

    async fn create(
        &self,
        id: &str,
        bundle: &Path,
        rootfs: &[Mount],
        mut stdio: Stdio,
    ) -> Result<Box<dyn Output>, Failure> {
        let requested = Moment::now();
        let annotations = annotations::read(bundle)
            .map_err(|error| Failure::invalid_argument(error.to_string()))?;
        let role = match annotations::role(&annotations) {
            // Who comes into a pod that runs is not alone.
            Role::Alone if lock(&self.running).is_some() => Role::Member,
            role => role,
        };
        let dir = bundle;
        let (root, mut bundle) = open(dir, rootfs, role).await?;
        refuse(&bundle)?;
        if let (Some(size), Some(wanted)) = (stdio.terminal.as_mut(), bundle.terminal_size()) {
            *size = wanted;
        }
        if let Some(running) = &*lock(&self.running) {
            bundle.mount_pod_files(&running.files);
        }
        let (running, booted) = self.pod_for(id, &bundle, role, annotations).await?;
        let hooks = HostHooks::new(
            bundle.hooks(),
            id,
            running.pod.monitor_pid(),
            dir,
            bundle.spec().annotations().clone().unwrap_or_default(),
        );
        let create = async {
            hooks.creating(&self.host).await?;
            let Running { pod, resources, .. } = &*running;
            resources.admit(pod, id, bundle.allowance()).await?;
            Ok::<_, Failure>(pod.create_container(id, &bundle, stdio).await?)
        };
        match create.await {
            Ok(process) => {
                let kept = Kept { _root: root, hooks };
                lock(&self.containers).insert(id.to_owned(), kept);
                if let (Some(start), true) = (&mut *lock(&self.started), role != Role::Sandbox) {
                    start.has_created(requested, process.first_output());
                }
                Ok(Box::new(process))
            }
            Err(failure) => {
                running.resources.leave(id);
                self.mounts.share().remove(id);
                if booted {
                    self.end().await;
                }
                hooks.deleted(Some(&self.host)).await;
                Err(failure)
            }
        }
    }

    async fn start(&self, id: &str) -> Result<(), Failure> {
        let pod = &self.running()?.pod;
        pod.start(id).await?;
        let hooks = lock(&self.containers)
            .get(id)
            .map(|kept| kept.hooks.clone());
        let Some(hooks) = hooks else { return Ok(()) };
        if let Err(error) = hooks.started(Some(&self.host)).await {
            let process = ProcessId::first_of(id);
            if let Err(left) = pod
                .signal(process, libc::SIGKILL.unsigned_abs(), true)
                .await
            {
                log::warn!("{id}: {left}");
            }
            return Err(error.into());
        }
        Ok(())
    }

    async fn exec(
        &self,
        process: ProcessId<'_>,
        spec: &[u8],
        stdio: Stdio,
    ) -> Result<Box<dyn Output>, Failure> {
        let running = self.running()?;
        Ok(Box::new(running.pod.exec(process, spec, stdio).await?))
    }

    async fn wait(&self, process: ProcessId<'_>) -> Result<ProcessEnd, Failure> {
        Ok(self.running()?.pod.wait(process).await?)
    }

    async fn wait_out_of_memory(&self, id: &str, known: u64) -> Result<u64, Failure> {
        Ok(self.running()?.pod.wait_out_of_memory(id, known).await?)
    }

    async fn signal(&self, process: ProcessId<'_>, signal: u32, all: bool) -> Result<(), Failure> {
        Ok(self.running()?.pod.signal(process, signal, all).await?)
    }

    async fn resize(&self, process: ProcessId<'_>, size: TerminalSize) -> Result<(), Failure> {
        Ok(self.running()?.pod.resize(process, size).await?)
    }

    async fn pause(&self, id: &str) -> Result<(), Failure> {
        Ok(self.running()?.pod.pause(id).await?)
    }

    async fn resume(&self, id: &str) -> Result<(), Failure> {
        Ok(self.running()?.pod.resume(id).await?)
    }

    async fn update(&self, id: &str, resources: &[u8]) -> Result<(), Failure> {
        let running = self.running()?;
        running.resources.update(&running.pod, id, resources).await
    }

    async fn processes(&self, id: &str) -> Result<Vec<u32>, Failure> {
        Ok(self.running()?.pod.process_numbers(id).await?)
    }

    async fn stats(&self, id: &str) -> Result<ContainerStats, Failure> {
        Ok(self.running()?.pod.stats(id).await?)
    }

    async fn interfaces(&self) -> Vec<InterfaceReport> {
        match self.running() {
            Ok(running) => running.pod.interfaces().await,
            Err(_) => Vec::new(),
        }
    }

    async fn report(&self, containers: Vec<ContainerReport>) -> Report {
        let mut report = Report {
            containers,
            ..Report::default()
        };
        if let Some(entry) = &self.entry {
            report.identity = entry.identity();
        }
        report.add_process("shim", std::process::id());
        let Some(start) = lock(&self.started).clone() else {
            return report;
        };
        start.add_to(&mut report);
        report.state = State::Stopped;
        if let Ok(running) = self.running()
            && !*running.gone.borrow()
        {
            report.state = State::Running;
            running.add_to(&mut report).await;
        }
        report
    }

    async fn console(&self) -> Result<String, Failure> {
        let console = self.running()?.pod.console().await;
        console.ok_or_else(|| Failure::unavailable("the pod's monitor does not answer"))
    }

    fn monitor_log(&self) -> String {
        let running = self.running();
        running.map_or_else(|_| String::new(), |running| running.pod.monitor_log())
    }

    async fn delete(&self, id: &str) -> Result<(), Failure> {
        if let Ok(running) = self.running()
            && !*running.gone.borrow()
        {
            match running
                .pod
                .delete_container(id)
                .await
                .map_err(Failure::from)
            {
                Err(failure) if failure.code != Code::NOT_FOUND => return Err(failure),
                _ => running.resources.leave(id),
            }
        }
        self.mounts.share().remove(id);
        let kept = lock(&self.containers).remove(id);
        if let Some(Kept { _root: root, hooks }) = kept {
            drop(root);
            hooks.deleted(Some(&self.host)).await;
        }
        Ok(())
    }

    async fn delete_exec(&self, process: ProcessId<'_>) -> Result<(), Failure> {
        let running = self.running()?;
        if *running.gone.borrow() {
            return Ok(());
        }
        Ok(running.pod.delete_exec(process).await?)
    }
}
