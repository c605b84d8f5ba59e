//! `vm-run bundle`: one bundle, attached, from its request to its exit status.

use std::path::Path;
use std::time::Duration;

use nacre_pod::agent::ProcessId;
use nacre_pod::hooks::HostHooks;
use nacre_pod::pod::Pod;
use nacre_pod::timing::{Moment, Timing};
use tokio::runtime::Runtime;

use crate::cli::{BundleArgs, PodArgs};
use crate::forward::forward;
use crate::launch::{self, Plan, RunError, Wanted, status_of};
use crate::logger;
use crate::network::GuestNetwork;
use crate::shape::GivenShape;
use crate::signals::{Signals, StopSignal};
use crate::terminal::Terminal;

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
    let plan = Plan::decide(wanted(dir, args), prepare)?;
    let runtime = launch::runtime()?;
    // From here on, a signal does not end this process with a network half made.
    let mut signals = runtime.block_on(async { Signals::new(plan.stop_signal) })?;
    let mut timing = Timing::new(request);
    let (host, hooks) = (plan.host(), hooks_of(&plan, dir)?);
    let status = run_planned(plan, &runtime, args, &hooks, &mut signals, &mut timing);
    runtime.block_on(launch::run_last_hooks(&hooks, &host, &mut signals));
    // A thread that reads a standard input without an end is not waited for.
    runtime.shutdown_background();
    timing.gone = Some(Moment::now());
    if args.timing {
        logger::print(&timing.to_string());
    }
    status
}

/// Runs what was decided. When it returns, nothing of the pod is left.
fn run_planned(
    mut plan: Plan,
    runtime: &Runtime,
    args: &PodArgs,
    hooks: &HostHooks,
    signals: &mut Signals,
    timing: &mut Timing,
) -> Result<u8, RunError> {
    let terminal = plan.bundle.terminal().then(Terminal::find).transpose()?;
    let interrupted = runtime.block_on(async {
        tokio::select! {
            ran = plan.run_create_hooks(hooks) => ran.map(|()| None),
            signal = signals.terminating() => Ok(Some(status_of(signal))),
        }
    })?;
    if let Some(status) = interrupted {
        return Ok(status);
    }
    let (network, guest) = plan.attach_network()?;
    let run = Run {
        args,
        plan: &plan,
        hooks,
        terminal: terminal.as_ref(),
    };
    let tasks = tokio::task::LocalSet::new();
    let status = tasks.block_on(runtime, run.attached(guest, signals, timing));
    if let Err(error) = network.close() {
        // The container's status is what was asked for.
        logger::say(&error.to_string());
    }
    status
}

fn hooks_of(plan: &Plan, dir: &Path) -> Result<HostHooks, RunError> {
    let annotations = plan.bundle.spec().annotations().clone().unwrap_or_default();
    let dir = std::path::absolute(dir)?;
    let pid = std::process::id();
    Ok(HostHooks::new(
        plan.bundle.hooks(),
        &plan.id,
        pid,
        &dir,
        annotations,
    ))
}

fn wanted<'a>(dir: &'a Path, args: &'a PodArgs) -> Wanted<'a> {
    let made_up = || format!("vm-run-{}", std::process::id());
    Wanted {
        dir,
        id: args.id.clone().unwrap_or_else(made_up),
        shape: GivenShape {
            memory: args.memory,
            vcpus: args.cpus,
        },
        network: &args.network,
        kernel: args.kernel.as_deref(),
        initramfs: args.initramfs.as_deref(),
        boot_timeout: Duration::from_secs(args.boot_timeout.into()),
        debug: args.debug,
    }
}

/// All that is decided before anything is started.
struct Run<'a> {
    args: &'a PodArgs,
    plan: &'a Plan,
    hooks: &'a HostHooks,
    terminal: Option<&'a Terminal>,
}

impl Run<'_> {
    async fn attached(
        &self,
        guest: GuestNetwork,
        signals: &mut Signals,
        timing: &mut Timing,
    ) -> Result<u8, RunError> {
        let pod = tokio::select! {
            pod = self.plan.boot(guest, timing) => pod?,
            signal = signals.terminating() => return Ok(status_of(signal)),
        };
        let end = self.container(&pod, signals, timing).await?;
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
        pod: &Pod,
        signals: &mut Signals,
        timing: &mut Timing,
    ) -> Result<u8, RunError> {
        let id = &self.plan.id;
        let stdio = self.plan.stdio(self.terminal)?;
        let mut container = tokio::select! {
            created = pod.create_container(id, &self.plan.bundle, stdio) => created?,
            signal = signals.terminating() => return Ok(status_of(signal)),
        };
        timing.container_created = Some(Moment::now());
        let raw = self.terminal.map(Terminal::enter_raw).transpose()?;
        let host = self.plan.host();
        let start = async {
            pod.start(id).await?;
            Ok::<_, RunError>(self.hooks.started(Some(&host)).await?)
        };
        tokio::select! {
            started = start => started?,
            signal = signals.terminating() => return Ok(status_of(signal)),
        }
        let control = container.control();
        let end = tokio::select! {
            end = pod.wait(ProcessId::first_of(id)) => end?,
            // What is dropped on the way out is killed.
            signal = forward(signals, &control, self.terminal) => return Ok(status_of(signal)),
        };
        timing.container_ended = Some(Moment::now());
        tokio::select! {
            () = container.drain(timing) => {}
            // Nobody else is left to take it.
            signal = signals.terminating() => log::warn!("signal {signal}: output was cut off"),
        }
        drop(raw);
        if end.oom_killed {
            logger::say(&self.plan.out_of_memory());
        }
        Ok(end.status)
    }
}
