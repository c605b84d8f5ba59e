//! Every field of a full configuration with values that it cannot have: thousands of
//! specifications, each of which is either understood or refused in one line by its field.

use serde_json::{Map, Value, json};

use super::*;

/// A configuration that says something in every field that a guest honours.
fn full() -> Value {
    let set = json!(["CAP_KILL", "CAP_CHOWN"]);
    let mapping = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
    json!({
        "ociVersion": "1.2.0",
        "hostname": "name",
        "domainname": "example.org",
        "annotations": { "org.example": "x" },
        "root": { "path": "rootfs", "readonly": true },
        "hooks": { "startContainer": [{
            "path": "/bin/true", "args": ["true"], "env": ["A=1"], "timeout": 5 }] },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"] },
            { "destination": "/tmp", "type": "tmpfs", "source": "tmpfs",
              "options": ["size=64k", "mode=1777"] },
            { "destination": "/data", "type": "bind", "source": "/srv",
              "options": ["rbind", "ro", "rprivate"] },
        ],
        "process": {
            "terminal": true,
            "consoleSize": { "height": 24, "width": 80 },
            "user": { "uid": 1, "gid": 2, "umask": 18, "additionalGids": [3, 4] },
            "args": ["sh", "-c"],
            "env": ["PATH=/bin", "A=1"],
            "cwd": "/",
            "capabilities": { "bounding": set, "effective": set, "inheritable": set,
                "permitted": set, "ambient": set },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096 }],
            "noNewPrivileges": true,
            "apparmorProfile": "unconfined",
            "oomScoreAdj": 100,
            "selinuxLabel": "",
            "ioPriority": { "class": "IOPRIO_CLASS_BE", "priority": 4 },
            "scheduler": { "policy": "SCHED_OTHER", "nice": 1, "priority": 0,
                "flags": ["SCHED_FLAG_RESET_ON_FORK"], "runtime": 0, "deadline": 0, "period": 0 },
        },
        "linux": {
            "uidMappings": mapping, "gidMappings": mapping,
            "sysctl": { "net.ipv4.ip_forward": "1", "kernel.shmmax": "4096" },
            "timeOffsets": { "monotonic": { "secs": 1, "nanosecs": 2 } },
            "cgroupsPath": "/pods/x",
            "namespaces": [
                { "type": "pid" }, { "type": "network", "path": "/run/netns/x" }, { "type": "ipc" },
                { "type": "uts" }, { "type": "mount" }, { "type": "cgroup" }, { "type": "user" },
                { "type": "time" },
            ],
            "devices": [{ "path": "/dev/fuse", "type": "c", "major": 10, "minor": 229,
                "fileMode": 432, "uid": 0, "gid": 0 }],
            "resources": {
                "devices": [{ "allow": false, "type": "c", "major": 1, "minor": 1, "access": "rwm" }],
                "memory": { "limit": 67_108_864, "reservation": 33_554_432, "swap": 134_217_728,
                    "checkBeforeUpdate": true },
                "cpu": { "shares": 1024, "quota": 200_000, "burst": 1000, "period": 100_000,
                    "idle": 0 },
                "pids": { "limit": 100 },
                "hugepageLimits": [{ "pageSize": "2MB", "limit": 0 }],
                "unified": { "memory.high": "1048576" },
            },
            "rootfsPropagation": "rprivate",
            "seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
                "architectures": ["SCMP_ARCH_X86_64"],
                "flags": ["SECCOMP_FILTER_FLAG_LOG"],
                "syscalls": [{ "names": ["read", "write"], "action": "SCMP_ACT_ALLOW",
                    "errnoRet": 1, "args": [
                        { "index": 0, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_EQ" }] }],
            },
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"],
            "personality": { "domain": "LINUX", "flags": [] },
        },
    })
}

/// What no field, or hardly any, may be.
fn bad_values() -> Vec<Value> {
    let deep = (0..100).fold(json!(1), |inner, _| json!([inner]));
    let wide: Map<_, _> = (0..5000).map(|n| (n.to_string(), json!(n))).collect();
    vec![
        json!(null),
        json!(true),
        json!(false),
        json!(0),
        json!(-1),
        json!(-2),
        json!(1.5),
        json!(1e308),
        json!(4_294_967_295_u32),
        json!(4_294_967_296_u64),
        json!(i64::MIN),
        json!(i64::MAX),
        json!(u64::MAX),
        json!(""),
        json!("unknown"),
        json!("zero\0byte"),
        json!("line\nfeed\u{1b}[31m"),
        json!("../../etc"),
        json!("/"),
        json!("ü".repeat(100_000)),
        json!([]),
        json!([null]),
        json!([[]]),
        json!(["unknown"]),
        json!(["/", "/"]),
        json!(vec!["x"; 5000]),
        json!({}),
        json!({ "unknown": {} }),
        json!({ "path": 7, "type": [], "": "" }),
        Value::Object(wide),
        deep,
    ]
}

/// The place of every value in a configuration, as JSON pointer and as a field is named.
fn places(value: &Value, pointer: &str, field: &str, found: &mut Vec<(String, String)>) {
    if !pointer.is_empty() {
        found.push((pointer.to_owned(), field.to_owned()));
    }
    match value {
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                places(
                    item,
                    &format!("{pointer}/{index}"),
                    &format!("{field}[{index}]"),
                    found,
                );
            }
        }
        Value::Object(fields) => {
            for (key, value) in fields {
                let field = match field {
                    "" => key.clone(),
                    field => format!("{field}.{key}"),
                };
                places(value, &format!("{pointer}/{key}"), &field, found);
            }
        }
        _ => {}
    }
}

/// Whether a refusal is about a field, one within it, or one that goes with it.
fn is_about(refused: &str, changed: &str) -> bool {
    let goes_with: &[&str] = match changed {
        // Whether there is a namespace decides on what needs it.
        place if place.starts_with("linux.namespaces") => &[
            "linux.uidMappings",
            "linux.gidMappings",
            "linux.timeOffsets",
            "linux.namespaces",
        ],
        // The file system decides on the options.
        place if place.starts_with("mounts[") => &["mounts["],
        _ => &[],
    };
    refused.starts_with(changed)
        || changed.starts_with(refused)
        || goes_with.iter().any(|field| refused.starts_with(field))
}

fn text_of(text: &str, length: usize) -> String {
    text.escape_debug().take(length).collect()
}

#[test]
fn the_full_configuration_is_understood() {
    understand(full(), Role::Alone).unwrap();
}

#[test]
fn each_field_with_a_value_that_it_cannot_have_is_refused_in_one_line_by_its_name() {
    let full = full();
    let mut all = Vec::new();
    places(&full, "", "", &mut all);
    let (mut cases, mut refused) = (0, 0);
    let mut wrong = Vec::new();
    for (pointer, field) in &all {
        for bad in bad_values() {
            let mut spec = full.clone();
            *spec.pointer_mut(pointer).unwrap() = bad.clone();
            cases += 1;
            let Err(refusal) = understand(spec, Role::Alone) else {
                continue;
            };
            refused += 1;
            let line = refusal.to_string();
            let is_one_line = line.chars().count() < 600 && !line.contains(char::is_control);
            if !is_one_line || !is_about(&refusal.field, field) {
                let [shown, line] = [bad.to_string(), line].map(|text| text_of(&text, 100));
                wrong.push(format!("{field} as {shown}: {line}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}: {}", wrong.len(), wrong.join("\n"));
    assert!(cases > 5000, "{cases}");
    assert!(refused > cases * 2 / 3, "{refused} of {cases}");
}

#[test]
fn each_field_that_is_missing_is_refused_by_its_name_or_not_needed() {
    let full = full();
    let mut all = Vec::new();
    places(&full, "", "", &mut all);
    for (pointer, field) in &all {
        let mut spec = full.clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        match spec.pointer_mut(parent).unwrap() {
            Value::Object(fields) => fields.remove(key),
            Value::Array(items) => Some(items.remove(key.parse().unwrap())),
            _ => unreachable!(),
        };
        if let Err(refusal) = understand(spec, Role::Alone) {
            assert!(is_about(&refusal.field, field), "{field}: {refusal}");
        }
    }
}
