//! A helper: a process of the agent's program with one thread and one task.
//!
//! Entering namespaces and cloning is unsound with other threads around, and a
//! container's file system may hang. So the agent executes itself anew for each
//! such task: the helper may fail, hang or be killed without harm to the agent.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::helper_process::Role;
use super::report::{Failure, Report, receive, send};
use super::{build, exec, look, parked};

/// Carries out the task that is asked for on the socket `control`, and reports
/// there. The caller ends the process afterwards.
///
/// # Errors
/// When the agent cannot be talked to.
pub fn run(role: Role, control: RawFd) -> io::Result<()> {
    // SAFETY: the agent passes this descriptor to the helper for this purpose,
    // and nothing else in this process knows its number.
    let control = unsafe { OwnedFd::from_raw_fd(control) };
    rustix::io::fcntl_setfd(&control, rustix::io::FdFlags::CLOEXEC)?;
    report_panics(control.try_clone()?);
    match role {
        Role::BuildContainer => build::run(&control),
        Role::Exec => exec::join(&control),
        Role::Park => parked::run(&control),
        Role::Look => look::run(&control),
    }
}

/// stderr is the container's, so a bug here must not write to it.
fn report_panics(control: OwnedFd) {
    std::panic::set_hook(Box::new(move |panic| {
        let failure = Failure::internal(format!("a helper failed: {panic}"));
        // When the agent is gone there is nobody to tell.
        let _ = send(&control, &Report::Failed(failure), &[]);
    }));
}

/// A process that a helper has made.
pub(super) struct Made {
    pub(super) pid: Pid,
    pub(super) verdict: File,
    pub(super) terminal: Option<OwnedFd>,
}

/// Reports a process, and lives on until the agent knows it: only then may it
/// fall to the agent as its parent.
pub(super) fn hand_over(control: &OwnedFd, built: &Made) -> io::Result<()> {
    let pidfd = pidfd_open(built.pid, PidfdFlags::empty())?;
    let mut fds = vec![pidfd.as_fd(), built.verdict.as_fd()];
    fds.extend(built.terminal.as_ref().map(AsFd::as_fd));
    let pid = built.pid.as_raw_pid();
    send(control, &Report::Created { pid }, &fds)?;
    receive::<()>(control)?;
    Ok(())
}
