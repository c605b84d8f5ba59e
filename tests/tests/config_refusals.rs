//! Values of `config.json` that make no sense, through the program itself: one line that
//! names the field, and nothing left behind. `pod`'s own tests try thousands.

#![allow(clippy::unwrap_used)]

use nacre_tests::{Clean, TestBundle, VmRun};
use serde_json::{Value, json};

/// Fails unless `vm-run` has said one line about `field`, and nothing else.
fn assert_refused(bundle: &TestBundle, field: &str) {
    let ended = VmRun::bundle(bundle, &[]).expect_code(1);
    assert_eq!(ended.stderr.lines().count(), 1, "{field}: {ended}");
    assert!(ended.stderr.starts_with("vm-run: "), "{field}: {ended}");
    assert!(
        ended.stderr.contains(&format!("{field}: ")),
        "{field}: {ended}"
    );
    assert!(ended.stderr.len() < 1000, "{field}: {ended}");
    assert_eq!(ended.text(), "");
}

#[test]
fn a_value_of_the_wrong_kind_or_size_is_refused_before_a_guest_is_started() {
    let clean = Clean::slate();
    let start = std::time::Instant::now();
    let long = "x".repeat(100_000);
    let cases: &[(&str, Value, &str)] = &[
        ("/hostname", json!(long), "hostname"),
        ("/process/user/uid", json!("root"), "process.user.uid"),
        ("/process/user/uid", json!(1e12), "process.user.uid"),
        (
            "/process/user/additionalGids",
            json!([-1]),
            "process.user.additionalGids[0]",
        ),
        ("/process/user/umask", json!(4096), "process.user.umask"),
        ("/process/env", json!(["A=1", 7]), "process.env[1]"),
        ("/process/args", json!(["sh", "a\0b"]), "process.args[1]"),
        ("/process/cwd", json!(7), "process.cwd"),
        ("/process/oomScoreAdj", json!(5000), "process.oomScoreAdj"),
        (
            "/process/rlimits",
            json!([{ "type": "RLIMIT_MOON", "soft": 1, "hard": 1 }]),
            "process.rlimits[0].type",
        ),
        (
            "/process/rlimits",
            json!([{ "type": "RLIMIT_CPU", "soft": 2, "hard": 1 }]),
            "process.rlimits[0]",
        ),
        (
            "/process/scheduler",
            json!({ "policy": "SCHED_MOON" }),
            "process.scheduler.policy",
        ),
        (
            "/process/ioPriority",
            json!({ "class": long, "priority": 0 }),
            "process.ioPriority.class",
        ),
        (
            "/mounts/1/options",
            json!(["sise=1m"]),
            "mounts[1].options[0]",
        ),
        ("/mounts/1/options", json!({}), "mounts[1].options"),
        ("/mounts/1/type", json!(long), "mounts[1].type"),
        (
            "/linux/namespaces/-",
            json!({ "type": "moon" }),
            "linux.namespaces[6].type",
        ),
        (
            "/linux/namespaces/-",
            json!({ "type": "user" }),
            "linux.uidMappings",
        ),
        (
            "/linux/namespaces/-",
            json!({ "type": "uts" }),
            "linux.namespaces",
        ),
        (
            "/linux/timeOffsets",
            json!({ "monotonic": { "secs": 1 } }),
            "linux.timeOffsets",
        ),
        (
            "/linux/maskedPaths",
            json!(["proc"]),
            "linux.maskedPaths[0]",
        ),
        (
            "/linux/resources/memory/limit",
            json!(-7),
            "linux.resources.memory.limit",
        ),
        (
            "/linux/resources/memory/limit",
            json!("64M"),
            "linux.resources.memory.limit",
        ),
        (
            "/linux/resources/unified",
            json!({ "memory.high": 7 }),
            "linux.resources.unified.memory.high",
        ),
        (
            "/linux/seccomp",
            json!({ "defaultAction": "SCMP_ACT_MOON" }),
            "linux.seccomp.defaultAction",
        ),
        (
            "/linux/seccomp",
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["Z80"] }),
            "linux.seccomp.architectures[0]",
        ),
        (
            "/linux/devices",
            json!([{ "path": "/etc/x", "type": "c", "major": 1, "minor": 3 }]),
            "linux.devices[0].path",
        ),
        (
            "/linux/personality",
            json!({ "domain": "LINUX64" }),
            "linux.personality.domain",
        ),
    ];
    for (pointer, value, field) in cases {
        let bundle = TestBundle::new(&["true"]).with(pointer, value.clone());
        assert_refused(&bundle, field);
    }
    clean.assert_nothing_left();
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
}

#[test]
fn what_only_the_guest_can_tell_is_refused_by_its_field_as_well() {
    let clean = Clean::slate();
    let huge = u64::MAX - 1;
    let cases: &[(&str, Value, &str)] = &[
        (
            "/linux/sysctl",
            json!({ "vm.swappiness": "1" }),
            r#"linux.sysctl["vm.swappiness"]"#,
        ),
        (
            "/linux/sysctl",
            json!({ "kernel.shmmax": "many" }),
            r#"linux.sysctl["kernel.shmmax"]"#,
        ),
        (
            "/linux/resources/unified",
            json!({ "memory.moon": "1" }),
            r#"linux.resources.unified["memory.moon"]"#,
        ),
        (
            "/mounts/1/options",
            json!(["size=lots"]),
            "mounts[1].options[0]",
        ),
        (
            "/process/rlimits",
            json!([{ "type": "RLIMIT_NOFILE", "soft": 1, "hard": huge }]),
            "process.rlimits[0]",
        ),
        ("/process/cwd", json!("/bin/busybox"), "process.cwd"),
    ];
    let failed: Vec<_> = cases
        .iter()
        .filter_map(|(pointer, value, field)| {
            let bundle = TestBundle::new(&["true"]).with(pointer, value.clone());
            let ended = VmRun::bundle(&bundle, &[]);
            let is_named = ended.code() == 1
                && ended.stderr.lines().count() == 1
                && ended.stderr.contains(&format!("{field}: "));
            (!is_named).then(|| format!("{field}: {ended}"))
        })
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    clean.assert_nothing_left();
}
