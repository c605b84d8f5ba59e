//! What CRI promises of a pod besides its containers, whoever has to keep it: containerd, for a
//! pod with a pause container, or the shim, for one of the Sandbox API.

use std::fs;

use nacre_tests::containerd::Version::Two;
use nacre_tests::crictl::{Container, Pids, Pod, PodStart};
use nacre_tests::{Running, wait_until};
use serde_json::{Value, json};

use crate::resize::PodCgroup;
use crate::setting::{NACRE_PODS, POD_KINDS, Setting, Test};

pub(crate) const TESTS: &[Test] = &[
    Test {
        name: "a_pod_s_files_say_its_name_and_whom_to_ask_for_others",
        places: POD_KINDS,
        check: files,
    },
    Test {
        name: "a_mount_of_the_container_s_own_hides_a_file_of_the_pod",
        places: POD_KINDS,
        check: own_files,
    },
    Test {
        name: "a_pod_has_the_kernel_parameters_that_it_asks_for",
        places: POD_KINDS,
        check: parameters,
    },
    Test {
        name: "kernel_parameters_of_no_namespace_are_refused",
        places: NACRE_PODS,
        check: foreign_parameters,
    },
    Test {
        name: "a_pod_s_use_is_told",
        places: POD_KINDS,
        check: use_of_a_pod,
    },
];

const WAITS: &str = "trap 'exit 0' TERM; while true; do sleep 0.2; done";

fn run<'a>(setting: &Setting<'a>, change: impl FnOnce(&mut Value)) -> Pod<'a> {
    Pod::run_with(setting.containerd, setting.runtime, Pids::Private, change)
}

fn lines(container: &Container, file: &str) -> Vec<String> {
    let text = container.sh(&format!("cat {file}"));
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    // The order of different settings is nobody's promise.
    lines.sort();
    lines
}

fn files(setting: &mut Setting) {
    let pod = run(setting, |config| {
        config["dns_config"] = json!({
            "servers": ["10.96.0.10", "10.96.0.11"],
            "searches": ["test.svc.cluster.local", "svc.cluster.local"],
            "options": ["ndots:5", "edns0"],
        });
    });
    let one = pod.start(WAITS, Pids::Private);
    let other = pod.start(WAITS, Pids::Private);
    for container in [&one, &other] {
        assert_eq!(
            lines(container, "/etc/resolv.conf"),
            [
                "nameserver 10.96.0.10",
                "nameserver 10.96.0.11",
                "options ndots:5 edns0",
                "search test.svc.cluster.local svc.cluster.local",
            ]
        );
        assert_eq!(
            container.sh("cat /etc/hostname; hostname"),
            "carved\ncarved"
        );
        let hosts = fs::read_to_string("/etc/hosts").unwrap();
        assert_eq!(container.sh("cat /etc/hosts"), hosts.trim_end());
    }
    // They are the pod's, and containers may write to them.
    let _ = one.sh("echo 192.0.2.7 added >> /etc/hosts");
    assert!(other.sh("cat /etc/hosts").contains("192.0.2.7 added"));
    pod.remove();

    // Without a word of CRI's the resolver is the host's.
    let pod = run(setting, |_| ());
    let container = pod.start(WAITS, Pids::Private);
    let of_host = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    assert_eq!(container.sh("cat /etc/resolv.conf"), of_host.trim_end());
    pod.remove();
}

/// As the kubelet does with `/etc/hosts`.
fn own_files(setting: &mut Setting) {
    let file = setting.containerd.dir().join("hosts-of-a-container");
    fs::write(&file, "192.0.2.1 own\n").unwrap();
    let pod = run(setting, |_| ());
    let container = pod.start_with(WAITS, Pids::Private, &[(&file, "/etc/hosts")]);
    assert_eq!(container.sh("cat /etc/hosts"), "192.0.2.1 own");
    assert_eq!(container.sh("cat /etc/hostname"), "carved");
    pod.remove();
    fs::remove_file(file).unwrap();
}

fn parameters(setting: &mut Setting) {
    let pod = run(setting, |config| {
        config["linux"]["sysctls"] = json!({
            "net.ipv4.tcp_keepalive_time": "123",
            "net.ipv4.ip_unprivileged_port_start": "555",
            "kernel.shm_rmid_forced": "1",
        });
    });
    let container = pod.start(WAITS, Pids::Private);
    let read = |names: &[&str]| {
        let paths: Vec<_> = names
            .iter()
            .map(|name| format!("/proc/sys/{name}"))
            .collect();
        container.sh(&format!("cat {}", paths.join(" ")))
    };
    assert_eq!(
        read(&[
            "net/ipv4/tcp_keepalive_time",
            "net/ipv4/ip_unprivileged_port_start",
            "kernel/shm_rmid_forced",
        ]),
        "123\n555\n1"
    );
    pod.remove();

    let pod = run(setting, |_| ());
    let container = pod.start(WAITS, Pids::Private);
    let defaults = container.sh(
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range",
    );
    // Which of them are there is containerd's to say; of version 2 it is both.
    if setting.containerd.version() == Two {
        assert_eq!(defaults, "0\n0\t2147483647");
    }
    pod.remove();
}

fn foreign_parameters(setting: &mut Setting) {
    for (name, value) in [("vm.swappiness", "10"), ("kernel.panic", "9")] {
        let start = PodStart::new(
            setting.containerd,
            setting.runtime,
            Pids::Private,
            |config| {
                config["linux"]["sysctls"] = json!({ name: value });
            },
        );
        let ended = Running::to_the_end(start.command());
        assert_ne!(ended.code(), 0, "{ended}");
        assert!(ended.stderr.contains(name), "{ended}");
    }
}

fn use_of_a_pod(setting: &mut Setting) {
    // containerd looks at the pod's cgroup on the host, in which a guest's monitor is.
    let _of_kubelet = PodCgroup::make();
    let pod = run(setting, |config| {
        config["linux"]["cgroup_parent"] = PodCgroup::NAME.into();
    });
    let container = pod.start("exec httpd -f -p 8080 -h /etc", Pids::Private);
    let address = pod.address();
    wait_until("it serves", || {
        let get = format!("busybox wget -q -O - http://{address}:8080/greeting");
        !nacre_tests::sh(&format!("{get} || true")).is_empty()
    });
    let number = |value: &Value| -> u64 {
        let text = value["value"].as_str().unwrap_or("0");
        text.parse().unwrap()
    };
    let stats = pod.stats();
    let linux = &stats["linux"];
    for (name, value) in [
        ("memory", &linux["memory"]["workingSetBytes"]),
        ("CPU", &linux["cpu"]["usageCoreNanoSeconds"]),
        ("received", &linux["network"]["defaultInterface"]["rxBytes"]),
        ("sent", &linux["network"]["defaultInterface"]["txBytes"]),
        ("processes", &linux["process"]["processCount"]),
    ] {
        assert!(number(value) > 0, "{name}: {stats:#}");
    }
    let stats = container.crictl(&["stats", "--output", "json", "--id"]);
    let stats: Value = serde_json::from_str(&stats).unwrap();
    let of_container = &stats["stats"][0];
    assert!(
        number(&of_container["memory"]["workingSetBytes"]) > 0,
        "{stats:#}"
    );
    assert!(
        number(&of_container["cpu"]["usageCoreNanoSeconds"]) > 0,
        "{stats:#}"
    );
    pod.remove();
}
