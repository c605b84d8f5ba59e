use serde_json::json;

use super::*;

fn check(spec: &Value) -> Result<(), Refusal> {
    super::check(spec, Role::Alone)
}

/// What `runc spec` writes, less what does not matter here.
fn accepted() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "process": { "terminal": true, "args": ["sh"], "cwd": "/" },
        "root": { "path": "rootfs", "readonly": true },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/data", "type": "bind", "source": "/srv", "options": ["rbind", "ro", "rprivate"] },
        ],
        "linux": {
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": [
                { "type": "pid" }, { "type": "network" }, { "type": "ipc" },
                { "type": "uts" }, { "type": "mount" }, { "type": "cgroup" },
            ],
        },
    })
}

/// The accepted specification with one value set, at a path of JSON pointer form.
fn with(pointer: &str, value: Value) -> Value {
    let mut spec = accepted();
    let mut place = &mut spec;
    for key in pointer.split('/').skip(1) {
        place = match key.parse::<usize>() {
            Ok(index) => {
                let items = place.as_array_mut().unwrap();
                if index == items.len() {
                    items.push(Value::Null);
                }
                &mut items[index]
            }
            Err(_) => {
                if place.is_null() {
                    *place = json!({});
                }
                &mut place[key]
            }
        };
    }
    *place = value;
    spec
}

#[test]
fn a_plain_specification_is_accepted() {
    assert_eq!(check(&accepted()), Ok(()));
}

#[test]
fn every_field_that_cannot_be_honoured_is_refused_by_its_name() {
    let hook = |path, timeout: i32| json!([{ "path": path, "timeout": timeout }]);
    let throttle = json!([{ "major": 8, "minor": 0, "rate": 1 }]);
    for (pointer, value, field) in [
        ("/root", Value::Null, "root.path"),
        ("/root/path", json!(""), "root.path"),
        ("/process", Value::Null, "process"),
        ("/linux", Value::Null, "linux"),
        ("/process/args", json!([]), "process.args"),
        ("/process/args", Value::Null, "process.args"),
        ("/process/args/0", json!(""), "process.args[0]"),
        ("/process/cwd", json!("tmp"), "process.cwd"),
        (
            "/process/apparmorProfile",
            json!("strict"),
            "process.apparmorProfile",
        ),
        (
            "/process/selinuxLabel",
            json!("system_u:x"),
            "process.selinuxLabel",
        ),
        (
            "/process/execCPUAffinity",
            json!({ "initial": "0" }),
            "process.execCPUAffinity",
        ),
        ("/vm", json!({ "kernel": { "path": "/vmlinuz" } }), "vm"),
        ("/windows", json!({ "layerFolders": ["x"] }), "windows"),
        ("/solaris", json!({ "milestone": "x" }), "solaris"),
        ("/zos", json!({ "namespaces": [] }), "zos"),
        ("/freebsd", json!({ "jail": {} }), "freebsd"),
        ("/hooks/prestart", hook("true", 1), "hooks.prestart[0].path"),
        (
            "/hooks/createRuntime",
            hook("./true", 1),
            "hooks.createRuntime[0].path",
        ),
        (
            "/hooks/createContainer",
            hook("", 1),
            "hooks.createContainer[0].path",
        ),
        (
            "/hooks/startContainer",
            hook("/t", 0),
            "hooks.startContainer[0].timeout",
        ),
        (
            "/hooks/poststart",
            hook("/t", -1),
            "hooks.poststart[0].timeout",
        ),
        (
            "/hooks/poststop",
            hook("/t", 0),
            "hooks.poststop[0].timeout",
        ),
        (
            "/mounts/0/destination",
            json!("proc"),
            "mounts[0].destination",
        ),
        ("/mounts/0/type", json!("nfs"), "mounts[0].type"),
        ("/mounts/0/type", json!("overlay"), "mounts[0].type"),
        ("/mounts/0/type", Value::Null, "mounts[0].type"),
        (
            "/mounts/1/options/2",
            json!("rshared"),
            "mounts[1].options[2]",
        ),
        (
            "/mounts/1/options/2",
            json!("shared"),
            "mounts[1].options[2]",
        ),
        (
            "/mounts/1/options/2",
            json!("rslave"),
            "mounts[1].options[2]",
        ),
        (
            "/mounts/1/options/2",
            json!("slave"),
            "mounts[1].options[2]",
        ),
        ("/linux/mountLabel", json!("system_u:x"), "linux.mountLabel"),
        (
            "/linux/intelRdt",
            json!({ "closID": "x" }),
            "linux.intelRdt",
        ),
        (
            "/linux/memoryPolicy",
            json!({ "mode": "MPOL_BIND" }),
            "linux.memoryPolicy",
        ),
        (
            "/linux/netDevices",
            json!({ "eth0": {} }),
            "linux.netDevices",
        ),
        (
            "/linux/timeOffsets",
            json!({ "monotonic": { "secs": 1 } }),
            "linux.timeOffsets",
        ),
        (
            "/linux/seccomp/listenerPath",
            json!("/run/x"),
            "linux.seccomp.listenerPath",
        ),
        (
            "/linux/seccomp/defaultAction",
            json!("SCMP_ACT_NOTIFY"),
            "linux.seccomp.defaultAction",
        ),
        (
            "/linux/seccomp/syscalls",
            json!([{ "names": ["a"], "action": "SCMP_ACT_ALLOW" }, { "names": ["b"], "action": "SCMP_ACT_NOTIFY" }]),
            "linux.seccomp.syscalls[1].action",
        ),
        (
            "/linux/namespaces/0/path",
            json!("/proc/1/ns/pid"),
            "linux.namespaces[0].path",
        ),
        (
            "/linux/namespaces/2/path",
            json!("/proc/1/ns/ipc"),
            "linux.namespaces[2].path",
        ),
        (
            "/linux/namespaces/6",
            json!({ "type": "user", "path": "/x" }),
            "linux.namespaces[6].path",
        ),
        (
            "/linux/devices",
            json!([{ "path": "/dev/vda", "type": "b", "major": 254, "minor": 0 }]),
            "linux.devices[0]",
        ),
        (
            "/linux/resources/rdma",
            json!({ "mlx5_1": { "hcaHandles": 3 } }),
            "linux.resources.rdma",
        ),
        (
            "/linux/resources/network/classID",
            json!(7),
            "linux.resources.network.classID",
        ),
        (
            "/linux/resources/network/priorities",
            json!([{ "name": "eth0", "priority": 1 }]),
            "linux.resources.network.priorities",
        ),
        (
            "/linux/resources/blockIO/weight",
            json!(1001),
            "linux.resources.blockIO.weight",
        ),
        (
            "/linux/resources/blockIO/leafWeight",
            json!(10),
            "linux.resources.blockIO.leafWeight",
        ),
        (
            "/linux/resources/blockIO/weightDevice",
            throttle.clone(),
            "linux.resources.blockIO.weightDevice",
        ),
        (
            "/linux/resources/blockIO/throttleReadBpsDevice",
            throttle.clone(),
            "linux.resources.blockIO.throttleReadBpsDevice",
        ),
        (
            "/linux/resources/blockIO/throttleWriteBpsDevice",
            throttle.clone(),
            "linux.resources.blockIO.throttleWriteBpsDevice",
        ),
        (
            "/linux/resources/blockIO/throttleReadIOPSDevice",
            throttle.clone(),
            "linux.resources.blockIO.throttleReadIOPSDevice",
        ),
        (
            "/linux/resources/blockIO/throttleWriteIOPSDevice",
            throttle,
            "linux.resources.blockIO.throttleWriteIOPSDevice",
        ),
        (
            "/linux/resources/cpu/cpus",
            json!("all"),
            "linux.resources.cpu.cpus",
        ),
        (
            "/linux/resources/cpu/mems",
            json!("0"),
            "linux.resources.cpu.mems",
        ),
        (
            "/linux/resources/cpu/realtimeRuntime",
            json!(950_000),
            "linux.resources.cpu.realtimeRuntime",
        ),
        (
            "/linux/resources/cpu/realtimePeriod",
            json!(1_000_000),
            "linux.resources.cpu.realtimePeriod",
        ),
        (
            "/linux/resources/memory/kernel",
            json!(1),
            "linux.resources.memory.kernel",
        ),
        (
            "/linux/resources/memory/kernelTCP",
            json!(1),
            "linux.resources.memory.kernelTCP",
        ),
        (
            "/linux/uidMappings",
            json!([{ "containerID": 0, "hostID": 1000, "size": 1 }]),
            "linux.uidMappings",
        ),
        (
            "/linux/gidMappings",
            json!([{ "containerID": 0, "hostID": 1000, "size": 1 }]),
            "linux.gidMappings",
        ),
        (
            "/linux/namespaces/6",
            json!({ "type": "user" }),
            "linux.uidMappings",
        ),
        (
            "/linux/namespaces/6",
            json!({ "type": "pid" }),
            "linux.namespaces",
        ),
        (
            "/linux/resources/memory/swappiness",
            json!(60),
            "linux.resources.memory.swappiness",
        ),
        (
            "/linux/resources/memory/disableOOMKiller",
            json!(true),
            "linux.resources.memory.disableOOMKiller",
        ),
        (
            "/linux/resources/hugepageLimits",
            json!([{ "pageSize": "2MB", "limit": 0 }, { "pageSize": "1GB", "limit": -1 }]),
            "linux.resources.hugepageLimits[1].limit",
        ),
    ] {
        match check(&with(pointer, value)) {
            Err(refusal) => assert_eq!(refusal.field, field, "{}", refusal.reason),
            Ok(()) => panic!("{field} was accepted"),
        }
    }
}

#[test]
fn a_value_that_no_kernel_takes_is_refused_by_its_name() {
    for (field, values) in [
        ("hostname", json!(["x".repeat(65), "a\0b"])),
        ("domainname", json!(["x".repeat(65)])),
        ("process.user.uid", json!([-1, 4_294_967_295_u32, 1e30])),
        ("process.user.gid", json!([-1, u64::MAX])),
        ("process.user.umask", json!([0o1000, -1])),
        ("process.oomScoreAdj", json!([1001, -1001])),
        ("process.consoleSize.height", json!([65_536])),
        ("process.consoleSize.width", json!([-1])),
        ("process.ioPriority.priority", json!([8, -1])),
        ("process.scheduler.nice", json!([20, -21])),
        ("process.scheduler.priority", json!([100])),
        ("linux.resources.memory.limit", json!([-2])),
        ("linux.resources.memory.reservation", json!([-2])),
        ("linux.resources.memory.swap", json!([-2, u64::MAX])),
    ] {
        for value in values.as_array().unwrap() {
            let spec = with(&format!("/{}", field.replace('.', "/")), value.clone());
            assert_eq!(check(&spec).unwrap_err().field, field, "{value}");
        }
    }
    for (pointer, value, field) in [
        (
            "/process/user/additionalGids/0",
            json!(-1),
            "process.user.additionalGids[0]",
        ),
        (
            "/linux/maskedPaths/0",
            json!("proc/kcore"),
            "linux.maskedPaths[0]",
        ),
        ("/linux/readonlyPaths/0", json!(7), "linux.readonlyPaths[0]"),
        ("/process/env/0", json!("A=\0"), "process.env[0]"),
        ("/mounts/0/options/0", json!("odd"), "mounts[0].options[0]"),
        (
            "/linux/devices/0",
            json!({ "path": "/dev/../x", "type": "c", "major": 1, "minor": 3 }),
            "linux.devices[0].path",
        ),
        (
            "/process/rlimits/0",
            json!({ "type": "RLIMIT_CORE", "soft": 2, "hard": 1 }),
            "process.rlimits[0]",
        ),
    ] {
        let (parent, _) = pointer.rsplit_once('/').unwrap();
        let mut spec = with(parent, json!([]));
        if parent == "/mounts/0/options" {
            spec = with(parent, json!(["odd"]));
        } else {
            spec.pointer_mut(parent)
                .unwrap()
                .as_array_mut()
                .unwrap()
                .push(value);
        }
        assert_eq!(check(&spec).unwrap_err().field, field);
    }
    let twice =
        json!([{ "type": "RLIMIT_CORE" }, { "type": "RLIMIT_CPU" }, { "type": "RLIMIT_CORE" }]);
    let refusal = check(&with("/process/rlimits", twice)).unwrap_err();
    assert_eq!(refusal.field, "process.rlimits[2]");
}

#[test]
fn namespaces_of_users_and_of_time_come_with_what_they_need() {
    let with_namespace = |kind: &str, field: &str, value: Value| {
        let mut spec = with("/linux/namespaces/6", json!({ "type": kind }));
        spec["linux"][field] = value;
        spec
    };
    let mappings = json!([{ "containerID": 0, "hostID": 1000, "size": 1 }]);
    let mut users = with_namespace("user", "uidMappings", mappings.clone());
    assert_eq!(check(&users).unwrap_err().field, "linux.gidMappings");
    users["linux"]["gidMappings"] = mappings;
    assert_eq!(check(&users), Ok(()));
    let refusal = super::check(&users, Role::Member).unwrap_err();
    assert_eq!(refusal.field, "linux.namespaces[6].type");
    let offsets = json!({ "monotonic": { "secs": 1 } });
    assert_eq!(
        check(&with_namespace("time", "timeOffsets", offsets)),
        Ok(())
    );
}

#[test]
fn every_rule_of_the_table_is_covered_by_the_tests_above() {
    let text = include_str!("refuse_test.rs");
    for rule in RULES {
        let field = rule.field.replace("[*]", "[");
        let covered = field
            .split('[')
            .all(|part| text.contains(part.trim_start_matches('.')));
        assert!(covered, "{} has no test", rule.field);
    }
}

#[test]
fn a_namespace_that_is_missing_would_be_the_hosts() {
    for kind in ["pid", "network", "ipc", "uts", "mount"] {
        let mut spec = accepted();
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != kind);
        let refusal = check(&spec).unwrap_err();
        assert_eq!(refusal.field, "linux.namespaces");
        assert!(
            refusal.reason.contains(&format!("{kind:?}")),
            "{}",
            refusal.reason
        );
    }
    let none = check(&with("/linux/namespaces", Value::Null)).unwrap_err();
    assert_eq!(none.field, "linux.namespaces");
}

#[test]
fn what_engines_write_without_meaning_it_is_accepted() {
    for (pointer, value) in [
        ("/hooks", json!({})),
        ("/hooks/prestart", json!([])),
        ("/hooks/startContainer", json!([{ "path": "/bin/true" }])),
        (
            "/hooks/poststop",
            json!([{ "path": "/bin/true", "timeout": null }]),
        ),
        ("/process/apparmorProfile", json!("unconfined")),
        ("/process/apparmorProfile", json!("")),
        ("/process/selinuxLabel", json!("")),
        ("/linux/mountLabel", json!("")),
        ("/linux/rootfsPropagation", json!("rprivate")),
        ("/linux/rootfsPropagation", json!("rslave")),
        ("/linux/resources/blockIO", json!({ "weight": 0 })),
        (
            "/linux/resources/cpu",
            json!({ "shares": 1024, "cpus": "", "realtimeRuntime": 0 }),
        ),
        (
            "/linux/resources/memory",
            json!({ "limit": 1 << 20, "swap": -1, "swappiness": 0, "disableOOMKiller": false }),
        ),
        (
            "/linux/resources/hugepageLimits",
            json!([{ "pageSize": "2MB", "limit": 0 }, { "pageSize": "1GB", "limit": 1 << 30 }]),
        ),
        ("/linux/resources/pids", json!({ "limit": 2048 })),
        ("/linux/resources/blockIO/weight", json!(500)),
        ("/linux/rootfsPropagation", json!("rshared")),
        ("/linux/namespaces/1/path", json!("/run/netns/pod")),
        (
            "/linux/devices",
            json!([
                { "path": "/dev/null", "type": "c", "major": 1, "minor": 3 },
                { "path": "/dev/fuse", "type": "c", "major": 10, "minor": 229 },
                { "path": "/dev/pipe", "type": "p" },
            ]),
        ),
        ("/mounts/0/type", json!("cgroup")),
        ("/mounts/1/type", json!("none")),
        ("/annotations", json!({ "org.example": "x" })),
        ("/aFieldOfTheFuture", json!(true)),
    ] {
        assert_eq!(check(&with(pointer, value)), Ok(()), "{pointer}");
    }
}

#[test]
fn a_container_alone_in_its_pod_may_be_confined_to_cpus() {
    let spec = with("/linux/resources/cpu/cpus", json!("0-3"));
    assert_eq!(check(&spec), Ok(()));
    for role in [Role::Sandbox, Role::Member] {
        let refusal = super::check(&spec, role).unwrap_err();
        assert_eq!(refusal.field, "linux.resources.cpu.cpus");
    }
}

#[test]
fn a_value_of_the_wrong_kind_is_no_panic() {
    for spec in [
        json!(null),
        json!(7),
        json!([]),
        json!({ "process": [], "mounts": {}, "linux": "x" }),
    ] {
        assert!(check(&spec).is_err(), "{spec}");
    }
}

#[test]
fn the_offending_value_is_shown_when_it_is_short() {
    let long = "x".repeat(1000);
    let refusal = check(&with("/linux/mountLabel", json!(long))).unwrap_err();
    assert!(!refusal.reason.contains("xxx"));
    let refusal = check(&with("/linux/resources/cpu/mems", json!("0-3"))).unwrap_err();
    assert!(
        refusal.reason.starts_with("\"0-3\": "),
        "{}",
        refusal.reason
    );
}

#[test]
fn a_further_container_may_join_the_pods_namespaces_and_no_others() {
    let join = |kind: &str| {
        let mut spec = accepted();
        for namespace in spec["linux"]["namespaces"].as_array_mut().unwrap() {
            if namespace["type"] == kind {
                namespace["path"] = json!(format!("/proc/7/ns/{kind}"));
            }
        }
        spec
    };
    for kind in ["pid", "ipc", "uts", "network"] {
        assert_eq!(super::check(&join(kind), Role::Member), Ok(()), "{kind}");
    }
    let refusal = super::check(&join("mount"), Role::Member).unwrap_err();
    assert!(refusal.field.ends_with(".path"), "{refusal:?}");
    super::check(&join("ipc"), Role::Sandbox).unwrap_err();
}

#[test]
fn an_engines_own_apparmor_profile_is_left_out_and_any_other_refused() {
    let with_profile = |profile: &str| with("/process/apparmorProfile", json!(profile));
    assert_eq!(check(&with_profile("cri-containerd.apparmor.d")), Ok(()));
    assert_eq!(check(&with_profile("containers-default-0.57.4")), Ok(()));
    check(&with_profile("my-profile")).unwrap_err();
}
