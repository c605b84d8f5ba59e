//! What a container uses, as `events --stats` of runc prints it.

use nacre_pod::agent::ContainerStats;
use serde_json::{Map, Value, json};

/// A limit that there is none of.
const UNLIMITED: u64 = u64::MAX;

/// Beside the event, for the verb: how many processes the kernel has killed for want of memory.
const OOM_KILLS: &str = "oomKills";

/// Takes out of an [`event`] what does not belong there.
pub(crate) fn take_oom_kills(event: &mut Value) -> u64 {
    let kills = event
        .as_object_mut()
        .and_then(|event| event.remove(OOM_KILLS));
    kills.and_then(|kills| kills.as_u64()).unwrap_or(0)
}

/// The event, with the number of such kills beside it.
pub(crate) fn event(id: &str, stats: &ContainerStats) -> Value {
    let cpu = stats.cpu.as_ref().cloned().unwrap_or_default();
    let memory = stats.memory.as_ref().cloned().unwrap_or_default();
    let limit = |limit| if limit == 0 { UNLIMITED } else { limit };
    let nanoseconds = |microseconds: u64| microseconds.saturating_mul(1000);
    let failures = memory.events.get("max").copied().unwrap_or(0);
    let raw: Map<_, _> = memory
        .stat
        .iter()
        .map(|(name, value)| (name.clone(), json!(value)))
        .collect();
    let mut pids = json!({ "current": stats.pids_current });
    if stats.pids_max > 0 {
        pids["limit"] = json!(stats.pids_max);
    }
    json!({
        "type": "stats",
        "id": id,
        OOM_KILLS: memory.events.get("oom_kill").copied().unwrap_or(0),
        "data": {
            "cpu": {
                "usage": {
                    "total": nanoseconds(cpu.usage_usec),
                    "kernel": nanoseconds(cpu.system_usec),
                    "user": nanoseconds(cpu.user_usec),
                },
                "throttling": {
                    "periods": cpu.nr_periods,
                    "throttledPeriods": cpu.nr_throttled,
                    "throttledTime": nanoseconds(cpu.throttled_usec),
                },
            },
            "memory": {
                "cache": memory.stat.get("file").copied().unwrap_or(0),
                "usage": {
                    "limit": limit(memory.max),
                    "usage": memory.current,
                    "failcnt": failures,
                },
                "swap": {
                    "limit": limit(memory.swap_max),
                    "usage": memory.swap_current,
                    "failcnt": 0,
                },
                "raw": raw,
            },
            "pids": pids,
            "blkio": blkio(stats),
            "hugetlb": {},
            "intel_rdt": {},
            "network_interfaces": null,
        },
    })
}

/// Counters of block devices of the guest, under the names of cgroup version 1.
fn blkio(stats: &ContainerStats) -> Value {
    let mut bytes = Vec::new();
    let mut operations = Vec::new();
    for device in &stats.io {
        let entry = |op: &str, value: u64| json!({ "major": device.major, "minor": device.minor, "op": op, "value": value });
        bytes.extend([entry("Read", device.rbytes), entry("Write", device.wbytes)]);
        operations.extend([entry("Read", device.rios), entry("Write", device.wios)]);
    }
    if bytes.is_empty() {
        return json!({});
    }
    json!({ "ioServiceBytesRecursive": bytes, "ioServicedRecursive": operations })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_limit_says_so_as_runc_does() {
        let mut stats = ContainerStats {
            pids_current: 2,
            ..Default::default()
        };
        let data = event("x", &stats)["data"].take();
        assert_eq!(data["memory"]["usage"]["limit"], UNLIMITED);
        assert_eq!(data["pids"], json!({ "current": 2 }));
        assert_eq!(data["blkio"], json!({}));
        stats.pids_max = 7;
        let memory = stats.memory.mut_or_insert_default();
        memory.events.insert("oom_kill".into(), 3);
        let mut told = event("x", &stats);
        assert_eq!(take_oom_kills(&mut told), 3);
        assert_eq!(told.as_object().unwrap().len(), 3);
        assert_eq!(event("x", &stats)["data"]["pids"]["limit"], 7);
    }
}
