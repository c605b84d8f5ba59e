//! The shim's one pod: when it boots, what it is made of, and what is undone
//! when it ends.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use containerd_shim_protos::api::Mount;
use nacre_pod::agent::{ContainerStats, ProcessEnd, ProcessId};
use nacre_pod::assets::{Assets, Choices, Given};
use nacre_pod::boot::{self, BootConfig, Booting};
use nacre_pod::cgroup::HostCgroup;
use nacre_pod::host::PrivateMounts;
use nacre_pod::network::{Network, Nic};
use nacre_pod::pod::Pod;
use nacre_pod::process::Process;
use nacre_pod::spec::{Bundle, Role};
use nacre_pod::stdio::{Stdio, TerminalSize};
use nacre_pod::timing::{Moment, Timing};
use tokio::sync::watch;

use crate::annotations::{self, Annotations};
use crate::config::Config;
use crate::failure::Failure;
use crate::guest::{Guest, Output};
use crate::rootfs::Rootfs;
use crate::sizing::{Limits, Size};

/// How long a pod may take to end: containerd waits three seconds for Shutdown.
const FAREWELL: Duration = Duration::from_millis(2500);

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
        }
    }
}

/// A pod that runs, with what belongs to it on the host.
#[derive(Debug)]
struct Running {
    pod: Pod,
    /// Becomes true when it is no more.
    gone: watch::Receiver<bool>,
    host: Mutex<Option<HostParts>>,
}

/// What is undone on the host after the monitor's end, in this order.
#[derive(Debug)]
struct HostParts {
    _network: Option<Network>,
    _cgroup: Option<HostCgroup>,
}

/// The shim's pod.
#[derive(Debug)]
pub(crate) struct PodGuest {
    mounts: PrivateMounts,
    config: Config,
    running: Mutex<Option<Arc<Running>>>,
    /// Held while the pod boots.
    booting: tokio::sync::Mutex<()>,
    roots: Mutex<HashMap<String, Rootfs>>,
}

impl PodGuest {
    /// A pod that is not there yet. `mounts` is the namespace of this process.
    pub(crate) fn new(mounts: PrivateMounts, config: Config) -> Self {
        Self {
            mounts,
            config,
            running: Mutex::new(None),
            booting: tokio::sync::Mutex::new(()),
            roots: Mutex::default(),
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
        let mut timing = Timing::new(Moment::now());
        let (booting, host) = self.launch(setup)?;
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
        });
        *lock(&self.running) = Some(running.clone());
        tokio::spawn(watch_over(running.clone(), sender));
        Ok(running)
    }

    fn launch(&self, setup: Setup) -> Result<(Booting, HostParts), Failure> {
        let assets = self.assets()?;
        let size = Size::choose(&self.config, &setup.annotations, setup.limits)?;
        let cgroup = setup
            .cgroup
            .as_deref()
            .map(HostCgroup::create)
            .transpose()?;
        let (network, nics) = attach(setup.network.as_deref())?;
        let config = BootConfig {
            monitor: &assets.monitor,
            kernel: &assets.kernel,
            initramfs: &assets.initramfs,
            vcpus: size.vcpus,
            memory_mib: size.memory_mib,
            verbose_kernel: log::log_enabled!(log::Level::Debug),
            timeout: Duration::from_secs(self.config.boot_timeout_secs.into()),
            nics,
            hostname: setup.hostname,
            cgroup: cgroup.as_ref(),
        };
        let booting = boot::launch(config, &self.mounts)?;
        let host = HostParts {
            _network: network,
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
        let binds = bundle.binds();
        let binds = binds.iter().map(|(index, source)| (*index, source));
        Ok(self.mounts.share().add(id, bundle.rootfs(), binds)?)
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves nothing half-changed here.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn attach(namespace: Option<&Path>) -> Result<(Option<Network>, Vec<Nic>), Failure> {
    match namespace {
        None => Ok((None, Vec::new())),
        Some(path) => {
            let (network, nics) = Network::attach(path)?;
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
        lock(&self.roots).clear();
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
        let annotations = annotations::read(bundle)
            .map_err(|error| Failure::invalid_argument(error.to_string()))?;
        let role = match annotations::role(&annotations) {
            // Who comes into a pod that runs is not alone.
            Role::Alone if lock(&self.running).is_some() => Role::Member,
            role => role,
        };
        let root = Rootfs::mount(bundle, rootfs)?;
        let bundle = Bundle::load_as(bundle, role)?;
        if let (Some(size), Some(wanted)) = (stdio.terminal.as_mut(), bundle.terminal_size()) {
            *size = wanted;
        }
        let (running, booted) = self.pod_for(id, &bundle, role, annotations).await?;
        match running.pod.create_container(id, &bundle, stdio).await {
            Ok(process) => {
                lock(&self.roots).insert(id.to_owned(), root);
                Ok(Box::new(process))
            }
            Err(error) => {
                self.mounts.share().remove(id);
                if booted {
                    self.end().await;
                }
                Err(error.into())
            }
        }
    }

    async fn start(&self, id: &str) -> Result<(), Failure> {
        Ok(self.running()?.pod.start(id).await?)
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
        Ok(self.running()?.pod.update(id, resources).await?)
    }

    async fn processes(&self, id: &str) -> Result<Vec<u32>, Failure> {
        Ok(self.running()?.pod.processes(id).await?)
    }

    async fn stats(&self, id: &str) -> Result<ContainerStats, Failure> {
        Ok(self.running()?.pod.stats(id).await?)
    }

    async fn delete(&self, id: &str) -> Result<(), Failure> {
        if let Ok(running) = self.running()
            && !*running.gone.borrow()
        {
            running.pod.delete_container(id).await?;
        }
        self.mounts.share().remove(id);
        lock(&self.roots).remove(id);
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
