//! What the kernel gives a process of CPUs and of devices, in which order.

use std::io;

use libc::{c_int, c_long};
use oci_spec::runtime::{
    IOPriorityClass, LinuxIOPriority, LinuxSchedulerFlag, LinuxSchedulerPolicy, Process, Scheduler,
};

use crate::container::report::Failure;

/// The calling thread, for calls that take an identifier.
const SELF: c_int = 0;

/// ioprio_set(2): a process, by its identifier.
const IOPRIO_WHO_PROCESS: c_int = 1;

/// ioprio_set(2): bits of the value that are below the class.
const IOPRIO_CLASS_SHIFT: c_int = 13;

/// Whether the process asks for anything that may take CAP_SYS_NICE.
pub(super) fn is_asked_for(process: &Process) -> bool {
    process.io_priority().is_some() || process.scheduler().is_some()
}

/// Sets `process.ioPriority` and `process.scheduler` for the calling thread. What it clones may
/// not inherit the latter, and takes a privilege that its user may not have.
pub(super) fn set(process: &Process) -> Result<(), Failure> {
    if let Some(priority) = process.io_priority() {
        set_io_priority(priority)
            .map_err(|error| Failure::invalid(format!("process.ioPriority: {error}")))?;
    }
    if let Some(scheduler) = process.scheduler() {
        set_scheduler(scheduler)
            .map_err(|error| Failure::invalid(format!("process.scheduler: {error}")))?;
    }
    Ok(())
}

fn set_io_priority(wanted: &LinuxIOPriority) -> io::Result<()> {
    let class = match wanted.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    let priority = c_int::try_from(wanted.priority())
        .ok()
        .filter(|priority| (0..1 << IOPRIO_CLASS_SHIFT).contains(priority))
        .ok_or(io::ErrorKind::InvalidInput)?;
    let value = (class << IOPRIO_CLASS_SHIFT) | priority;
    // SAFETY: takes three numbers and touches no memory.
    succeeded(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, SELF, value) })
}

fn set_scheduler(wanted: &Scheduler) -> io::Result<()> {
    let attributes = attributes(wanted)?;
    // SAFETY: the kernel reads the structure, whose size it is told, and no more.
    succeeded(unsafe { libc::syscall(libc::SYS_sched_setattr, SELF, &raw const attributes, 0) })
}

fn attributes(wanted: &Scheduler) -> io::Result<libc::sched_attr> {
    let number = |number: c_int| u32::try_from(number).map_err(|_| io::ErrorKind::InvalidInput);
    let policy = match wanted.policy() {
        LinuxSchedulerPolicy::SchedOther => libc::SCHED_OTHER,
        LinuxSchedulerPolicy::SchedFifo => libc::SCHED_FIFO,
        LinuxSchedulerPolicy::SchedRr => libc::SCHED_RR,
        LinuxSchedulerPolicy::SchedBatch => libc::SCHED_BATCH,
        // Reserved by the kernel, which refuses it.
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => libc::SCHED_IDLE,
        LinuxSchedulerPolicy::SchedDeadline => libc::SCHED_DEADLINE,
    };
    let flags = wanted.flags().iter().flatten().copied().map(flag);
    Ok(libc::sched_attr {
        size: u32::try_from(size_of::<libc::sched_attr>()).map_err(io::Error::other)?,
        sched_policy: number(policy)?,
        sched_flags: u64::from(number(flags.fold(0, |all, flag| all | flag))?),
        sched_nice: wanted.nice().unwrap_or(0),
        sched_priority: number(wanted.priority().unwrap_or(0))?,
        sched_runtime: wanted.runtime().unwrap_or(0),
        sched_deadline: wanted.deadline().unwrap_or(0),
        sched_period: wanted.period().unwrap_or(0),
    })
}

fn flag(flag: LinuxSchedulerFlag) -> c_int {
    match flag {
        LinuxSchedulerFlag::SchedResetOnFork => libc::SCHED_FLAG_RESET_ON_FORK,
        LinuxSchedulerFlag::SchedFlagReclaim => libc::SCHED_FLAG_RECLAIM,
        LinuxSchedulerFlag::SchedFlagDLOverrun => libc::SCHED_FLAG_DL_OVERRUN,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => libc::SCHED_FLAG_KEEP_POLICY,
        LinuxSchedulerFlag::SchedFlagKeepParams => libc::SCHED_FLAG_KEEP_PARAMS,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => libc::SCHED_FLAG_UTIL_CLAMP_MIN,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => libc::SCHED_FLAG_UTIL_CLAMP_MAX,
    }
}

fn succeeded(returned: c_long) -> io::Result<()> {
    if returned < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn process(field: &str, value: Value) -> Process {
        let mut process = json!({ "cwd": "/", "args": ["x"], "user": { "uid": 0, "gid": 0 } });
        process[field] = value;
        serde_json::from_value(process).unwrap()
    }

    /// In a thread of its own, which only it concerns.
    fn in_thread<T: Send>(look: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| scope.spawn(look).join().unwrap())
    }

    #[test]
    fn the_order_at_cpus_and_devices_is_as_asked_for() {
        let lower = process("scheduler", json!({ "policy": "SCHED_BATCH", "nice": 7 }));
        let idle = json!({ "class": "IOPRIO_CLASS_IDLE", "priority": 0 });
        let idle = process("ioPriority", idle);
        assert!(is_asked_for(&lower) && is_asked_for(&idle));
        let seen = in_thread(|| {
            set(&lower).unwrap();
            set(&idle).unwrap();
            // SAFETY: both take numbers and touch no memory.
            unsafe {
                (
                    libc::sched_getscheduler(SELF),
                    libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, SELF),
                )
            }
        });
        assert_eq!(seen, (libc::SCHED_BATCH, 3 << IOPRIO_CLASS_SHIFT));
    }

    #[test]
    fn what_the_kernel_refuses_is_named() {
        let nothing = process("noNewPrivileges", json!(true));
        assert!(!is_asked_for(&nothing));
        set(&nothing).unwrap();
        for (field, value) in [
            ("scheduler", json!({ "policy": "SCHED_ISO" })),
            (
                "scheduler",
                json!({ "policy": "SCHED_FIFO", "priority": 100 }),
            ),
            (
                "scheduler",
                json!({ "policy": "SCHED_FIFO", "priority": -1 }),
            ),
            (
                "ioPriority",
                json!({ "class": "IOPRIO_CLASS_BE", "priority": 8192 }),
            ),
            (
                "ioPriority",
                json!({ "class": "IOPRIO_CLASS_BE", "priority": -1 }),
            ),
        ] {
            let failure = in_thread(|| set(&process(field, value)).unwrap_err());
            let start = format!("process.{field}: ");
            assert!(failure.message.starts_with(&start), "{}", failure.message);
        }
    }

    #[test]
    fn every_attribute_of_a_scheduler_is_passed_on() {
        let scheduler = json!({
            "policy": "SCHED_DEADLINE", "flags": ["SCHED_RESET_ON_FORK", "SCHED_FLAG_RECLAIM"],
            "runtime": 1, "deadline": 2, "period": 3
        });
        let process = process("scheduler", scheduler);
        let passed = attributes(process.scheduler().as_ref().unwrap()).unwrap();
        assert_eq!((passed.sched_policy, passed.sched_flags), (6, 3));
        let times = (
            passed.sched_runtime,
            passed.sched_deadline,
            passed.sched_period,
        );
        assert_eq!(times, (1, 2, 3));
    }
}
