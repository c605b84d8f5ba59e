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
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources, Process, Spec};
use rustix::fs::OFlags;
use rustix::process::Pid;

use super::cgroup::Cgroup;
use super::exec::Inherited;
use super::executor::WorkloadExecutor;
use super::helper::{Made, hand_over};
use super::id::Id;
use super::report::{BuildRequest, Failure, Report, receive, send};
use super::spec::{self, PidNamespace, Prepared};
use super::start_hooks::StartHooks;
use super::user_namespace::{self, Users};
use super::{
    copy_up, device_nodes, devices, directories, home, masked_paths, mount_options, mount_points,
    mounted_disks, paths, readonly_paths, rlimits, sysctls, terminal, update,
};
use crate::boot::limits;
use crate::error::Error;
use crate::share;

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
    let mut prepared = read_spec(&bundle, request, &id, &pid)?;
    check_terminal(request.terminal, prepared.spec.process().as_ref())?;
    check_shared(&prepared.shared)?;
    device_nodes::check(&prepared.spec)?;
    sysctls::set_of_guest(&prepared.guest_sysctls)?;
    // Held until libcontainer has joined it.
    let _users = user_namespace::make(&mut prepared.spec)?;
    let masked = masked_paths::take(&mut prepared.spec);
    let spec = finish_spec(prepared.spec, &bundle)?;
    let hooks = StartHooks::new(prepared.start_hooks, &id, &bundle, &spec);
    let owner = owner_of_stdio(&spec)?;
    let cgroup = Cgroup::of(&id);
    let disks = mounted_disks::rules(&spec)?;
    limit(&cgroup, prepared.resources.as_ref())?;
    let rules = device_rules(prepared.resources.as_ref());
    allow_devices(&cgroup, &[rules, &disks].concat())?;
    let console = request
        .terminal
        .then(|| terminal::ConsoleSocket::bind(&bundle))
        .transpose()
        .map_err(Failure::internal)?;
    if console.is_none() {
        own_stdio(owner).map_err(Failure::internal)?;
    }
    let (verdict, pid) = run_builder(&id, &bundle, console.as_ref(), hooks)?;
    let terminal = console
        .map(|console| console.receive(request.terminal_size, owner))
        .transpose()
        .map_err(Failure::internal);
    // Its mounts are made.
    let settled = take_back(&cgroup, &disks, rules)
        .and_then(|()| rlimits::set(Some(pid), prepared.rlimits.as_deref()))
        .and_then(|()| sysctls::set_of_container(pid, &prepared.sysctls))
        .and_then(|()| readonly_paths::restore_flags(pid, &spec))
        .and_then(|()| masked_paths::mask(pid, &masked));
    match settled.and(terminal) {
        Ok(terminal) => Ok(Made {
            pid,
            verdict,
            terminal,
        }),
        Err(failure) => {
            // It waits to be started; the cgroup's removal takes what is left of it.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            Err(failure)
        }
    }
}

fn limit(cgroup: &Cgroup, resources: Option<&LinuxResources>) -> Result<(), Failure> {
    let Some(resources) = resources else {
        return Ok(());
    };
    update::set(cgroup, resources).map_err(|error| match error {
        Error::InvalidArgument(message) => Failure::invalid(message),
        error => Failure::internal(error),
    })
}

fn device_rules(resources: Option<&LinuxResources>) -> &[LinuxDeviceCgroup] {
    let rules = resources.and_then(|resources| resources.devices().as_deref());
    rules.unwrap_or_default()
}

/// Lets a container use the devices of these rules, and those that all may use.
fn allow_devices(cgroup: &Cgroup, rules: &[LinuxDeviceCgroup]) -> Result<(), Failure> {
    devices::apply(cgroup.path(), rules).map_err(|error| match error {
        devices::DeviceRuleError::Kernel(_) => Failure::internal(error),
        _ => Failure::invalid(error),
    })
}

/// Leaves a container only the rules of its specification.
fn take_back(
    cgroup: &Cgroup,
    disks: &[LinuxDeviceCgroup],
    rules: &[LinuxDeviceCgroup],
) -> Result<(), Failure> {
    if disks.is_empty() {
        return Ok(());
    }
    allow_devices(cgroup, rules)
}

/// The guest's user to whom the process's streams are to belong.
fn owner_of_stdio(spec: &Spec) -> Result<u32, Failure> {
    let uid = user_of(spec);
    Users::of(spec).in_guest(uid).ok_or_else(|| {
        Failure::invalid(format!(
            "process.user.uid: {uid} is not in linux.uidMappings"
        ))
    })
}

/// The agent's own protection from the OOM killer must not be inherited.
pub(super) fn reset_oom_score() -> io::Result<()> {
    fs::write("/proc/self/oom_score_adj", "0")
}

fn read_spec(
    bundle: &Path,
    request: &BuildRequest,
    id: &Id,
    pid: &PidNamespace,
) -> Result<Prepared, Failure> {
    let json = fs::read(bundle.join(CONFIG)).map_err(Failure::internal)?;
    let mut parsed = spec::parse(&json).map_err(Failure::invalid)?;
    spec::check(&parsed, pid).map_err(Failure::invalid)?;
    mount_copies(&mut parsed, &request.volumes)?;
    let hostname = rustix::system::uname();
    let hostname = hostname.nodename().to_string_lossy();
    spec::prepare(parsed, id, &hostname, pid).map_err(Failure::invalid)
}

/// Has bind mounts, by their numbers, show the copies of volumes instead of the share.
fn mount_copies(spec: &mut Spec, copies: &[(usize, PathBuf)]) -> Result<(), Failure> {
    for (index, copy) in copies {
        let mounts = spec.mounts_mut().as_mut();
        let mount = mounts.and_then(|mounts| mounts.get_mut(*index));
        let mount = mount.filter(|mount| spec::is_bind(mount)).ok_or_else(|| {
            Failure::invalid(format!(
                "copied_volumes.mount: mounts[{index}] is no bind mount"
            ))
        })?;
        mount.set_source(Some(copy.clone()));
    }
    Ok(())
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

/// Refuses paths that lead out of the share.
fn check_shared(shared: &[(String, PathBuf)]) -> Result<(), Failure> {
    for (field, path) in shared {
        let opened = share::open(path, OFlags::PATH).map_err(Failure::internal)?;
        opened
            .map_err(|error| Failure::invalid(format!("{field}: {}: {error}", path.display())))?;
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
    mount_options::check(&spec)?;
    directories::make(&spec, &rootfs);
    directories::check(&spec, &rootfs)?;
    copy_up::prepare(&mut spec, &rootfs, bundle)?;
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
    hooks: StartHooks,
) -> Result<(File, Pid), Failure> {
    let (read, write) = crate::streams::open_ends().map_err(Failure::internal)?;
    let verdict = File::from(read);
    let built = ContainerBuilder::new(id.as_str().to_owned(), SyscallType::default())
        .with_executor(WorkloadExecutor::new(File::from(write), hooks))
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
        let mut message = chain(error);
        if message.ends_with("failed to run hooks") {
            // libcontainer does not say which; what it printed is in the container's output.
            message = "hooks.createContainer: a hook has failed or was too slow".to_owned();
        }
        if matches!(error, LibcontainerError::InvalidSpec(_)) {
            Failure::invalid(message)
        } else {
            Failure::internal(message)
        }
    })
}

/// An error with its causes, each once, on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
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
