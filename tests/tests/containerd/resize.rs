//! Changes of what a container may use while it runs: up to the size of its pod's VM, and not
//! beyond. And what the pod has freed is the host's again.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nacre_tests::crictl::{Container, Pids, Pod};
use nacre_tests::{Ended, wait_until};
use serde_json::json;

use crate::faults::only;
use crate::operators::Samples;
use crate::setting::{NACRE_ONCE, NACRE_PODS, POD_KINDS, Setting, Test};

pub(crate) const TESTS: &[Test] = &[
    Test {
        name: "a_pod_is_resized_up_to_what_it_may_grow_to",
        places: NACRE_PODS,
        check: growth,
    },
    Test {
        name: "an_update_is_seen_in_the_running_container",
        places: POD_KINDS,
        check: update,
    },
    Test {
        name: "updates_beside_the_end_of_a_container_hurt_nobody",
        places: NACRE_PODS,
        check: updates_beside_the_end,
    },
    Test {
        name: "memory_that_a_container_freed_goes_back_to_the_host",
        places: NACRE_ONCE,
        check: freed_memory,
    },
];

const MIB: u64 = 1 << 20;

/// A cgroup as the kubelet makes one for a pod. Removed when dropped.
pub(crate) struct PodCgroup(PathBuf);

impl PodCgroup {
    pub(crate) const NAME: &str = "/nacre-test-pod";

    pub(crate) fn make() -> Self {
        let path = PathBuf::from("/sys/fs/cgroup").join(&Self::NAME[1..]);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Sets the limits, as the kubelet does before it has containers changed.
    fn limit(&self, memory: u64, cpus: u64) {
        fs::write(self.0.join("memory.max"), memory.to_string()).unwrap();
        let cpus = format!("{} 100000", cpus * 100_000);
        fs::write(self.0.join("cpu.max"), cpus).unwrap();
    }
}

impl Drop for PodCgroup {
    fn drop(&mut self) {
        // A pod that a failed test has left is still in it.
        let _ = fs::remove_dir(&self.0);
    }
}

/// The container's limits, as its cgroup has them, and its CPUs.
fn seen(container: &Container) -> String {
    container.sh("cd /sys/fs/cgroup; echo $(cat memory.max cpu.max) $(nproc)")
}

fn limits(memory: u64, cpus: u64) -> [String; 6] {
    let (memory, quota) = (memory.to_string(), (cpus * 100_000).to_string());
    let words = [
        "--memory",
        &memory,
        "--cpu-quota",
        &quota,
        "--cpu-period",
        "100000",
    ];
    words.map(str::to_owned)
}

fn resize(container: &Container, memory: u64, cpus: u64) -> Ended {
    let words = limits(memory, cpus);
    container.update(&words.each_ref().map(String::as_str))
}

fn assert_refused(refused: &Ended, message: &str) {
    assert_ne!(refused.code(), 0, "{refused}");
    assert!(refused.stderr.contains(message), "{refused}");
}

fn growth(setting: &mut Setting) {
    let of_kubelet = PodCgroup::make();
    of_kubelet.limit(640 * MIB, 1);
    let (containerd, runtime) = (setting.containerd, setting.runtime);
    let pod = Pod::run_with(containerd, runtime, Pids::Private, |config| {
        config["annotations"] = json!({
            "io.nacre.memory-mib": "256",
            "io.nacre.max-memory-mib": "1024",
            "io.nacre.max-vcpus": "2"
        });
        config["linux"]["cgroup_parent"] = PodCgroup::NAME.into();
    });
    let monitor = fs::read_to_string(format!("/proc/{}/cgroup", only("nacre-vmm"))).unwrap();
    assert!(monitor.contains(PodCgroup::NAME), "{monitor}");
    let container = pod.start("exec sleep 1000", Pids::Private);
    let _ = resize(&container, 200 * MIB, 1).expect_code(0);
    assert_eq!(seen(&container), format!("{} 100000 100000 1", 200 * MIB));

    // The kubelet's cgroup first, then the container.
    of_kubelet.limit(1280 * MIB, 2);
    let _ = resize(&container, 800 * MIB, 2).expect_code(0);
    let grown = format!("{} 200000 100000 2", 800 * MIB);
    assert_eq!(seen(&container), grown);

    for (memory, cpus, message) in [
        (
            2048,
            2,
            "linux.resources.memory.limit: 2048 MiB asked for, the pod's VM has 1024 MiB",
        ),
        (
            800,
            3,
            "linux.resources.cpu.quota: 3 CPUs asked for, the pod's VM has 2",
        ),
        // What there is room for is not done by half.
        (
            2048,
            1,
            "linux.resources.memory.limit: 2048 MiB asked for, the pod's VM has 1024 MiB",
        ),
    ] {
        assert_refused(&resize(&container, memory * MIB, cpus), message);
        assert_eq!(seen(&container), grown);
    }

    // Another container has its part of the VM.
    let other = pod.start("exec sleep 1000", Pids::Private);
    assert_refused(
        &resize(&other, 400 * MIB, 1),
        "400 MiB asked for beside 800 MiB of its other containers, the pod's VM has 1024 MiB",
    );
    other.remove();

    let _ = resize(&container, 100 * MIB, 1).expect_code(0);
    assert_eq!(seen(&container), format!("{} 100000 100000 1", 100 * MIB));
    // Again: a CPU that went comes back.
    let _ = resize(&container, 800 * MIB, 2).expect_code(0);
    assert_eq!(seen(&container), grown);
    pod.remove();
    drop(of_kubelet);
}

fn update(setting: &mut Setting) {
    let pod = Pod::run(setting.containerd, setting.runtime, Pids::Private);
    let container = pod.start("exec sleep 1000", Pids::Private);
    let cpus = container.sh("nproc");
    for memory in [64 * MIB, 300 * MIB, 48 * MIB] {
        let _ = resize(&container, memory, 1).expect_code(0);
        assert_eq!(
            seen(&container),
            format!("{memory} 100000 100000 {cpus}"),
            "{memory}"
        );
    }
    // A limit below what is used takes the memory, and the life of who does not give it.
    let _ = resize(&container, 300 * MIB, 1).expect_code(0);
    let holds = "dd if=/dev/zero bs=96M count=1 | sleep 1000";
    let hog = pod.start(holds, Pids::Private);
    wait_until("it holds its memory", || {
        let used = hog.sh("cat /sys/fs/cgroup/memory.current");
        used.parse::<u64>().expect("a number") > 96 * MIB
    });
    let _ = hog.update(&["--memory", &(32 * MIB).to_string()]);
    wait_until("it holds no more", || {
        let events = hog.exec(&["cat", "/sys/fs/cgroup/memory.events"]).text();
        let kills = events
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill "));
        kills.is_some_and(|kills| kills.trim() != "0") || hog.state().0 == "CONTAINER_EXITED"
    });
    assert_eq!(container.state().0, "CONTAINER_RUNNING");
    pod.remove();
}

fn updates_beside_the_end(setting: &mut Setting) {
    let (containerd, runtime) = (setting.containerd, setting.runtime);
    let pod = Pod::run_with(containerd, runtime, Pids::Private, |config| {
        config["annotations"] = json!({ "io.nacre.max-vcpus": "2" });
    });
    let stays = pod.start("exec sleep 1000", Pids::Private);
    for _ in 0..3 {
        let ends = pod.start("exec sleep 1000", Pids::Private);
        std::thread::scope(|scope| {
            let updates = scope.spawn(|| {
                let answers = (1..=6).map(|n| resize(&ends, (32 + n) * MIB, 1 + n % 2));
                answers.collect::<Vec<_>>()
            });
            let _ = ends.crictl(&["stop", "--timeout", "0"]);
            for answer in updates.join().expect("no panic") {
                // containerd 1.7 has a connection for each container, which goes with it.
                let gone = [
                    "stopped",
                    "not found",
                    "not running",
                    "finished",
                    "ttrpc: closed",
                ];
                let fine = answer.code() == 0 || gone.iter().any(|w| answer.stderr.contains(w));
                assert!(fine, "{answer}");
            }
        });
        assert_eq!(ends.wait(), 137);
        ends.remove();
    }
    // Nothing of those that ended counts.
    let _ = resize(&stays, 512 * MIB, 2).expect_code(0);
    assert_eq!(seen(&stays), format!("{} 200000 100000 2", 512 * MIB));
    pod.remove();
}

/// Memory that is allocated and freed, bytes.
const FREED: f64 = 200.0 * 1024.0 * 1024.0;

/// In which it is the host's again. The guest reports every two seconds.
const RETURNED: Duration = Duration::from_secs(60);

fn freed_memory(setting: &mut Setting) {
    let pod = Pod::run(setting.containerd, setting.runtime, Pids::Private);
    let resident = || {
        let of_pod = [("pod_id", pod.id())];
        Samples::with_guest(&of_pod).get("nacre_pod_memory_resident_bytes", &of_pod)
    };
    let container = pod.start("exec sleep 1000", Pids::Private);
    let before = resident();
    let _ = container.sh("(dd if=/dev/zero bs=200M count=1 | tail -f /dev/null) >/dev/null 2>&1 &");
    wait_until("the memory is in use", || resident() > before + 0.9 * FREED);
    let used = resident();
    let _ = container.sh("killall tail");
    let freed = Instant::now();
    // The guest keeps a little in caches and in pieces smaller than a huge page.
    wait_until("the memory is the host's", || {
        resident() < used - 0.9 * FREED
    });
    let took = freed.elapsed();
    eprintln!(
        "{FREED} bytes were the host's again after {took:?}: {before}, {used}, {}",
        resident()
    );
    assert!(took < RETURNED, "{took:?}");

    // Without room to grow the VM is as large as it is.
    assert_refused(
        &container.update(&["--memory", &(1024 * MIB).to_string()]),
        "1024 MiB asked for, the pod's VM has 512 MiB",
    );
    pod.remove();
}
