//! The process that does nothing: the first one of the pod's PID namespace when
//! no container is.
//!
//! Containers that share the namespace can see it, so there is nothing to see: its
//! root is an empty, read-only directory, and it may nothing. The kernel reaps the
//! orphans that fall to it, as it ignores SIGCHLD, and passes it no signal from
//! its own namespace that would end it.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::signal::{SigHandler, SigSet, Signal};
use rustix::fs::{Gid, Uid};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, mount_remount, unmount,
};
use rustix::process::{DumpableBehavior, chdir, pivot_root, set_dumpable_behavior, setsid};
use rustix::thread::{
    UnshareFlags, set_name, set_no_new_privs, set_thread_gid, set_thread_groups, set_thread_uid,
};

use super::fork;
use super::helper::{Made, hand_over};
use super::privileges;
use super::report::{Failure, ParkRequest, Report, receive, send};

/// Where the empty root is mounted before it is the root; any directory will do.
const PLACE: &str = "/run";

/// User and group `nobody`.
const NOBODY: u32 = 65534;

/// Parks a process in a new PID namespace and reports it on the socket `control`.
///
/// # Errors
/// When the agent cannot be talked to.
pub(super) fn run(control: &OwnedFd) -> io::Result<()> {
    receive::<ParkRequest>(control)?;
    match park() {
        Ok(made) => hand_over(control, &made),
        Err(error) => {
            let failure = Failure::internal(format!("cannot park a process: {error}"));
            send(control, &Report::Failed(failure), &[])
        }
    }
}

fn park() -> io::Result<Made> {
    let (read, write) = crate::streams::open_ends()?;
    // SAFETY: this process has one thread, whose memory and descriptors stay its
    // own.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::NEWPID) }?;
    enter_empty_root()?;
    match fork::plain()? {
        Some(pid) => Ok(Made {
            pid,
            verdict: File::from(read),
            terminal: None,
        }),
        None => stay(write.as_raw_fd()),
    }
}

fn enter_empty_root() -> io::Result<()> {
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("none", PLACE, "tmpfs", flags, c"size=4k,mode=555")?;
    chdir(PLACE)?;
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    mount_remount("/", flags | MountFlags::RDONLY, c"")?;
    Ok(chdir("/")?)
}

/// Never comes back.
fn stay(verdict: i32) -> ! {
    let Some(mut verdict) = fork::keep_only(verdict) else {
        std::process::exit(1);
    };
    if let Err(error) = give_everything_up() {
        let failure = Failure::internal(format!("cannot park a process: {error}"));
        if let Ok(text) = serde_json::to_vec(&failure) {
            let _ = verdict.write_all(&text);
        }
        std::process::exit(1);
    }
    drop(verdict);
    loop {
        nix::unistd::pause();
    }
}

fn give_everything_up() -> io::Result<()> {
    set_name(c"pod")?;
    setsid()?;
    // SAFETY: neither disposition runs code of ours.
    unsafe { nix::sys::signal::signal(Signal::SIGCHLD, SigHandler::SigIgn) }?;
    SigSet::empty().thread_set_mask()?;
    set_thread_groups(&[])?;
    set_thread_gid(Gid::from_raw(NOBODY))?;
    privileges::drop_from_bounding(rustix::thread::CapabilitySet::empty())?;
    set_thread_uid(Uid::from_raw(NOBODY))?;
    privileges::drop_all()?;
    set_no_new_privs(true)?;
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}
