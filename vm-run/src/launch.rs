//! What every way to run a bundle has in common: decide all before anything is started,
//! then boot a pod for it.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nacre_image::ImageError;
use nacre_pod::assets::{Assets, MissingAsset};
use nacre_pod::boot::{self, BootConfig, BootError};
use nacre_pod::cgroup::{CgroupError, HostCgroup, Joined};
use nacre_pod::hooks::{HookError, HostHooks};
use nacre_pod::host::{
    HostError, PrivateMounts, RuntimeNamespaces, ShareError, enter_private_mounts,
};
use nacre_pod::network::{Changes, Nic};
use nacre_pod::pod::{Pod, PodError};
use nacre_pod::spec::{Bundle, BundleError};
use nacre_pod::stdio::{Stdio, TerminalSize};
use nacre_pod::timing::Timing;
use thiserror::Error;

use crate::cli::{self, NetworkArgs};
use crate::network::{self, Choice, ChoiceError, GuestNetwork, NetworkError, PodNetwork};
use crate::shape::{GivenShape, Shape};
use crate::signals::{Signals, StopSignal};
use crate::terminal::{Terminal, TerminalError};

/// Why a bundle has no exit status of its own.
#[derive(Debug, Error)]
pub(crate) enum RunError {
    #[error(transparent)]
    Asset(#[from] MissingAsset),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Choice(#[from] ChoiceError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Terminal(#[from] TerminalError),
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error(transparent)]
    Share(#[from] ShareError),
    #[error(transparent)]
    Pod(#[from] PodError),
    #[error(
        "--dns: the bundle mounts something at /etc/resolv.conf or /etc, which would hide the \
         name servers"
    )]
    ResolvConf,
    #[error("linux.cgroupsPath: cannot move there: {0}")]
    Join(io::Error),
    #[error("linux.resources.cpu.cpus: {0}")]
    Cpus(io::Error),
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error("linux.namespaces: cannot enter the pod's network namespace: {0}")]
    EnterNetwork(io::Error),
    #[error("cannot start: {0}")]
    System(#[from] io::Error),
}

impl RunError {
    /// 127 or 126 when the program of the container is what is wrong, else 1.
    pub(crate) fn status(&self) -> u8 {
        match self {
            Self::Pod(PodError::Agent(error)) => error.exec_status().unwrap_or(1),
            _ => 1,
        }
    }
}

/// What is asked for.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) dir: &'a Path,
    /// Name of the container.
    pub(crate) id: String,
    pub(crate) shape: GivenShape,
    pub(crate) network: &'a NetworkArgs,
    pub(crate) kernel: Option<&'a Path>,
    pub(crate) initramfs: Option<&'a Path>,
    /// How long the guest may take to boot.
    pub(crate) boot_timeout: Duration,
    /// Whether the guest's kernel says what it does.
    pub(crate) debug: bool,
}

/// All that is decided before anything is started.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) id: String,
    pub(crate) bundle: Bundle,
    pub(crate) stop_signal: StopSignal,
    assets: Assets,
    mounts: PrivateMounts,
    /// Where this process was started.
    host: Arc<RuntimeNamespaces>,
    shape: Shape,
    choice: Choice,
    servers: Vec<IpAddr>,
    cgroup: Option<HostCgroup>,
    boot_timeout: Duration,
    debug: bool,
}

impl Plan {
    /// Reads and checks the bundle, which `prepare` makes if need be, and opens what its pod
    /// needs of the host. The calling thread, which must be the only one, moves into a mount
    /// namespace of its own before.
    pub(crate) fn decide(
        wanted: Wanted<'_>,
        prepare: impl FnOnce() -> Result<StopSignal, RunError>,
    ) -> Result<Self, RunError> {
        let assets = Assets::find(&cli::files(wanted.kernel, wanted.initramfs))?;
        let host = Arc::new(RuntimeNamespaces::remember()?);
        let mounts = enter_private_mounts()?;
        let stop_signal = prepare()?;
        let bundle = Bundle::load(wanted.dir)?;
        let shape = Shape::choose(&wanted.shape, &bundle);
        let choice = Choice::choose(wanted.network, &bundle)?;
        let cgroup = bundle.cgroup().map(HostCgroup::create).transpose()?;
        Ok(Self {
            id: wanted.id,
            bundle,
            stop_signal,
            assets,
            mounts,
            host,
            shape,
            choice,
            servers: wanted.network.dns.clone(),
            cgroup,
            boot_timeout: wanted.boot_timeout,
            debug: wanted.debug,
        })
    }

    /// Moves this process into the pod's cgroup until the answer is dropped: to engines it
    /// is the container, whose cgroup they look for.
    pub(crate) fn join_cgroup(&self) -> Result<Option<Joined>, RunError> {
        let joined = self.cgroup.as_ref().map(HostCgroup::join).transpose();
        joined.map_err(RunError::Join)
    }

    /// Runs the hooks that are due while a container is being created, so that they find the
    /// pod's network namespace by this process, the only thread of which must be the calling
    /// one.
    pub(crate) async fn run_create_hooks(&mut self, hooks: &HostHooks) -> Result<(), RunError> {
        if !hooks.are_due_at_creation() {
            return Ok(());
        }
        let choice = std::mem::replace(&mut self.choice, Choice::None);
        self.choice = network::enter_own(choice).map_err(RunError::EnterNetwork)?;
        Ok(hooks.creating(&self.host).await?)
    }

    /// Where this process was started.
    pub(crate) fn host(&self) -> Arc<RuntimeNamespaces> {
        Arc::clone(&self.host)
    }

    /// Makes and wires the pod's network. The container sees what it says of name servers,
    /// unless the bundle says otherwise.
    pub(crate) fn attach_network(&mut self) -> Result<(PodNetwork, GuestNetwork), RunError> {
        let (network, guest) =
            PodNetwork::attach(&self.choice, &self.servers, &self.host, self.shape.vcpus)?;
        let is_seen = guest.resolv_conf.is_empty() || self.bundle.mount_resolv_conf();
        if is_seen || self.servers.is_empty() {
            Ok((network, guest))
        } else {
            Err(RunError::ResolvConf)
        }
    }

    /// Boots a pod with the bundle's files in its share, and waits until it is ready.
    pub(crate) async fn boot(
        &self,
        guest: GuestNetwork,
        timing: &mut Timing,
    ) -> Result<Pod, RunError> {
        if let Some(cpus) = self.bundle.host_cpus() {
            cpus.confine().map_err(RunError::Cpus)?;
        }
        let config = self.boot_config(guest.nics, guest.changes);
        let booting = boot::launch(config, &self.mounts)?.with_resolv_conf(guest.resolv_conf);
        // The kernel boots while the share is filled.
        let share = self.mounts.share();
        share.add(&self.id, self.bundle.rootfs(), self.bundle.shared())?;
        let pod = Pod::ready(booting, timing).await?;
        log::debug!("the guest runs Linux {}", pod.guest().kernel_release);
        Ok(pod)
    }

    fn boot_config(&self, nics: Vec<Nic>, changes: Option<Changes>) -> BootConfig<'_> {
        BootConfig {
            monitor: &self.assets.monitor,
            kernel: &self.assets.kernel,
            initramfs: &self.assets.initramfs,
            vcpus: self.shape.vcpus,
            cpus_online: self.shape.vcpus,
            memory_mib: self.shape.memory_mib,
            verbose_kernel: self.debug,
            timeout: self.boot_timeout,
            nics,
            changes,
            hostname: self.bundle.spec().hostname().clone().unwrap_or_default(),
            cgroup: self.cgroup.as_ref(),
        }
    }

    /// The standard descriptors of this process, or those of `terminal`, for the container.
    pub(crate) fn stdio(&self, terminal: Option<&Terminal>) -> Result<Stdio, RunError> {
        let size = match terminal {
            None => None,
            Some(terminal) => Some(match terminal.size()? {
                // A serial line does not know its size, nor does a terminal that is new.
                TerminalSize { columns: 0, .. } => self.bundle.terminal_size().unwrap_or_default(),
                size => size,
            }),
        };
        Ok(Stdio {
            stdin: Some(duplicate(io::stdin())?),
            stdout: Some(duplicate(io::stdout())?),
            stderr: Some(duplicate(io::stderr())?),
            terminal: size,
        })
    }

    /// What to say of a container that was killed for want of memory.
    pub(crate) fn out_of_memory(&self) -> String {
        let limit = match self.bundle.memory_limit() {
            Some(limit) => format!("the container's limit is {} MiB", limit >> 20),
            None => format!("the guest has {} MiB", self.shape.memory_mib),
        };
        format!(
            "the container ran out of memory: the guest's kernel killed a process of it ({limit})"
        )
    }
}

/// Runs the hooks that are due when all else is gone, until a signal that ends this process.
pub(crate) async fn run_last_hooks(
    hooks: &HostHooks,
    host: &Arc<RuntimeNamespaces>,
    signals: &mut Signals,
) {
    tokio::select! {
        () = hooks.deleted(Some(host)) => {}
        signal = signals.terminating() => log::warn!("signal {signal}: hooks.poststop was cut off"),
    }
}

/// A runtime of one thread, this one: the monitor ends with the thread that started it.
pub(crate) fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .build()
}

/// What a shell says of a process that `signal` ended.
pub(crate) fn status_of(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

fn duplicate(fd: impl AsFd) -> io::Result<OwnedFd> {
    fd.as_fd().try_clone_to_owned()
}
