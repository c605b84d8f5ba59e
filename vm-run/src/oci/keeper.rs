//! The process that keeps a container: it boots the pod, answers verbs on the control
//! socket, lives exactly as long as the container, and exits with its status. Its
//! identifier is the one that is reported as the container's.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use nacre_pod::agent::ProcessId;
use nacre_pod::pod::Pod;
use nacre_pod::process::Process;
use nacre_pod::timing::{Moment, Timing};
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::task::{JoinSet, LocalSet};

use super::channel::Caller;
use super::console;
use super::error::OciError;
use super::life::Life;
use super::serve::{Service, accept};
use super::state::{Home, Record, Root, Status};
use crate::cli::NetworkArgs;
use crate::forward::forward;
use crate::launch::{self, Plan, Wanted, status_of};
use crate::network::GuestNetwork;
use crate::shape::GivenShape;
use crate::signals::{Signals, StopSignal};
use crate::terminal::Terminal;

/// How long the guest may take to boot.
const BOOT_TIMEOUT: Duration = Duration::from_secs(120);

/// How long callers whose container has ended may take to hear it.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// A container to be kept.
#[derive(Debug)]
pub(crate) struct Keeper {
    pub(crate) root: Root,
    pub(crate) id: String,
    /// Absolute.
    pub(crate) bundle: PathBuf,
    /// Whether the guest's kernel says what it does.
    pub(crate) debug: bool,
    pub(crate) mode: Mode,
}

/// How the container comes to its terminal, its start, and its removal.
#[derive(Debug)]
pub(crate) enum Mode {
    /// In the process that was called: starts at once, and is deleted at its end.
    Attached {
        pid_file: Option<PathBuf>,
        /// The state stays.
        keep: bool,
    },
    /// In a process of its own, until somebody deletes it.
    Detached {
        caller: Caller,
        console_socket: Option<PathBuf>,
    },
}

/// The state of a container that is being made. Dropping it removes the state.
#[derive(Debug)]
struct Reservation(Option<Rc<Home>>);

impl Reservation {
    /// Leaves the state to whoever deletes the container.
    fn keep(&mut self) {
        self.0 = None;
    }

    fn is_kept(&self) -> bool {
        self.0.is_none()
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.take().map(|home| home.remove()) {
            log::warn!("state: {error}");
        }
    }
}

/// A container in its pod.
struct Made {
    pod: Pod,
    process: Process,
}

impl Keeper {
    /// Makes the container, keeps it until its end, and says with what to exit.
    ///
    /// The calling thread must be the only one of its process.
    pub(crate) fn keep(mut self) -> Result<u8, OciError> {
        let mut record = self.first_record()?;
        let home = Rc::new(self.root.reserve(&record)?);
        let mut reservation = Reservation(Some(Rc::clone(&home)));
        let network = NetworkArgs::default();
        let plan = Plan::decide(self.wanted(&network), || Ok(StopSignal::default()))?;
        record.describe(&plan);
        let runtime = launch::runtime().map_err(OciError::system("cannot start"))?;
        let mut signals = runtime
            .block_on(async { Signals::new(StopSignal::default()) })
            .map_err(OciError::system("cannot take over signals"))?;
        let (host, hooks) = (plan.host(), record.host_hooks());
        let status = self.keep_planned(
            plan,
            &runtime,
            &mut signals,
            (record, home),
            &mut reservation,
        );
        if !reservation.is_kept() {
            drop(reservation);
            runtime.block_on(launch::run_last_hooks(&hooks, &host, &mut signals));
        }
        // A thread that reads a standard input without an end is not waited for.
        runtime.shutdown_background();
        status
    }

    /// When it returns, nothing of the pod is left.
    fn keep_planned(
        &mut self,
        mut plan: Plan,
        runtime: &Runtime,
        signals: &mut Signals,
        (record, home): (Record, Rc<Home>),
        reservation: &mut Reservation,
    ) -> Result<u8, OciError> {
        let terminal = self.terminal(&plan)?;
        let joined = plan.join_cgroup()?;
        let hooks = record.host_hooks();
        runtime.block_on(async {
            tokio::select! {
                ran = plan.run_create_hooks(&hooks) => Ok(ran?),
                signal = signals.terminating() => Err(interrupted(signal)),
                () = self.mode.caller_gone() => Err(caller_gone()),
            }
        })?;
        let (network, guest) = plan.attach_network()?;
        let life = self.life(
            &plan,
            guest,
            signals,
            terminal.as_ref(),
            (record, home),
            reservation,
        );
        let status = LocalSet::new().block_on(runtime, life);
        if let Err(error) = network.close() {
            log::warn!("{error}");
        }
        drop((joined, plan));
        status
    }

    fn first_record(&self) -> Result<Record, OciError> {
        let now = humantime::format_rfc3339_nanos(SystemTime::now());
        Ok(Record {
            id: self.id.clone(),
            status: Status::Creating,
            keeper: Life::own().map_err(OciError::system("/proc/self/stat"))?,
            bundle: self.bundle.clone(),
            rootfs: PathBuf::new(),
            created: now.to_string(),
            annotations: Default::default(),
            cgroup: None,
            hooks: Default::default(),
        })
    }

    fn wanted<'a>(&'a self, network: &'a NetworkArgs) -> Wanted<'a> {
        Wanted {
            dir: &self.bundle,
            id: self.id.clone(),
            shape: GivenShape::default(),
            network,
            kernel: None,
            initramfs: None,
            boot_timeout: BOOT_TIMEOUT,
            debug: self.debug,
        }
    }

    /// The terminal of the container: that of the caller, or one whose other side goes to
    /// whoever listens on the console socket.
    fn terminal(&self, plan: &Plan) -> Result<Option<Terminal>, OciError> {
        let found = match (&self.mode, plan.bundle.terminal()) {
            (Mode::Attached { .. }, false) => return Ok(None),
            (Mode::Attached { .. }, true) => Terminal::find(),
            (Mode::Detached { console_socket, .. }, wanted) => {
                match (console_socket, wanted) {
                    (None, false) => return Ok(None),
                    (None, true) => return Err(OciError::NoConsole),
                    (Some(_), false) => return Err(OciError::NoTerminal),
                    (Some(socket), true) => console::open(socket, plan.bundle.terminal_size())?,
                }
                Terminal::find()
            }
        };
        found
            .map(Some)
            .map_err(|error| OciError::Other(error.to_string()))
    }

    /// The container from its making to its end.
    async fn life(
        &mut self,
        plan: &Plan,
        guest: GuestNetwork,
        signals: &mut Signals,
        terminal: Option<&Terminal>,
        (record, home): (Record, Rc<Home>),
        reservation: &mut Reservation,
    ) -> Result<u8, OciError> {
        let mut timing = Timing::new(Moment::now());
        let Made { pod, mut process } = tokio::select! {
            made = make(plan, guest, terminal, &mut timing) => made?,
            signal = signals.terminating() => return Err(interrupted(signal)),
            () = self.mode.caller_gone() => return Err(caller_gone()),
        };
        let listener = listen(&home).map_err(OciError::system("control socket"))?;
        let control = process.control();
        let hooks = record.host_hooks();
        let service = Rc::new(Service::new(pod, record, home));
        service.enter(Status::Created)?;
        self.mode.say_created().await?;
        let raw = match &self.mode {
            Mode::Attached { keep, .. } => {
                let raw = terminal.map(Terminal::enter_raw).transpose();
                let raw = raw.map_err(|error| OciError::Other(error.to_string()))?;
                let host = plan.host();
                let start = async {
                    service.start().await?;
                    let ran = hooks.started(Some(&host)).await;
                    Ok::<_, OciError>(ran.map_err(launch::RunError::from)?)
                };
                tokio::select! {
                    started = start => started?,
                    signal = signals.terminating() => return Err(interrupted(signal)),
                }
                if *keep {
                    reservation.keep();
                }
                raw
            }
            Mode::Detached { .. } => {
                reservation.keep();
                None
            }
        };
        let mut connections = JoinSet::new();
        let end = tokio::select! {
            end = service.pod.wait(ProcessId::first_of(&self.id)) => end,
            // What is dropped on the way out is killed.
            signal = forward(signals, &control, terminal) => {
                service.stopped();
                return Ok(status_of(signal));
            }
            () = service.killed() => {
                service.stopped();
                return Ok(status_of(libc::SIGKILL));
            }
            never = accept(&listener, &service, &mut connections) => match never {},
        };
        drop(listener);
        service.stopped();
        let end = end.map_err(|error| OciError::Other(error.to_string()))?;
        tokio::select! {
            () = process.drain(&mut timing) => {}
            signal = signals.terminating() => log::warn!("signal {signal}: output was cut off"),
        }
        drop(raw);
        let last = async { while connections.join_next().await.is_some() {} };
        // Who does not read the answer does not want it.
        let _ = tokio::time::timeout(LAST_ANSWERS, last).await;
        if end.oom_killed {
            log::warn!("{}", plan.out_of_memory());
        }
        // The guest writes back what it has cached of the share.
        service.pod.end().await;
        Ok(end.status)
    }
}

impl Mode {
    /// Waits until nobody is left to be told of the container.
    async fn caller_gone(&mut self) {
        match self {
            Self::Attached { .. } => std::future::pending().await,
            Self::Detached { caller, .. } => caller.gone().await,
        }
    }

    /// Says that the container has been created. When it returns, somebody knows of it.
    async fn say_created(&mut self) -> Result<(), OciError> {
        match self {
            Self::Attached { pid_file, .. } => match pid_file {
                Some(file) => super::pid_file::write(file, std::process::id()),
                None => Ok(()),
            },
            Self::Detached { caller, .. } => caller.done().await,
        }
    }
}

async fn make(
    plan: &Plan,
    guest: GuestNetwork,
    terminal: Option<&Terminal>,
    timing: &mut Timing,
) -> Result<Made, OciError> {
    let pod = plan.boot(guest, timing).await?;
    let stdio = plan.stdio(terminal)?;
    let process = pod
        .create_container(&plan.id, &plan.bundle, stdio)
        .await
        .map_err(launch::RunError::from)?;
    Ok(Made { pod, process })
}

fn listen(home: &Home) -> std::io::Result<UnixListener> {
    let listener = home.listen()?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

fn caller_gone() -> OciError {
    OciError::Other("its caller is gone".into())
}

fn interrupted(signal: i32) -> OciError {
    OciError::Other(format!("interrupted by signal {signal}"))
}

impl Record {
    /// Adds what the bundle says.
    fn describe(&mut self, plan: &Plan) {
        let spec = plan.bundle.spec();
        if let Some(root) = spec.root() {
            self.rootfs = self.bundle.join(root.path());
        }
        self.annotations = spec
            .annotations()
            .clone()
            .unwrap_or_default()
            .into_iter()
            .collect();
        self.cgroup = plan.bundle.cgroup().map(Path::to_owned);
        self.hooks = plan.bundle.hooks();
    }
}
