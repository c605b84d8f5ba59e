//! The helper that builds one container with libcontainer, up to the point where
//! its first process waits to be started.
//!
//! libcontainer clones itself and runs Rust in the child, and it reads the root
//! file system. The helper's stdio is the container's.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use nacre_protocol::GUEST_SHARE;
use oci_spec::runtime::{Process, Spec};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::process::Pid;

use super::cgroup::Cgroup;
use super::exec::Inherited;
use super::executor::WorkloadExecutor;
use super::helper::{Made, hand_over};
use super::id::Id;
use super::report::{BuildRequest, Failure, Report, receive, send};
use super::spec::{self, PidNamespace, Prepared};
use super::{devices, directories, home, mount_points, paths, terminal};
use crate::boot::limits;

/// Builds the container that is asked for on the socket `control` and reports
/// there. The caller ends the process afterwards.
///
/// # Errors
/// When the agent cannot be talked to.
pub(super) fn run(control: &OwnedFd) -> io::Result<()> {
    let (request, fds) = receive::<BuildRequest>(control)?;
    match build(&request, fds.first()) {
        Ok(built) => hand_over(control, &built),
        Err(failure) => send(control, &Report::Failed(failure), &[]),
    }
}

fn build(request: &BuildRequest, pid_namespace: Option<&OwnedFd>) -> Result<Made, Failure> {
    let id = Id::parse(&request.id, "container_id").map_err(Failure::invalid)?;
    let bundle = paths::bundle(&id);
    reset_oom_score().map_err(Failure::internal)?;
    limits::for_container().map_err(Failure::internal)?;
    let pid = match pid_namespace {
        _ if request.own_pid_namespace => PidNamespace::Own,
        // libcontainer opens it anew, in this process or a child of it.
        Some(fd) => PidNamespace::Join(format!("/proc/self/fd/{}", fd.as_raw_fd()).into()),
        None => PidNamespace::New,
    };
    let prepared = read_spec(&bundle, &id, &pid)?;
    check_terminal(request.terminal, prepared.spec.process().as_ref())?;
    check_shared(&prepared.shared)?;
    set_guest_sysctls(&prepared.guest_sysctls)?;
    let spec = finish_spec(prepared.spec, &bundle)?;
    let cgroup = Cgroup::of(&id);
    devices::apply(cgroup.path(), prepared.devices.as_deref()).map_err(|error| match error {
        devices::DeviceRuleError::Kernel(_) => Failure::internal(error),
        _ => Failure::invalid(error),
    })?;
    let console = request
        .terminal
        .then(|| terminal::ConsoleSocket::bind(&bundle))
        .transpose()
        .map_err(Failure::internal)?;
    if console.is_none() {
        own_stdio(user_of(&spec)).map_err(Failure::internal)?;
    }
    let (verdict, pid) = run_builder(&id, &bundle, console.as_ref())?;
    let terminal = console
        .map(|console| console.receive(request.terminal_size, user_of(&spec)))
        .transpose()
        .map_err(Failure::internal)?;
    Ok(Made {
        pid,
        verdict,
        terminal,
    })
}

/// The agent's own protection from the OOM killer must not be inherited.
pub(super) fn reset_oom_score() -> io::Result<()> {
    fs::write("/proc/self/oom_score_adj", "0")
}

fn read_spec(bundle: &Path, id: &Id, pid: &PidNamespace) -> Result<Prepared, Failure> {
    let json = fs::read(bundle.join(CONFIG)).map_err(Failure::internal)?;
    let parsed = spec::parse(&json).map_err(Failure::invalid)?;
    spec::check(&parsed, pid).map_err(Failure::invalid)?;
    let hostname = rustix::system::uname();
    let hostname = hostname.nodename().to_string_lossy();
    spec::prepare(parsed, id, &hostname, pid).map_err(Failure::invalid)
}

/// Name of the specification in a bundle.
pub(super) const CONFIG: &str = "config.json";

/// The host says twice whether there is a terminal; both must agree.
pub(super) fn check_terminal(terminal: bool, process: Option<&Process>) -> Result<(), Failure> {
    let wanted = process
        .and_then(|process| process.terminal())
        .unwrap_or(false);
    if wanted != terminal {
        return Err(Failure::invalid(format!(
            "process.terminal: is {wanted}, but stdio.terminal is {terminal}"
        )));
    }
    Ok(())
}

/// Paths of the share must not lead out of it by a link that a container has
/// planted in a directory it can write to.
fn check_shared(shared: &[(String, PathBuf)]) -> Result<(), Failure> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let share = rustix::fs::open(GUEST_SHARE, flags, Mode::empty())
        .map_err(|error| Failure::internal(format!("{GUEST_SHARE}: {error}")))?;
    for (field, path) in shared {
        let below = path.strip_prefix(GUEST_SHARE).unwrap_or(path);
        let below = if below.as_os_str().is_empty() {
            Path::new(".")
        } else {
            below
        };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        openat2(&share, below, flags, Mode::empty(), resolve).map_err(|error| {
            let error = io::Error::from(error);
            Failure::invalid(format!("{field}: {}: {error}", path.display()))
        })?;
    }
    Ok(())
}

fn set_guest_sysctls(sysctls: &[(String, String)]) -> Result<(), Failure> {
    for (path, value) in sysctls {
        let file = Path::new("/proc/sys").join(path);
        fs::write(&file, value).map_err(|error| {
            let name = path.replace('/', ".");
            Failure::invalid(format!("linux.sysctl[{name:?}]: {error}"))
        })?;
    }
    Ok(())
}

/// What needs a look at the root file system, and the result in the bundle.
fn finish_spec(mut spec: Spec, bundle: &Path) -> Result<Spec, Failure> {
    let rootfs = spec
        .root()
        .as_ref()
        .map(|root| root.path().clone())
        .unwrap_or_default();
    let uid = user_of(&spec);
    mount_points::check(&spec, &rootfs)?;
    directories::make(&spec, &rootfs);
    if let Some(process) = spec.process_mut() {
        let env = process.env_mut().get_or_insert_default();
        home::add_home(env, uid, || home::read_passwd(&rootfs));
    }
    Inherited::save(&spec, bundle).map_err(Failure::internal)?;
    spec::swap_masks(&mut spec);
    spec.save(bundle.join(CONFIG)).map_err(Failure::internal)?;
    Ok(spec)
}

fn user_of(spec: &Spec) -> u32 {
    spec.process()
        .as_ref()
        .map_or(0, |process| process.user().uid())
}

/// A process that is not root opens `/dev/stdout` anew, so the pipes must be
/// its own.
pub(super) fn own_stdio(uid: u32) -> io::Result<()> {
    let uid = rustix::fs::Uid::from_raw(uid);
    let stdio = [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ];
    for fd in stdio {
        let status = rustix::fs::fstat(fd)?;
        let kind = rustix::fs::FileType::from_raw_mode(status.st_mode);
        if kind == rustix::fs::FileType::Fifo {
            rustix::fs::fchown(fd, Some(uid), None)?;
        }
    }
    Ok(())
}

fn run_builder(
    id: &Id,
    bundle: &Path,
    console: Option<&terminal::ConsoleSocket>,
) -> Result<(File, Pid), Failure> {
    let (read, write) = crate::streams::open_ends().map_err(Failure::internal)?;
    let verdict = File::from(read);
    let built = ContainerBuilder::new(id.as_str().to_owned(), SyscallType::default())
        .with_executor(WorkloadExecutor::new(File::from(write)))
        .with_console_socket(console.map(terminal::ConsoleSocket::path))
        .with_root_path(bundle)
        .and_then(|builder| {
            builder
                .as_init(bundle)
                .with_systemd(false)
                .with_detach(true)
                .build()
        });
    match built {
        Ok(container) => {
            let pid = container.pid().and_then(|pid| Pid::from_raw(pid.as_raw()));
            let pid = pid.ok_or_else(|| Failure::internal("the container has no process"))?;
            Ok((verdict, pid))
        }
        Err(error) => Err(failure_of(&verdict, &error)),
    }
}

/// The executor's own words if it got that far, else libcontainer's.
fn failure_of(verdict: &File, error: &LibcontainerError) -> Failure {
    // All writers are gone: the builder, and the process it has killed.
    let told = rustix::io::ioctl_fionbio(verdict, true)
        .ok()
        .and_then(|()| serde_json::from_reader(verdict).ok());
    told.unwrap_or_else(|| {
        let message = chain(error);
        if matches!(error, LibcontainerError::InvalidSpec(_)) {
            Failure::invalid(message)
        } else {
            Failure::internal(message)
        }
    })
}

/// An error with its causes, each once, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        cause = error.source();
    }
    message
}
