//! `vm-run bundle`: one bundle, attached, from its request to its exit status.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use nacre_image::ImageError;
use nacre_pod::agent::{AgentError, ProcessId};
use nacre_pod::assets::{Assets, MissingAsset};
use nacre_pod::boot::{self, BootConfig, BootError};
use nacre_pod::cgroup::{CgroupError, HostCgroup};
use nacre_pod::host::{HostError, PrivateMounts, ShareError, enter_private_mounts};
use nacre_pod::network::Nic;
use nacre_pod::pod::{Pod, PodError};
use nacre_pod::process::ProcessControl;
use nacre_pod::spec::{Bundle, BundleError};
use nacre_pod::stdio::{Stdio, TerminalSize};
use nacre_pod::timing::{Moment, Timing};
use thiserror::Error;

use crate::cli::{self, BundleArgs, PodArgs};
use crate::logger;
use crate::network::{Choice, ChoiceError, GuestNetwork, HostMounts, NetworkError, PodNetwork};
use crate::shape::Shape;
use crate::signals::{Arrived, Signals, StopSignal};
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

/// Runs a bundle and says what to exit with.
pub(crate) fn run(args: &BundleArgs, request: Moment) -> Result<u8, RunError> {
    run_prepared(&args.dir, &args.pod, request, || Ok(StopSignal::default()))
}

/// Runs the bundle in `dir` once `prepare` has made it, in the mount namespace where it will be
/// looked for.
pub(crate) fn run_prepared(
    dir: &Path,
    args: &PodArgs,
    request: Moment,
    prepare: impl FnOnce() -> Result<StopSignal, RunError>,
) -> Result<u8, RunError> {
    let assets = Assets::find(&cli::files(
        args.kernel.as_deref(),
        args.initramfs.as_deref(),
    ))?;
    let host = HostMounts::remember()?;
    let mounts = enter_private_mounts()?;
    let stop_signal = prepare()?;
    let mut bundle = Bundle::load(dir)?;
    let shape = Shape::choose(args, &bundle);
    let choice = Choice::choose(&args.network, &bundle)?;
    let terminal = bundle.terminal().then(Terminal::find).transpose()?;
    let cgroup = bundle.cgroup().map(HostCgroup::create).transpose()?;
    // One thread, this one: the monitor ends with the thread that started it.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .build()?;
    // From here on, a signal does not end this process with a network half made.
    let signals = runtime.block_on(async { Signals::new(stop_signal) })?;
    let (network, guest) = PodNetwork::attach(&choice, &args.network.dns, &host)?;
    mount_resolv_conf(args, &mut bundle, &guest)?;

    let mut timing = Timing::new(request);
    let run = Run {
        args,
        assets: &assets,
        mounts: &mounts,
        bundle: &bundle,
        shape: &shape,
        terminal: terminal.as_ref(),
        cgroup: cgroup.as_ref(),
    };
    let tasks = tokio::task::LocalSet::new();
    let status = tasks.block_on(&runtime, run.attached(guest, signals, &mut timing));
    // A thread that reads a standard input without an end is not waited for.
    runtime.shutdown_background();
    if let Err(error) = network.close() {
        // The container's status is what was asked for.
        logger::say(&error.to_string());
    }
    drop(cgroup);
    timing.gone = Some(Moment::now());
    if args.timing {
        logger::print(&timing.to_string());
    }
    status
}

/// Lets the container see what the network says of name servers, unless the bundle says
/// otherwise.
fn mount_resolv_conf(
    args: &PodArgs,
    bundle: &mut Bundle,
    guest: &GuestNetwork,
) -> Result<(), RunError> {
    let is_seen = guest.resolv_conf.is_empty() || bundle.mount_resolv_conf();
    if is_seen || args.network.dns.is_empty() {
        Ok(())
    } else {
        Err(RunError::ResolvConf)
    }
}

/// All that is decided before anything is started.
struct Run<'a> {
    args: &'a PodArgs,
    assets: &'a Assets,
    mounts: &'a PrivateMounts,
    bundle: &'a Bundle,
    shape: &'a Shape,
    terminal: Option<&'a Terminal>,
    cgroup: Option<&'a HostCgroup>,
}

impl Run<'_> {
    async fn attached(
        &self,
        guest: GuestNetwork,
        mut signals: Signals,
        timing: &mut Timing,
    ) -> Result<u8, RunError> {
        let id = self.id();
        let booting = boot::launch(self.boot_config(guest.nics), self.mounts)?
            .with_resolv_conf(guest.resolv_conf);
        // The kernel boots while the share is filled.
        let binds = self.bundle.binds();
        self.mounts.share().add(
            &id,
            self.bundle.rootfs(),
            binds.iter().map(|(index, source)| (*index, source)),
        )?;
        let pod = tokio::select! {
            pod = Pod::ready(booting, timing) => pod?,
            signal = signals.terminating() => return Ok(status_of(signal)),
        };
        log::debug!("the guest runs Linux {}", pod.guest().kernel_release);
        let end = self.container(&id, &pod, &mut signals, timing).await?;
        if self.args.timing {
            pod.measure(timing).await;
        }
        // The guest writes back what it has cached of the share.
        pod.end().await;
        Ok(end)
    }

    /// Runs the container in a pod that is ready, until its output has ended.
    async fn container(
        &self,
        id: &str,
        pod: &Pod,
        signals: &mut Signals,
        timing: &mut Timing,
    ) -> Result<u8, RunError> {
        let mut container = tokio::select! {
            created = pod.create_container(id, self.bundle, self.stdio()?) => created?,
            signal = signals.terminating() => return Ok(status_of(signal)),
        };
        timing.container_created = Some(Moment::now());
        let raw = self.terminal.map(Terminal::enter_raw).transpose()?;
        pod.start(id).await?;
        let control = container.control();
        let end = tokio::select! {
            end = pod.wait(ProcessId::first_of(id)) => end?,
            // What is dropped on the way out is killed.
            signal = self.forward(signals, &control) => return Ok(status_of(signal)),
        };
        timing.container_ended = Some(Moment::now());
        tokio::select! {
            () = container.drain(timing) => {}
            // Nobody else is left to take it.
            signal = signals.terminating() => log::warn!("signal {signal}: output was cut off"),
        }
        drop(raw);
        if end.oom_killed {
            self.say_out_of_memory();
        }
        Ok(end.status)
    }

    /// Passes signals and terminal sizes on. A call that hangs holds up no other.
    /// Returns a signal by which somebody wants an end that the guest, which has
    /// not answered the one before, will not give them.
    async fn forward(&self, signals: &mut Signals, control: &ProcessControl) -> i32 {
        let unanswered = Rc::new(Cell::new(false));
        let stop_signal = signals.stop_signal();
        loop {
            let arrived = signals.next().await;
            if let (Some(signal), true) = (arrived.terminating(), unanswered.get()) {
                return signal;
            }
            let size = self.terminal.and_then(|terminal| terminal.size().ok());
            let (control, unanswered) = (control.clone(), Rc::clone(&unanswered));
            tokio::task::spawn_local(async move {
                let passed_on = match (arrived, size) {
                    (Arrived::Forward(signal), _) => {
                        control
                            .signal(stop_signal.meant(signal).unsigned_abs())
                            .await
                    }
                    (Arrived::Window, Some(size)) => control.resize(size).await,
                    (Arrived::Window, None) => Ok(()),
                };
                if let (Some(_), Err(AgentError::DeadlineExceeded(_))) =
                    (arrived.terminating(), &passed_on)
                {
                    logger::say("the guest does not answer; the next such signal ends the pod");
                    unanswered.set(true);
                } else if let Err(error) = passed_on {
                    // It has just ended, as a rule.
                    log::debug!("{arrived:?}: {error}");
                }
            });
        }
    }

    fn say_out_of_memory(&self) {
        let limit = match self.bundle.memory_limit() {
            Some(limit) => format!("the container's limit is {} MiB", limit >> 20),
            None => format!("the guest has {} MiB", self.shape.memory_mib),
        };
        logger::say(&format!(
            "the container ran out of memory: the guest's kernel killed a process of it ({limit})"
        ));
    }

    fn id(&self) -> String {
        let made_up = || format!("vm-run-{}", std::process::id());
        self.args.id.clone().unwrap_or_else(made_up)
    }

    fn boot_config(&self, nics: Vec<Nic>) -> BootConfig<'_> {
        BootConfig {
            monitor: &self.assets.monitor,
            kernel: &self.assets.kernel,
            initramfs: &self.assets.initramfs,
            vcpus: self.shape.vcpus,
            memory_mib: self.shape.memory_mib,
            verbose_kernel: self.args.debug,
            timeout: Duration::from_secs(self.args.boot_timeout.into()),
            nics,
            hostname: self.bundle.spec().hostname().clone().unwrap_or_default(),
            cgroup: self.cgroup,
        }
    }

    /// The standard descriptors of this process.
    fn stdio(&self) -> Result<Stdio, RunError> {
        let terminal = match self.terminal {
            None => None,
            Some(terminal) => Some(match terminal.size()? {
                // A serial line does not know its size.
                TerminalSize { columns: 0, .. } => self.bundle.terminal_size().unwrap_or_default(),
                size => size,
            }),
        };
        Ok(Stdio {
            stdin: Some(duplicate(io::stdin())?),
            stdout: Some(duplicate(io::stdout())?),
            stderr: Some(duplicate(io::stderr())?),
            terminal,
        })
    }
}

fn duplicate(fd: impl AsFd) -> io::Result<OwnedFd> {
    fd.as_fd().try_clone_to_owned()
}

/// What a shell says of a process that `signal` ended.
fn status_of(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}
