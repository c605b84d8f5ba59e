//! What a container uses, as containerd expects it: the message of cgroups
//! version 2, which is what containers have inside the guest.

use std::collections::HashMap;

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, NetworkStat, PidsStat,
};
use nacre_pod::agent::{ContainerStats, CpuStats, IoStats, MemoryStats};
use nacre_pod::status::InterfaceReport;
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField, MessageFull};

use crate::failure::Failure;

/// containerd's message of what a container uses. The network is the pod's, of which each
/// container sees all.
pub(crate) fn metrics(
    stats: &ContainerStats,
    interfaces: &[InterfaceReport],
) -> Result<Any, Failure> {
    let metrics = Metrics {
        pids: some(PidsStat {
            current: stats.pids_current,
            limit: stats.pids_max,
            ..Default::default()
        }),
        cpu: some(cpu(&stats.cpu)),
        memory: some(memory(&stats.memory)),
        memory_events: some(memory_events(&stats.memory.events)),
        io: some(IOStat {
            usage: stats.io.iter().map(io).collect(),
            ..Default::default()
        }),
        network: interfaces.iter().map(network).collect(),
        ..Default::default()
    };
    let value = metrics
        .write_to_bytes()
        .map_err(|error| Failure::internal(error.to_string()))?;
    Ok(Any {
        type_url: Metrics::descriptor().full_name().to_owned(),
        value,
        ..Default::default()
    })
}

/// Adds what another container uses. Limits are of containers: a sum has none.
pub(crate) fn add(sum: &mut ContainerStats, other: &ContainerStats) {
    let add = |a: &mut u64, b: u64| *a = a.saturating_add(b);
    add(&mut sum.pids_current, other.pids_current);
    let cpu = sum.cpu.mut_or_insert_default();
    add(&mut cpu.usage_usec, other.cpu.usage_usec);
    add(&mut cpu.user_usec, other.cpu.user_usec);
    add(&mut cpu.system_usec, other.cpu.system_usec);
    add(&mut cpu.nr_periods, other.cpu.nr_periods);
    add(&mut cpu.nr_throttled, other.cpu.nr_throttled);
    add(&mut cpu.throttled_usec, other.cpu.throttled_usec);
    let memory = sum.memory.mut_or_insert_default();
    add(&mut memory.current, other.memory.current);
    add(&mut memory.swap_current, other.memory.swap_current);
    for (name, value) in &other.memory.stat {
        add(memory.stat.entry(name.clone()).or_default(), *value);
    }
    for (name, value) in &other.memory.events {
        add(memory.events.entry(name.clone()).or_default(), *value);
    }
    sum.io.extend(other.io.iter().cloned());
}

fn some<T>(message: T) -> MessageField<T> {
    MessageField::some(message)
}

fn cpu(cpu: &CpuStats) -> CPUStat {
    CPUStat {
        usage_usec: cpu.usage_usec,
        user_usec: cpu.user_usec,
        system_usec: cpu.system_usec,
        nr_periods: cpu.nr_periods,
        nr_throttled: cpu.nr_throttled,
        throttled_usec: cpu.throttled_usec,
        ..Default::default()
    }
}

fn io(io: &IoStats) -> IOEntry {
    IOEntry {
        major: io.major,
        minor: io.minor,
        rbytes: io.rbytes,
        wbytes: io.wbytes,
        rios: io.rios,
        wios: io.wios,
        ..Default::default()
    }
}

fn network(interface: &InterfaceReport) -> NetworkStat {
    NetworkStat {
        name: interface.name.clone(),
        rx_bytes: interface.received_bytes,
        rx_packets: interface.received_packets,
        tx_bytes: interface.sent_bytes,
        tx_packets: interface.sent_packets,
        ..Default::default()
    }
}

fn memory(memory: &MemoryStats) -> MemoryStat {
    let stat = |name| number(&memory.stat, name);
    MemoryStat {
        anon: stat("anon"),
        file: stat("file"),
        kernel_stack: stat("kernel_stack"),
        slab: stat("slab"),
        sock: stat("sock"),
        shmem: stat("shmem"),
        file_mapped: stat("file_mapped"),
        file_dirty: stat("file_dirty"),
        file_writeback: stat("file_writeback"),
        anon_thp: stat("anon_thp"),
        inactive_anon: stat("inactive_anon"),
        active_anon: stat("active_anon"),
        inactive_file: stat("inactive_file"),
        active_file: stat("active_file"),
        unevictable: stat("unevictable"),
        slab_reclaimable: stat("slab_reclaimable"),
        slab_unreclaimable: stat("slab_unreclaimable"),
        pgfault: stat("pgfault"),
        pgmajfault: stat("pgmajfault"),
        pgrefill: stat("pgrefill"),
        pgscan: stat("pgscan"),
        pgsteal: stat("pgsteal"),
        pgactivate: stat("pgactivate"),
        pgdeactivate: stat("pgdeactivate"),
        pglazyfree: stat("pglazyfree"),
        pglazyfreed: stat("pglazyfreed"),
        thp_fault_alloc: stat("thp_fault_alloc"),
        thp_collapse_alloc: stat("thp_collapse_alloc"),
        // Linux 5.9 split them by kind.
        workingset_refault: stat("workingset_refault_anon")
            .saturating_add(stat("workingset_refault_file")),
        workingset_activate: stat("workingset_activate_anon")
            .saturating_add(stat("workingset_activate_file")),
        workingset_nodereclaim: stat("workingset_nodereclaim"),
        usage: memory.current,
        usage_limit: or_unlimited(memory.max),
        swap_usage: memory.swap_current,
        swap_limit: or_unlimited(memory.swap_max),
        ..Default::default()
    }
}

/// No limit is the largest number, as containerd reads `max` in a cgroup's file.
fn or_unlimited(limit: u64) -> u64 {
    match limit {
        0 => u64::MAX,
        limit => limit,
    }
}

fn memory_events(events: &HashMap<String, u64>) -> MemoryEvents {
    let count = |name| number(events, name);
    MemoryEvents {
        low: count("low"),
        high: count("high"),
        max: count("max"),
        oom: count("oom"),
        oom_kill: count("oom_kill"),
        oom_group_kill: count("oom_group_kill"),
        ..Default::default()
    }
}

fn number(numbers: &HashMap<String, u64>, name: &str) -> u64 {
    numbers.get(name).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_arrive_under_containerds_names() {
        let mut stats = ContainerStats {
            pids_current: 3,
            cpu: some(CpuStats {
                usage_usec: 7,
                ..Default::default()
            }),
            io: vec![IoStats {
                major: 8,
                rbytes: 9,
                ..Default::default()
            }],
            ..Default::default()
        };
        let memory = stats.memory.mut_or_insert_default();
        memory.current = 4096;
        memory.stat.insert("inactive_file".into(), 5);
        memory
            .stat
            .insert("workingset_refault_anon".into(), u64::MAX);
        memory.stat.insert("workingset_refault_file".into(), 1);
        memory.events.insert("oom_kill".into(), 2);

        let eth0 = InterfaceReport {
            name: "eth0".into(),
            received_bytes: 10,
            sent_packets: 4,
            ..InterfaceReport::default()
        };
        let any = metrics(&stats, &[eth0]).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        let metrics = Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!(metrics.pids.current, 3);
        assert_eq!(metrics.cpu.usage_usec, 7);
        assert_eq!(metrics.memory.usage, 4096);
        assert_eq!(metrics.memory.usage_limit, u64::MAX);
        assert_eq!(metrics.memory.inactive_file, 5);
        assert_eq!(metrics.memory.workingset_refault, u64::MAX);
        assert_eq!(metrics.memory_events.oom_kill, 2);
        assert_eq!(
            (metrics.io.usage[0].major, metrics.io.usage[0].rbytes),
            (8, 9)
        );
        let eth0 = &metrics.network[0];
        assert_eq!(
            (eth0.name.as_str(), eth0.rx_bytes, eth0.tx_packets),
            ("eth0", 10, 4)
        );
    }

    #[test]
    fn what_a_pod_uses_is_the_sum() {
        let mut one = ContainerStats {
            pids_current: 2,
            ..Default::default()
        };
        one.memory.mut_or_insert_default().current = u64::MAX;
        one.memory.mut_or_insert_default().max = 5;
        let stat = &mut one.memory.mut_or_insert_default().stat;
        stat.insert("anon".into(), 3);
        let mut sum = ContainerStats::default();
        add(&mut sum, &one);
        add(&mut sum, &one);
        assert_eq!(sum.pids_current, 4);
        assert_eq!((sum.memory.current, sum.memory.max), (u64::MAX, 0));
        assert_eq!(sum.memory.stat["anon"], 6);
    }

    #[test]
    fn a_guest_that_says_nothing_uses_nothing() {
        let any = metrics(&ContainerStats::new(), &[]).unwrap();
        let metrics = Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!(metrics.memory.usage, 0);
        assert!(metrics.io.usage.is_empty());
    }
}
