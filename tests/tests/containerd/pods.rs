//! Pods through CRI: what the containers of one share, what they do not, and
//! that the pod outlives each of them.

use nacre_tests::crictl::{Container, Pids, Pod};
use nacre_tests::loop_device::LoopDevice;
use nacre_tests::{count, sh, wait_until};
use serde_json::{Value, json};

use crate::setting::{POD_KINDS, PODS, Setting, Test};

pub(crate) const TESTS: &[Test] = &[
    Test {
        name: "containers_of_a_pod_share_what_a_pod_is",
        places: PODS,
        check: one_pod,
    },
    Test {
        name: "containers_of_a_pod_share_processes_when_it_asks",
        places: POD_KINDS,
        check: shared_processes,
    },
    Test {
        name: "a_container_out_of_memory_leaves_its_neighbours_alone",
        places: POD_KINDS,
        check: out_of_memory,
    },
    Test {
        name: "block_devices_come_and_go_with_the_containers_of_a_pod",
        places: POD_KINDS,
        check: block_devices,
    },
    Test {
        name: "pods_in_parallel_leave_nothing",
        places: PODS,
        check: in_parallel,
    },
];

/// Waits for a TERM, which ends it with status 9.
const WAITS: &str = "trap 'exit 9' TERM; echo ready; while true; do sleep 0.2; done";

fn one_pod(setting: &mut Setting) {
    let pod = Pod::run(setting.containerd, setting.runtime, Pids::Private);
    assert_eq!(pod.state(), "SANDBOX_READY");
    let serves = "echo to stdout; echo to stderr >&2; exec httpd -f -p 8080 -h /etc";
    let server = pod.start(serves, Pids::Private);
    let client = pod.start(WAITS, Pids::Private);

    shares_network(&pod, &server, &client);
    shares_memory_and_name(&server, &client);
    keeps_processes_apart(&server, &client);
    let log = server.log();
    // Which stream is first is nobody's promise.
    for line in ["stdout to stdout", "stderr to stderr"] {
        assert_eq!(
            log.lines().filter(|other| *other == line).count(),
            1,
            "{log}"
        );
    }
    takes_a_new_limit(&client);

    // A container ends and another takes its place; then all of them are gone.
    let _ = client.crictl(&["stop", "--timeout", "60"]);
    assert_eq!(client.wait(), 9);
    client.remove();
    let again = pod.start(
        "exec wget -q -O - http://127.0.0.1:8080/greeting",
        Pids::Private,
    );
    assert_eq!(again.wait(), 0);
    assert_eq!(again.log(), "stdout of the upper layer\n");
    again.remove();
    server.remove();
    assert_eq!(pod.state(), "SANDBOX_READY");
    let late = pod.start("echo late; exit 4", Pids::Private);
    assert_eq!(late.wait(), 4);
    assert_eq!(late.log(), "stdout late\n");
    // The pod takes it along.
    pod.remove();
}

fn shares_network(pod: &Pod, server: &Container, client: &Container) {
    let address = pod.address();
    let addresses = client.sh("ip -4 address show dev eth0");
    assert!(addresses.contains(&address), "{address}: {addresses}");
    let get = "wget -q -O - http://127.0.0.1:8080/greeting";
    let greeting = "of the upper layer";
    wait_until("localhost is one", || {
        client.exec(&["sh", "-c", get]).text().trim_end() == greeting
    });
    let from_host = sh(&format!(
        "busybox wget -q -O - http://{address}:8080/greeting"
    ));
    assert_eq!(
        from_host.trim_end(),
        greeting,
        "by the host, from the pod's address"
    );
    assert_eq!(server.state().0, "CONTAINER_RUNNING");
}

fn shares_memory_and_name(server: &Container, client: &Container) {
    let _ = client.sh("echo shared > /dev/shm/file; echo private > /tmp/file");
    assert_eq!(
        server.sh("cat /dev/shm/file; hostname; ls /tmp"),
        "shared\ncarved"
    );
    assert_eq!(client.sh("hostname"), "carved");
}

fn keeps_processes_apart(server: &Container, client: &Container) {
    for (container, args) in [(server, "httpd -f "), (client, "sh -c ")] {
        let first = container.sh("tr '\\0' ' ' < /proc/1/cmdline");
        assert!(first.starts_with(args), "{first}");
    }
    let processes = client.sh("ps -o args");
    assert!(!processes.contains("httpd"), "{processes}");
    let ended = client.exec(&["sh", "-c", "echo out; echo err >&2; exit 6"]);
    // crictl has a status of its own, and tells the other.
    assert!(ended.stderr.contains('6') && ended.code() != 0, "{ended}");
}

fn takes_a_new_limit(container: &Container) {
    let limit = 48 << 20;
    let _ = container.crictl(&["update", "--memory", &limit.to_string()]);
    let seen = container.sh("cat /sys/fs/cgroup/memory.max");
    assert_eq!(seen.trim(), limit.to_string());
    let stats = container.crictl(&["stats", "--output", "json", "--id"]);
    let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
    let used = &stats["stats"][0]["memory"]["workingSetBytes"]["value"];
    let used: u64 = used.as_str().expect("a number").parse().unwrap();
    assert!((1..limit).contains(&used), "{stats:#}");
}

fn shared_processes(setting: &mut Setting) {
    let pod = Pod::run(setting.containerd, setting.runtime, Pids::Shared);
    let one = pod.start(WAITS, Pids::Shared);
    let two = pod.start("exec sleep 98765", Pids::Shared);
    let seen = one.sh("ps -o args");
    assert!(seen.contains("sleep 98765"), "{seen}");
    // To kill one, also with all of its processes, is to kill no other.
    let _ = two.crictl(&["stop", "--timeout", "0"]);
    assert_eq!(two.wait(), 137);
    let seen = one.sh("ps -o args");
    assert!(!seen.contains("sleep 98765"), "{seen}");
    assert_eq!(one.state().0, "CONTAINER_RUNNING");
    pod.remove();
}

fn out_of_memory(setting: &mut Setting) {
    let pod = Pod::run(setting.containerd, setting.runtime, Pids::Private);
    let neighbour = pod.start("echo here >/tmp/note; exec sleep 1000", Pids::Private);
    let hog = pod.start_changed("exec tail /dev/zero", Pids::Private, |config| {
        config["linux"]["resources"] = json!({ "memory_limit_in_bytes": 48 << 20 });
    });
    assert_eq!(hog.wait(), 137);
    wait_until("the reason is known", || hog.reason() == "OOMKilled");
    assert_eq!(neighbour.state().0, "CONTAINER_RUNNING");
    assert_eq!(neighbour.sh("cat /tmp/note"), "here");
    assert_eq!(pod.state(), "SANDBOX_READY");
    pod.remove();
}

/// As the kubelet hands over a volume of `volumeMode: Block`.
fn block_devices(setting: &mut Setting) {
    let device = LoopDevice::new(4);
    device.write(0, b"of the host!");
    let given = |permissions: &str| -> Value {
        json!({ "host_path": device.node(), "container_path": "/dev/volume",
            "permissions": permissions })
    };
    let pod = Pod::run(setting.containerd, setting.runtime, Pids::Private);
    let none = pod.start(WAITS, Pids::Private);
    let writer = pod.start_with_device(WAITS, Pids::Private, &given("rwm"));
    let reader = pod.start_with_device(WAITS, Pids::Private, &given("r"));
    let opened = || device.opened_by_monitors();
    let with_pod = usize::from(setting.runtime.is_nacre());
    assert_eq!(opened(), with_pod);

    let read = "head -c 12 /dev/volume";
    let write = "echo of the guest | dd of=/dev/volume conv=notrunc,fsync 2>/dev/null";
    assert_eq!(none.sh("ls /dev | grep -c volume || true"), "0");
    assert_eq!(reader.sh(read), "of the host!");
    assert_ne!(reader.exec(&["sh", "-c", write]).code(), 0);
    let _ = writer.sh(write);
    assert_eq!(device.read(0, 12), b"of the guest");
    assert_eq!(reader.sh(read), "of the guest");
    // With the limits, the caller sends the rules of devices as they are on the host.
    let more = (48 << 20).to_string();
    let _ = reader.crictl(&["update", "--memory", &more]);
    assert_eq!(reader.sh(read), "of the guest");

    // The last that has it takes it along, and the next finds what was left.
    writer.remove();
    assert_eq!(opened(), with_pod);
    assert_eq!(reader.sh(read), "of the guest");
    reader.remove();
    assert_eq!(opened(), 0);
    device.write(0, b"of the host!");
    let again = pod.start_with_device(WAITS, Pids::Private, &given("rwm"));
    assert_eq!(opened(), with_pod);
    assert_eq!(again.sh(read), "of the host!");
    pod.remove();
    assert_eq!(opened(), 0);
}

fn in_parallel(setting: &mut Setting) {
    let (containerd, runtime) = (setting.containerd, setting.runtime);
    let (pods, containers, rounds) = count((2, 2, 1), (20, 3, 5));
    for _ in 0..rounds {
        std::thread::scope(|scope| {
            for _ in 0..pods {
                scope.spawn(|| {
                    let pod = Pod::run(containerd, runtime, Pids::Private);
                    let started: Vec<_> = (0..containers)
                        .map(|number| {
                            pod.start(&format!("echo {number}; exec sleep 1000"), Pids::Private)
                        })
                        .collect();
                    for (number, container) in started.iter().enumerate() {
                        wait_until("it has spoken", || {
                            container.log() == format!("stdout {number}\n")
                        });
                    }
                    pod.remove();
                });
            }
        });
    }
}
