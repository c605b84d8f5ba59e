//! What a pod says of itself.
//!
//! The asker may be older or newer than the pod that answers: what one does not know is left
//! out, and what the other does not say has a default.

use std::collections::BTreeMap;

use nacre_protocol::agent::{ContainerStatsResponse, GuestStatsResponse};
use serde::{Deserialize, Serialize};

use super::entry::Identity;
use super::trace_parent::TraceParent;

/// Where a pod is in its life.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It has not booted yet.
    #[default]
    Created,
    /// Its guest runs.
    Running,
    /// Its guest is no more.
    Stopped,
}

impl State {
    /// As a word for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Stopped => "stopped",
        }
    }
}

/// A pod, as it is at a moment.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Report {
    /// Which.
    pub identity: Identity,
    /// Where it is in its life.
    pub state: State,
    /// The agent in the guest answered in time.
    pub guest_answers: bool,
    /// When it was asked for, in seconds since the epoch.
    pub started_at: Option<f64>,
    /// The span of its caller that asked for it.
    pub trace_parent: Option<TraceParent>,
    /// The phases of its start.
    pub phases: Vec<PhaseReport>,
    /// vCPUs of the guest.
    pub vcpus: u8,
    /// Memory of the guest in bytes.
    pub memory: u64,
    /// Guest memory in bytes that the host has pages for.
    pub memory_resident: Option<u64>,
    /// Memory in bytes that the guest's kernel could still give to programs.
    pub memory_available: Option<u64>,
    /// VM exits that reached the monitor.
    pub exits: Option<u64>,
    /// The pod's processes on the host, `shim` and `monitor`.
    pub processes: BTreeMap<String, HostProcess>,
    /// Network interfaces.
    pub interfaces: Vec<InterfaceReport>,
    /// Containers, in the order of their identifiers.
    pub containers: Vec<ContainerReport>,
}

impl Report {
    /// Adds the process `pid` of the host, if it is there.
    pub fn add_process(&mut self, name: &str, pid: u32) {
        if let Some(process) = HostProcess::of(pid) {
            self.processes.insert(name.to_owned(), process);
        }
    }

    /// Identifiers of the containers of which the guest can say what they use.
    #[must_use]
    pub fn not_stopped(&self) -> Vec<String> {
        let containers = self.containers.iter();
        let here = containers.filter(|container| container.status != STOPPED);
        here.map(|container| container.id.clone()).collect()
    }

    /// Adds what the guest has answered. What it says of containers that it was not asked for
    /// is left out.
    pub fn add_guest(&mut self, stats: &GuestStatsResponse) {
        self.guest_answers = true;
        self.memory_available = Some(stats.memory_available);
        for container in &mut self.containers {
            if container.status != STOPPED {
                container.usage = stats.containers.get(&container.id).map(Usage::new);
            }
        }
    }
}

/// The [status](ContainerReport::status) of a container whose first process runs.
pub const RUNNING: &str = "running";
/// That of one whose first process waits for its start.
pub const CREATED: &str = "created";
/// That of one whose processes are frozen.
pub const PAUSED: &str = "paused";
/// That of one whose first process has ended.
pub const STOPPED: &str = "stopped";

/// A phase of a start.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct PhaseReport {
    /// The phase ends when this is reached.
    pub name: String,
    /// How long it took.
    pub seconds: f64,
}

/// What a process of the host uses.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct HostProcess {
    /// Its number.
    pub pid: u32,
    /// Resident memory in bytes; the monitor's includes the guest's.
    pub resident: u64,
    /// CPU time.
    pub cpu_seconds: f64,
}

/// What has gone through a network interface, as the pod sees it.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct InterfaceReport {
    /// Its name.
    pub name: String,
    /// Bytes to the pod.
    pub received_bytes: u64,
    /// Packets to the pod.
    pub received_packets: u64,
    /// Bytes from the pod.
    pub sent_bytes: u64,
    /// Packets from the pod.
    pub sent_packets: u64,
}

/// A container.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct ContainerReport {
    /// Its identifier.
    pub id: String,
    /// Its name in the pod, if it was told.
    pub name: Option<String>,
    /// [`CREATED`], [`RUNNING`], [`PAUSED`] or [`STOPPED`].
    pub status: String,
    /// Further processes that run and were executed in it.
    pub execs: u64,
    /// What it uses, if it runs and the guest says so.
    pub usage: Option<Usage>,
}

/// What a container uses, as its cgroup in the guest counts.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Usage {
    /// CPU time in microseconds.
    pub cpu_usec: u64,
    /// Time in microseconds for which its CPU quota held it up.
    pub throttled_usec: u64,
    /// Memory in bytes, with caches.
    pub memory: u64,
    /// The same without the files that were not used for a while, as Kubernetes counts.
    pub memory_working_set: u64,
    /// Limit of its memory in bytes.
    pub memory_limit: Option<u64>,
    /// Processes and threads.
    pub pids: u64,
    /// Limit of their number.
    pub pids_limit: Option<u64>,
    /// Processes that were killed for want of memory.
    pub oom_kills: u64,
}

impl Usage {
    /// Out of the agent's answer.
    #[must_use]
    pub fn new(stats: &ContainerStatsResponse) -> Self {
        let limit = |limit: u64| (limit != 0).then_some(limit);
        let memory = &stats.memory;
        let of = |numbers: &std::collections::HashMap<String, u64>, name: &str| {
            numbers.get(name).copied().unwrap_or(0)
        };
        let idle = of(&memory.stat, "inactive_file");
        Self {
            cpu_usec: stats.cpu.usage_usec,
            throttled_usec: stats.cpu.throttled_usec,
            memory: memory.current,
            memory_working_set: memory.current.saturating_sub(idle),
            memory_limit: limit(memory.max),
            pids: stats.pids_current,
            pids_limit: limit(stats.pids_max),
            oom_kills: of(&memory.events, "oom_kill"),
        }
    }
}

impl HostProcess {
    /// What the process `pid` uses; `None` when it is gone.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self {
            pid,
            resident: resident(&status)?,
            cpu_seconds: cpu_seconds(&stat)?,
        })
    }
}

/// `VmRSS` of proc_pid_status(5), bytes.
fn resident(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// `utime` and `stime` of proc_pid_stat(5), as seconds.
fn cpu_seconds(stat: &str) -> Option<f64> {
    // The name before may contain anything. What follows it begins with the third field.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    let ticks = next()?.checked_add(next()?)?;
    Some(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// A process of a container.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct ProcessReport {
    /// Its container's identifier.
    pub container: String,
    /// Its container's name in the pod, if it was told.
    pub name: Option<String>,
    /// Its number in the guest.
    pub pid: u32,
    /// The identifier that it was executed under, if it was.
    pub exec: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_uses_is_read_from_proc() {
        let ours = HostProcess::of(std::process::id()).unwrap();
        assert!(ours.resident > 100 << 10, "{ours:?}");
        assert_eq!(HostProcess::of(u32::MAX), None);
        assert_eq!(resident("Name:\tx\nVmRSS:\t     12 kB\n"), Some(12 << 10));
        assert_eq!(resident("Name:\tx\n"), None, "a kernel's thread");
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20";
        let hertz = rustix::param::clock_ticks_per_second() as f64;
        assert_eq!(cpu_seconds(stat), Some(200.0 / hertz));
        assert_eq!(cpu_seconds("7 (a) S 1"), None);
    }

    #[test]
    fn usage_is_counted_as_kubernetes_does() {
        let mut stats = ContainerStatsResponse::default();
        assert_eq!(Usage::new(&stats), Usage::default());
        let memory = stats.memory.mut_or_insert_default();
        (memory.current, memory.max) = (100, 4096);
        memory.stat.insert("inactive_file".into(), 30);
        memory.events.insert("oom_kill".into(), 2);
        let usage = Usage::new(&stats);
        assert_eq!((usage.memory, usage.memory_working_set), (100, 70));
        assert_eq!((usage.memory_limit, usage.pids_limit), (Some(4096), None));
        assert_eq!(usage.oom_kills, 2);
        // A guest that lies gains nothing.
        let memory = stats.memory.mut_or_insert_default();
        memory.stat.insert("inactive_file".into(), u64::MAX);
        assert_eq!(Usage::new(&stats).memory_working_set, 0);
    }

    #[test]
    fn a_guest_is_heard_on_what_it_was_asked_for_alone() {
        let container = |id: &str, status: &str| ContainerReport {
            id: id.into(),
            status: status.into(),
            ..ContainerReport::default()
        };
        let mut report = Report {
            containers: vec![container("a", RUNNING), container("b", STOPPED)],
            ..Report::default()
        };
        assert_eq!(report.not_stopped(), ["a"]);
        let mut stats = GuestStatsResponse::default();
        for id in ["a", "b", "c"] {
            let usage = ContainerStatsResponse {
                pids_current: 3,
                ..Default::default()
            };
            stats.containers.insert(id.into(), usage);
        }
        report.add_guest(&stats);
        assert!(report.guest_answers);
        let [a, b] = &report.containers[..] else {
            panic!("{report:?}");
        };
        assert_eq!((a.usage.map(|usage| usage.pids), b.usage), (Some(3), None));
    }

    #[test]
    fn reports_of_another_version_are_understood() {
        let report: Report = serde_json::from_str(r#"{"vcpus": 2, "news": []}"#).unwrap();
        assert_eq!(report.vcpus, 2);
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }
}
