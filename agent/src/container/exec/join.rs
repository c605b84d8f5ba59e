//! The helper's side of an exec: joins the container and clones itself into it.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::{LinuxPersonalityDomain, Process};
use rustix::event::Timespec;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, open, openat, openat2};
use rustix::io::Errno;
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::confine::{self, Confinement};
use super::filter::Filter;
use super::{Inherited, pty};
use crate::boot::limits;
use crate::container::build::{check_terminal, own_stdio, reset_oom_score};
use crate::container::cgroup::Cgroup;
use crate::container::helper::{Made, hand_over};
use crate::container::id::Id;
use crate::container::report::{Failure, JoinRequest, Report, receive, send};
use crate::container::user_namespace::Users;
use crate::container::{fork, home, null, paths, spec};

/// Bytes of the JSON of a process.
const MAX_PROCESS: u64 = 4 << 20;

/// Bytes of `/proc/PID/cgroup`.
const MAX_MEMBERSHIP: u64 = 8 << 10;

/// How long a first process that is ending may take to end.
const END: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// The namespaces that the first process of every container is in.
const NAMESPACES: ThreadNameSpaceType = ThreadNameSpaceType::MOUNT
    .union(ThreadNameSpaceType::PROCESS_ID)
    .union(ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION)
    .union(ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME)
    .union(ThreadNameSpaceType::CONTROL_GROUP)
    .union(ThreadNameSpaceType::NETWORK);

/// Starts the process that is asked for on the socket `control`.
///
/// # Errors
/// When the agent cannot be talked to.
pub(in crate::container) fn run(control: &OwnedFd) -> io::Result<()> {
    match receive_task(control).and_then(Task::carry_out) {
        Ok(made) => hand_over(control, &made),
        Err(failure) => send(control, &Report::Failed(failure), &[]),
    }
}

/// What is asked for, and what is opened of the agent's own before the helper
/// sees the container's files only.
struct Task {
    request: JoinRequest,
    process: Process,
    personality: Option<LinuxPersonalityDomain>,
    users: Users,
    own_time: bool,
    filter: Option<Filter>,
    /// Of the container's first process.
    pidfd: OwnedFd,
    /// The agent's `/proc`.
    proc: OwnedFd,
    cgroup: OwnedFd,
}

fn receive_task(control: &OwnedFd) -> Result<Task, Failure> {
    let (request, fds) = receive::<JoinRequest>(control).map_err(Failure::internal)?;
    let mut fds = fds.into_iter();
    let (Some(pidfd), Some(file)) = (fds.next(), fds.next()) else {
        return Err(Failure::internal("the agent asks for an exec of nothing"));
    };
    let process = read_process(File::from(file))?;
    check_terminal(request.terminal, Some(&process))?;
    let id = Id::parse(&request.id, "container_id").map_err(Failure::invalid)?;
    let bundle = paths::bundle(&id);
    let inherited = Inherited::load(&bundle).map_err(Failure::internal)?;
    let filter = inherited
        .filter_flags
        .map(|flags| Filter::of(&bundle, flags));
    let place = |path: &Path| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        open(path, flags, Mode::empty())
            .map_err(|error| Failure::internal(format!("{}: {error}", path.display())))
    };
    Ok(Task {
        request,
        process,
        personality: inherited.personality,
        users: inherited.users,
        own_time: inherited.own_time,
        filter: filter.transpose()?,
        pidfd,
        proc: place(Path::new("/proc"))?,
        cgroup: place(Cgroup::of(&id).path())?,
    })
}

fn read_process(mut file: File) -> Result<Process, Failure> {
    let mut json = Vec::new();
    file.rewind()
        .and_then(|()| file.take(MAX_PROCESS).read_to_end(&mut json))
        .map_err(Failure::internal)?;
    spec::process(&json).map_err(Failure::invalid)
}

impl Task {
    fn carry_out(mut self) -> Result<Made, Failure> {
        set_oom_score(self.process.oom_score_adj()).map_err(Failure::internal)?;
        limits::for_container().map_err(Failure::internal)?;
        let uid = self.process.user().uid();
        let owner = self.users.in_guest(uid).ok_or_else(|| {
            Failure::invalid(format!(
                "process.user.uid: {uid} is not in linux.uidMappings"
            ))
        })?;
        if !self.request.terminal {
            own_stdio(owner).map_err(Failure::internal)?;
        }
        self.join()?;
        let env = self.process.env_mut().get_or_insert_default();
        home::add_home(env, uid, || read_passwd(&self.proc));
        let terminal = self.prepare_stdio(uid)?;
        let in_cwd = enter(self.process.cwd())?;
        let confinement = Confinement::of(&self.process, self.filter.is_some());
        confinement.prepare(&self.process, self.personality)?;
        let (read, write) = crate::streams::open_ends().map_err(Failure::internal)?;
        match self.fork()? {
            Some(pid) => Ok(Made {
                pid,
                verdict: File::from(read),
                terminal,
            }),
            None => confine::execute(&confine::Workload {
                process: &self.process,
                filter: self.filter.as_ref(),
                confinement,
                in_cwd,
                verdict: write.as_raw_fd(),
            }),
        }
    }

    fn join(&self) -> Result<(), Failure> {
        let mut namespaces = NAMESPACES;
        namespaces.set(ThreadNameSpaceType::USER, self.users.are_mapped());
        namespaces.set(ThreadNameSpaceType::TIME, self.own_time);
        match move_into_thread_name_spaces(self.pidfd.as_fd(), namespaces) {
            Ok(()) => Ok(()),
            Err(Errno::SRCH) => Err(self.has_stopped()),
            Err(error) => Err(Failure::internal(format!(
                "cannot join the container's namespaces: {error}"
            ))),
        }
    }

    fn has_stopped(&self) -> Failure {
        Failure::precondition(format!("container {:?} has stopped", self.request.id))
    }

    /// Gives the master side of the terminal, if there is to be one.
    fn prepare_stdio(&self, uid: u32) -> Result<Option<OwnedFd>, Failure> {
        if !self.request.terminal {
            // A container without a null device gets the agent's.
            let _ = null::replace(|| open_null(&self.proc));
            return Ok(None);
        }
        let (master, slave) = pty::open(&self.proc, uid, self.request.terminal_size)?;
        rustix::stdio::dup2_stdin(&slave)
            .and_then(|()| rustix::stdio::dup2_stdout(&slave))
            .and_then(|()| rustix::stdio::dup2_stderr(&slave))
            .map_err(Failure::internal)?;
        Ok(Some(master))
    }

    fn fork(&self) -> Result<Option<rustix::process::Pid>, Failure> {
        let forked = match fork::into_cgroup(self.cgroup.as_fd()) {
            // The workload has divided its cgroup, which so holds none itself.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => self
                .cgroup_of_init()
                .and_then(|cgroup| fork::into_cgroup(cgroup.as_fd())),
            forked => forked,
        };
        forked.map_err(|error| match error.raw_os_error() {
            // A PID namespace without its first process has no room for more,
            // and a cgroup may have been removed.
            Some(libc::ENOMEM | libc::ENODEV | libc::ENOENT) if self.init_ends() => {
                self.has_stopped()
            }
            Some(libc::EAGAIN) => Failure::precondition(format!(
                "container {:?} has as many processes as it may",
                self.request.id
            )),
            _ => Failure::internal(format!("cannot make the process: {error}")),
        })
    }

    /// Whether the first process has ended or is just ending: its namespace takes
    /// nobody from before it is seen to have ended.
    fn init_ends(&self) -> bool {
        let mut poll = [rustix::event::PollFd::new(
            &self.pidfd,
            rustix::event::PollFlags::IN,
        )];
        rustix::event::poll(&mut poll, Some(&END)).is_ok_and(|ready| ready > 0)
    }

    /// The cgroup of the first process, somewhere below the container's.
    fn cgroup_of_init(&self) -> io::Result<OwnedFd> {
        let file = openat(
            &self.proc,
            format!("{}/cgroup", self.request.init),
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let mut membership = String::new();
        File::from(file)
            .take(MAX_MEMBERSHIP)
            .read_to_string(&mut membership)?;
        // As seen from the container's cgroup namespace, which was joined.
        let below = membership
            .lines()
            .find_map(|line| line.strip_prefix("0::/"))
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(openat2(
            &self.cgroup,
            if below.is_empty() { "." } else { below },
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH,
        )?)
    }
}

fn set_oom_score(score: Option<i32>) -> io::Result<()> {
    match score {
        Some(score) => fs::write("/proc/self/oom_score_adj", score.to_string()),
        None => reset_oom_score(),
    }
}

/// The container's null device, which is opened only if it is that.
fn open_null(proc: &OwnedFd) -> io::Result<OwnedFd> {
    let place = openat(
        CWD,
        null::NULL,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    if !null::is_null(&place)? {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let again = format!("self/fd/{}", place.as_raw_fd());
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(openat(proc, again, flags, Mode::empty())?)
}

/// The container's `/etc/passwd`, which is now the root's. Whatever else may be in
/// its place is not opened.
fn read_passwd(proc: &OwnedFd) -> Option<String> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let file = openat(CWD, "/etc/passwd", flags, Mode::empty()).ok()?;
    let status = fstat(&file).ok()?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return None;
    }
    let again = format!("self/fd/{}", file.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = openat(proc, again, flags, Mode::empty()).ok()?;
    home::read_bounded(File::from(file))
}

/// Enters the working directory with the helper's privileges, as users of other
/// runtimes expect. Says whether that was allowed: a file system may know only
/// the process's own user.
fn enter(cwd: &Path) -> Result<bool, Failure> {
    match confine::enter(cwd) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
        Err(error) => Err(confine::no_directory(cwd, &error)),
    }
}
