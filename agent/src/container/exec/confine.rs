//! What a process of a container is and may, and its program.
//!
//! [`Confinement::prepare`] does what is inherited by a child, outside of the
//! container; [`execute`] does in the container what is left: the user, which must
//! still be root for the step into the cgroup, and the filter of system calls.

use std::io::{self, Write};
use std::os::fd::RawFd;
use std::path::Path;

use libcontainer::capabilities::CapabilityExt;
use oci_spec::runtime::{Capabilities, LinuxPersonalityDomain, Process};
use rustix::fs::{Gid, Mode, Uid};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, configure_capability_in_ambient_set, set_capabilities,
    set_keep_capabilities, set_no_new_privs, set_thread_gid, set_thread_groups, set_thread_uid,
};

use super::filter::Filter;
use super::priority;
use crate::container::privileges::drop_from_bounding;
use crate::container::report::Failure;
use crate::container::{executor, fork, rlimits};

/// Exit status of a process that never got to its program, unless the reason says
/// another.
const STATUS_NOT_EXECUTED: i32 = 126;

/// The sets of capabilities of a process, and how its seccomp filter is set.
#[derive(Clone, Copy)]
pub(super) struct Confinement {
    sets: CapabilitySets,
    bounding: CapabilitySet,
    ambient: CapabilitySet,
    /// Without `no_new_privs` a filter takes a privilege to be set.
    filter_first: bool,
    /// The process asks for priorities, which may take a privilege, too.
    has_priority: bool,
}

fn to_set(capabilities: Option<&Capabilities>) -> CapabilitySet {
    let bits = capabilities
        .into_iter()
        .flatten()
        .map(|capability| capability.to_cap().bitmask());
    CapabilitySet::from_bits_retain(bits.fold(0, |all, bit| all | bit))
}

impl Confinement {
    /// What a process that was checked asks for.
    pub(super) fn of(process: &Process, has_filter: bool) -> Self {
        let given = process.capabilities().as_ref();
        let set = |set: fn(&oci_spec::runtime::LinuxCapabilities) -> &Option<Capabilities>| {
            to_set(given.and_then(|given| set(given).as_ref()))
        };
        let permitted = set(oci_spec::runtime::LinuxCapabilities::permitted);
        let inheritable = set(oci_spec::runtime::LinuxCapabilities::inheritable);
        Self {
            sets: CapabilitySets {
                effective: set(oci_spec::runtime::LinuxCapabilities::effective),
                permitted,
                inheritable,
            },
            bounding: set(oci_spec::runtime::LinuxCapabilities::bounding),
            // The kernel takes no others.
            ambient: set(oci_spec::runtime::LinuxCapabilities::ambient) & permitted & inheritable,
            filter_first: has_filter && process.no_new_privileges() != Some(true),
            has_priority: priority::is_asked_for(process),
        }
    }

    /// What the process needs until it executes its program, beside its own.
    fn interim(&self) -> CapabilitySets {
        let mut needed = self.sets.permitted | CapabilitySet::SETUID;
        if self.filter_first {
            needed |= CapabilitySet::SYS_ADMIN;
        }
        if self.has_priority {
            needed |= CapabilitySet::SYS_NICE;
        }
        CapabilitySets {
            effective: needed,
            permitted: needed,
            inheritable: self.sets.inheritable,
        }
    }

    /// Takes on all that a child inherits. Afterwards the helper itself may little
    /// more than the process.
    pub(super) fn prepare(
        &self,
        process: &Process,
        personality: Option<LinuxPersonalityDomain>,
    ) -> Result<(), Failure> {
        let user = process.user();
        if let Some(umask) = user.umask() {
            rustix::process::umask(Mode::from_raw_mode(umask));
        }
        set_personality(personality).map_err(Failure::internal)?;
        let groups = user.additional_gids().iter().flatten();
        let groups: Vec<_> = groups.map(|gid| Gid::from_raw(*gid)).collect();
        set_thread_groups(&groups)
            .and_then(|()| set_thread_gid(Gid::from_raw(user.gid())))
            .map_err(|error| Failure::invalid(format!("process.user: {error}")))?;
        set_keep_capabilities(true).map_err(Failure::internal)?;
        if process.no_new_privileges() == Some(true) {
            set_no_new_privs(true).map_err(Failure::internal)?;
        }
        rlimits::set(None, process.rlimits().as_deref())?;
        drop_from_bounding(self.bounding).map_err(Failure::internal)?;
        // Not to be looked into by the container's processes.
        set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(Failure::internal)?;
        set_capabilities(None, self.interim()).map_err(capabilities_refused)
    }
}

fn capabilities_refused(error: rustix::io::Errno) -> Failure {
    Failure::invalid(format!("process.capabilities: {error}"))
}

/// Execution domains, linux/personality.h.
const PER_LINUX: libc::c_ulong = 0;
const PER_LINUX32: libc::c_ulong = 8;

fn set_personality(domain: Option<LinuxPersonalityDomain>) -> io::Result<()> {
    let persona = match domain {
        None => return Ok(()),
        Some(LinuxPersonalityDomain::PerLinux) => PER_LINUX,
        Some(LinuxPersonalityDomain::PerLinux32) => PER_LINUX32,
    };
    // SAFETY: takes a number and touches no memory.
    if unsafe { libc::personality(persona) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Enters a directory that is one of the container's.
pub(super) fn enter(cwd: &Path) -> io::Result<()> {
    rustix::process::chdir(cwd)?;
    // The kernel says so where a path leads out of the root.
    let is_inside = rustix::process::getcwd(Vec::new())?
        .to_bytes()
        .starts_with(b"/");
    if is_inside {
        return Ok(());
    }
    Err(io::Error::other("is not in the container"))
}

/// The failure of a working directory that cannot be entered.
pub(super) fn no_directory(cwd: &Path, error: &io::Error) -> Failure {
    Failure::invalid(format!("process.cwd: {cwd:?}: {error}"))
}

/// What a cloned helper is to become.
pub(super) struct Workload<'a> {
    pub(super) process: &'a Process,
    pub(super) filter: Option<&'a Filter>,
    pub(super) confinement: Confinement,
    /// Whether the working directory has been entered.
    pub(super) in_cwd: bool,
    /// Writing end of the pipe that tells of a failure.
    pub(super) verdict: RawFd,
}

/// Becomes the workload, or says why not and ends.
pub(super) fn execute(workload: &Workload<'_>) -> ! {
    let Some(mut verdict) = fork::keep_only(workload.verdict) else {
        std::process::exit(STATUS_NOT_EXECUTED);
    };
    let (failure, status) = match finish(workload) {
        Ok(()) => {
            let error = executor::execute(workload.process);
            (Failure::invalid(&error), error.shell_status())
        }
        Err(failure) => (failure, STATUS_NOT_EXECUTED),
    };
    if let Ok(text) = serde_json::to_vec(&failure) {
        // The exit status still tells when the pipe has no reader.
        let _ = verdict.write_all(&text);
    }
    std::process::exit(status)
}

fn finish(workload: &Workload<'_>) -> Result<(), Failure> {
    let confinement = &workload.confinement;
    rustix::process::setsid().map_err(Failure::internal)?;
    if workload.process.terminal() == Some(true) {
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin()).map_err(Failure::internal)?;
    }
    priority::set(workload.process)?;
    set_thread_uid(Uid::from_raw(workload.process.user().uid()))
        .map_err(|error| Failure::invalid(format!("process.user.uid: {error}")))?;
    if !workload.in_cwd {
        let cwd = workload.process.cwd();
        enter(cwd).map_err(|error| no_directory(cwd, &error))?;
    }
    if confinement.filter_first {
        // Another user than root has lost them as effective ones.
        set_capabilities(None, confinement.interim()).map_err(capabilities_refused)?;
        set_filter(workload.filter)?;
    }
    set_capabilities(None, confinement.sets).map_err(capabilities_refused)?;
    for capability in confinement.ambient.iter() {
        configure_capability_in_ambient_set(capability, true).map_err(capabilities_refused)?;
    }
    if !confinement.filter_first {
        set_filter(workload.filter)?;
    }
    Ok(())
}

fn set_filter(filter: Option<&Filter>) -> Result<(), Failure> {
    filter
        .map_or(Ok(()), Filter::set)
        .map_err(|error| Failure::invalid(format!("linux.seccomp: {error}")))
}
