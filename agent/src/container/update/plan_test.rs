use std::collections::HashMap;

use serde_json::{Value, json};

use super::*;

/// The writes for an update of a cgroup with these files, as `file=value`.
fn planned(update: &Value, files: &[(&str, &str)]) -> Result<Vec<String>, String> {
    let files: HashMap<_, _> = files.iter().copied().collect();
    let current = |file: &str| {
        Some(
            files
                .get(file)
                .map_or_else(String::new, |v| (*v).to_owned()),
        )
    };
    let resources = parse(update.to_string().as_bytes()).map_err(|error| error.to_string())?;
    let writes = plan(&resources, &current).map_err(|error| error.to_string())?;
    Ok(writes
        .into_iter()
        .map(|write| format!("{}={}", write.file, write.value))
        .collect())
}

#[test]
fn quota_and_period_may_come_alone() {
    let now = [("cpu.max", "max 100000\n"), ("cpu.max.burst", "0\n")];
    for (cpu, expected) in [
        (
            json!({"quota": 50000, "period": 200000}),
            "cpu.max=50000 200000",
        ),
        (json!({"quota": 50000}), "cpu.max=50000 100000"),
        (json!({"period": 20000}), "cpu.max=max 20000"),
        (json!({"quota": -1}), "cpu.max=max 100000"),
        (json!({"quota": i64::MIN}), "cpu.max=max 100000"),
        (json!({"shares": 1024}), "cpu.weight=100"),
        (json!({"idle": 1, "shares": 1024}), "cpu.idle=1"),
    ] {
        assert_eq!(planned(&json!({"cpu": cpu}), &now).unwrap(), [expected]);
    }
    let nothing = json!({"cpu": {"quota": 0, "period": 0, "shares": 0, "cpus": "", "mems": ""}});
    assert_eq!(planned(&nothing, &now).unwrap(), [""; 0]);
}

#[test]
fn a_burst_is_never_above_the_quota() {
    let update = json!({"cpu": {"quota": 60000, "burst": 50000}});
    let grown = planned(
        &update,
        &[("cpu.max", "40000 100000"), ("cpu.max.burst", "30000")],
    );
    assert_eq!(
        grown.unwrap(),
        ["cpu.max=60000 100000", "cpu.max.burst=50000"]
    );
    let shrunk = planned(
        &update,
        &[("cpu.max", "90000 100000"), ("cpu.max.burst", "80000")],
    );
    assert_eq!(
        shrunk.unwrap(),
        ["cpu.max.burst=50000", "cpu.max=60000 100000"]
    );
}

#[test]
fn swap_is_told_apart_from_memory() {
    let now = [("memory.max", "1000\n"), ("memory.swap.max", "max\n")];
    for (memory, expected) in [
        (
            json!({"limit": 500, "swap": 700}),
            vec!["memory.swap.max=200", "memory.max=500"],
        ),
        (
            json!({"limit": 500, "swap": 500}),
            vec!["memory.swap.max=0", "memory.max=500"],
        ),
        (json!({"swap": 1500}), vec!["memory.swap.max=500"]),
        (json!({"swap": -1}), vec!["memory.swap.max=max"]),
        (json!({"limit": -1}), vec!["memory.max=max"]),
        (
            json!({"limit": 0, "reservation": 64}),
            vec!["memory.low=64"],
        ),
        (json!({"reservation": -1}), vec!["memory.low=max"]),
    ] {
        assert_eq!(planned(&json!({"memory": memory}), &now).unwrap(), expected);
    }
    // A guest without swapping limits none.
    let without = planned(&json!({"memory": {"limit": 5, "swap": 5}}), &[]);
    assert_eq!(without.unwrap(), ["memory.max=5"]);
}

#[test]
fn processes_and_files_of_controllers_are_limited() {
    let update = json!({"pids": {"limit": 7}, "unified": {"memory.high": "5", "cpu.idle": "1"}});
    let expected = ["pids.max=7", "cpu.idle=1", "memory.high=5"];
    assert_eq!(planned(&update, &[]).unwrap(), expected);
    let unlimited = json!({"pids": {"limit": -1}});
    assert_eq!(planned(&unlimited, &[]).unwrap(), ["pids.max=max"]);
    assert_eq!(planned(&json!({}), &[]).unwrap(), [""; 0]);
}

#[test]
fn what_cannot_be_honoured_is_named() {
    let now = [("memory.max", "max\n"), ("memory.current", "4096\n")];
    for (update, field) in [
        (json!({"cpu": {"cpus": "0-1"}}), "cpu.cpus"),
        (json!({"cpu": {"mems": "0"}}), "cpu.mems"),
        (
            json!({"cpu": {"realtimeRuntime": 5}}),
            "cpu.realtimeRuntime",
        ),
        (json!({"memory": {"limit": -2}}), "memory.limit"),
        (json!({"memory": {"swap": 5}}), "memory.swap"),
        (json!({"memory": {"limit": 9, "swap": 5}}), "memory.swap"),
        (
            json!({"memory": {"limit": 9, "swap": i64::MIN}}),
            "memory.swap",
        ),
        (json!({"memory": {"swappiness": 5}}), "memory.swappiness"),
        (json!({"memory": {"kernel": 5}}), "memory.kernel"),
        (
            json!({"memory": {"disableOOMKiller": true}}),
            "memory.disableOOMKiller",
        ),
        (
            json!({"memory": {"limit": 99, "checkBeforeUpdate": true}}),
            "memory.limit",
        ),
        (
            json!({"hugepageLimits": [{"pageSize": "2", "limit": 1}]}),
            "hugepageLimits[0].pageSize",
        ),
        (json!({"blockIO": {"weight": 1}}), "blockIO.weight"),
        (json!({"network": {"classID": 5}}), "network"),
        (json!({"rdma": {"x": {"hcaHandles": 1}}}), "rdma"),
        (
            json!({"unified": {"cgroup.freeze": "1"}}),
            "unified[\"cgroup.freeze\"]",
        ),
        (
            json!({"unified": {"../memory.max": "1"}}),
            "unified[\"../memory.max\"]",
        ),
        (json!({"unified": {"tasks": "1"}}), "unified[\"tasks\"]"),
    ] {
        let error = planned(&update, &now).unwrap_err();
        let named = format!("linux.resources.{field}: ");
        assert!(
            error.starts_with(&named),
            "{named:?} expected, not {error:?}"
        );
    }
    assert!(
        planned(&json!(5), &now)
            .unwrap_err()
            .starts_with("linux.resources: ")
    );
}
