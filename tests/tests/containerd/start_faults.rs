//! What befalls a pod that starts: its shim or monitor is killed, its guest does not come up,
//! memory or disk are short, a network plugin fails. Whoever asked for it learns of it soon,
//! with the reason, and nothing is left.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nacre_tests::crictl::{Pids, Pod, PodStart};
use nacre_tests::ctr::{self, Task, new_id};
use nacre_tests::initramfs::Initramfs;
use nacre_tests::shim::{Caller, Shim};
use nacre_tests::{Containerd, Ended, Running, proc, running, sh};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::calls::waiting;
use crate::setting::{NACRE_ONCE, NACRE_PODS, POD_KINDS, Setting, Test};

pub(crate) const TESTS: &[Test] = &[
    Test {
        name: "a_start_that_loses_its_shim_or_monitor_fails_and_leaves_nothing",
        places: NACRE_PODS,
        check: cut_off,
    },
    Test {
        name: "a_call_that_loses_its_shim_or_monitor_fails_and_leaves_nothing",
        places: NACRE_PODS,
        check: cut_off_calls,
    },
    Test {
        name: "a_guest_that_is_lost_while_it_starts_says_why",
        places: NACRE_ONCE,
        check: lost_guests,
    },
    Test {
        name: "a_pod_without_memory_on_its_host_ends_with_its_monitor",
        places: NACRE_ONCE,
        check: short_of_memory,
    },
    Test {
        name: "a_full_disk_under_the_bundle_is_an_error_and_leaves_nothing",
        places: NACRE_ONCE,
        check: full_bundle,
    },
    Test {
        name: "a_network_plugin_that_fails_is_told_and_asked_again",
        places: POD_KINDS,
        check: failing_plugin,
    },
];

/// By when a caller knows that its start has failed.
const LEARNS: Duration = Duration::from_secs(30);

/// What is killed, and when.
const CUTS: [(&str, When); 5] = [
    ("containerd-shim", When::Named("containerd-shim")),
    ("containerd-shim", When::Named("nacre-vmm")),
    ("nacre-vmm", When::Named("nacre-vmm")),
    ("containerd-shim", BOOTED),
    ("nacre-vmm", BOOTED),
];

#[derive(Clone, Copy, Debug)]
enum When {
    /// There is a process of this name.
    Named(&'static str),
    /// The log of containerd and its shims has this.
    Logged(&'static str),
}

/// The agent has answered: the first container is made.
const BOOTED: When = When::Logged("pod booted");

impl When {
    /// Waits for it, closely: the next phase is not far.
    fn come(self, containerd: &Containerd, log: usize) {
        let start = Instant::now();
        while !match self {
            Self::Named(name) => !proc::named(name).is_empty(),
            Self::Logged(text) => containerd.log()[log..].contains(text),
        } {
            assert!(
                start.elapsed() < Duration::from_secs(120),
                "{self:?} does not come"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn cut_off(setting: &mut Setting) {
    let containerd = setting.containerd;
    for (victim, when) in CUTS {
        let start = PodStart::new(containerd, setting.runtime, Pids::Private, |_| ());
        let log = containerd.log().len();
        let running = Running::start(start.command());
        when.come(containerd, log);
        for pid in proc::named(victim) {
            running::kill(pid, Signal::KILL);
        }
        let killed = Instant::now();
        let ended = running.wait();
        let took = killed.elapsed();
        eprintln!(
            "{victim} killed, {when:?}: {took:?}: {}",
            ended.stderr.trim_end()
        );
        assert!(took < LEARNS, "{victim}, {when:?}: {took:?}");
        // One that is killed a moment later is a pod that has started and ended.
        if ended.code() == 0 {
            let pod = start.pod(&ended);
            pod.remove_lost();
        }
    }
}

/// What is asked of a pod that runs when its shim or its monitor is killed.
#[derive(Clone, Copy, Debug)]
enum Call {
    Create,
    Start,
    Exec,
}

/// Kills while a container of CRI is made, started and used.
fn cut_off_calls(setting: &mut Setting) {
    for (victim, call) in [
        ("containerd-shim", Call::Create),
        ("nacre-vmm", Call::Create),
        ("containerd-shim", Call::Start),
        ("nacre-vmm", Call::Start),
        ("containerd-shim", Call::Exec),
        ("nacre-vmm", Call::Exec),
    ] {
        let pod = Pod::run(setting.containerd, setting.runtime, Pids::Private);
        let running = begin(setting.containerd, &pod, call);
        for pid in proc::named(victim) {
            running::kill(pid, Signal::KILL);
        }
        let killed = Instant::now();
        let ended = running.wait();
        let took = killed.elapsed();
        eprintln!("{victim} killed, {call:?}: {took:?}: {ended}");
        assert!(took < LEARNS, "{victim}, {call:?}: {took:?}");
        // containerd makes a container by itself, and a start may just have been done.
        assert!(
            ended.code() != 0 || !matches!(call, Call::Exec),
            "{victim}: {ended}"
        );
        pod.remove_lost();
    }
}

/// Asks, and waits until that has reached containerd, or the guest.
fn begin(containerd: &Containerd, pod: &Pod, call: Call) -> Running {
    let sleep = "exec sleep 1000";
    let creation = pod.creation(sleep, Pids::Private, |_| ());
    let log = containerd.log().len();
    match call {
        Call::Create => {
            let running = Running::start(creation.command());
            When::Logged("CreateContainer within sandbox").come(containerd, log);
            running
        }
        Call::Start => {
            let made = Running::to_the_end(creation.command()).expect_code(0);
            let container = creation.container(&made);
            let running = Running::start(container.start_command());
            When::Logged("StartContainer for").come(containerd, log);
            running
        }
        Call::Exec => {
            let container = pod.start(sleep, Pids::Private);
            let mut command = container.stream(&["sh", "-c", "echo here; exec sleep 1000"]);
            command.stdin(Stdio::null());
            let mut running = Running::start(command);
            running.wait_for("here");
            running
        }
    }
}

/// Runs a container with this text as the shim's configuration.
fn run_with(setting: &Setting, text: &str) -> Ended {
    let file = setting.containerd.dir().join("nacre.toml");
    fs::write(&file, text).unwrap();
    let option = format!("--runtime-config-path={}", file.display());
    let run = ctr::run(setting.containerd, setting.runtime, &[&option], &["true"]);
    let ended = Running::to_the_end(run);
    fs::remove_file(&file).unwrap();
    ended
}

/// The agent is PID 1 of the guest: its end is the guest kernel's.
fn lost_guests(setting: &mut Setting) {
    let nobody = "exec /bin/busybox sleep 1000";
    let creating =
        "until [ -d /p/1/root/sys/fs/cgroup/nacre/*/ ]; do /bin/busybox usleep 1000; done
        echo c >/p/sysrq-trigger";
    for (initramfs, secs, reason) in [
        (Initramfs::new(None, 0), 120, "the guest kernel panicked: "),
        (
            Initramfs::new(Some(nobody), 0),
            15,
            "its agent did not answer within 15 s",
        ),
        (
            Initramfs::with_saboteur(creating),
            120,
            "the guest kernel panicked: sysrq triggered crash",
        ),
    ] {
        let text = format!(
            "boot_timeout_secs = {secs}\ninitramfs = {:?}\n",
            initramfs.path()
        );
        let start = Instant::now();
        let ended = run_with(setting, &text);
        assert_ne!(ended.code(), 0, "{ended}");
        assert!(ended.stderr.contains(reason), "not {reason:?}: {ended}");
        assert!(start.elapsed() < 2 * LEARNS, "{:?}", start.elapsed());
    }
}

/// A cgroup of the host with a limit that can be changed. It goes when it is dropped.
struct Limited(&'static str);

impl Limited {
    fn new(limit: &str) -> Self {
        let limited = Self("nacre-test-limited");
        sh(&format!(
            "cd /sys/fs/cgroup; mkdir {0}; echo 0 >{0}/memory.swap.max || true",
            limited.0
        ));
        limited.set(limit);
        limited
    }

    fn set(&self, limit: &str) {
        sh(&format!(
            "echo {limit} >/sys/fs/cgroup/{}/memory.max",
            self.0
        ));
    }

    /// A cgroup in it, as `ctr` names it.
    fn child(&self) -> String {
        format!("/{}/pod", self.0)
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        // A cgroup that held a process is free a moment after its end.
        sh(&format!(
            "for n in 1 2 3 4 5 6 7 8 9; do rmdir /sys/fs/cgroup/{} 2>/dev/null && exit; sleep 0.2; done",
            self.0
        ));
    }
}

fn short_of_memory(setting: &mut Setting) {
    let limited = Limited::new("16M");
    let cgroup = limited.child();
    let options = ["--cgroup", cgroup.as_str()];
    let start = Instant::now();
    let run = ctr::run(setting.containerd, setting.runtime, &options, &["true"]);
    let ended = Running::to_the_end(run);
    assert_ne!(ended.code(), 0, "{ended}");
    assert!(
        ended.stderr.contains("the monitor was killed by signal 9"),
        "{ended}"
    );
    assert!(start.elapsed() < LEARNS, "{:?}", start.elapsed());

    limited.set("max");
    let sleep = ["sleep", "1000"];
    let task = Task::start(setting.containerd, setting.runtime, &options, &sleep);
    // The kernel takes what it can, and kills for the rest.
    limited.set("16M");
    task.wait_for("STOPPED");
    assert_eq!(task.delete(), 137);
}

/// A file system of some KiB, mounted on a directory until it is dropped.
struct Small<'a>(&'a Path);

impl<'a> Small<'a> {
    fn mount(dir: &'a Path) -> Self {
        sh(&format!(
            "mount -t tmpfs -o size=64k none {}",
            dir.display()
        ));
        Self(dir)
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    fn fill(&self) {
        sh(&format!(
            "cat /dev/zero >{} 2>/dev/null || true",
            self.filler().display()
        ));
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        sh(&format!("umount -l {}", self.0.display()));
    }
}

fn full_bundle(setting: &mut Setting) {
    let bundle = waiting();
    let dir = bundle.path().to_owned();
    let small = Small::mount(&dir);
    let id = new_id();
    let shim = Shim::new(setting.containerd, setting.runtime, bundle, &id);
    small.fill();
    let start = Instant::now();
    let output = shim.call_program("start", &Caller::default());
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("No space left on device"), "{said}");
    assert!(start.elapsed() < LEARNS, "{:?}", start.elapsed());
    let names = proc::names(&dir);
    assert_eq!(names, ["config.json", "filler", "log"]);
    assert!(proc::named("containerd-shim").is_empty());

    // With space again, the same bundle starts.
    fs::remove_file(small.filler()).unwrap();
    let connection = shim.connect();
    drop(small);
    shim.shut_down(&connection);
}

/// A plugin at the end of the pods' network that fails at a command of CNI. The network is as
/// it was when this is dropped.
struct Faulty<'a> {
    containerd: &'a Containerd,
    network: PathBuf,
    before: String,
}

const PLUGIN: &str = "/opt/cni/bin/nacre-test-faulty";

impl<'a> Faulty<'a> {
    fn at(containerd: &'a Containerd, command: &str) -> Self {
        let network = containerd.dir().join("cni.d/10-pods.conflist");
        let before = fs::read_to_string(&network).unwrap();
        let script = format!(
            "#!/bin/sh
            request=$(cat)
            if [ \"$CNI_COMMAND\" = {command} ]; then
                echo '{{\"cniVersion\":\"1.0.0\",\"code\":100,\"msg\":\"out of order\"}}'
                exit 1
            fi
            [ \"$CNI_COMMAND\" != ADD ] || printf %s \"$request\" | jq .prevResult"
        );
        fs::write(PLUGIN, script).unwrap();
        sh(&format!("chmod +x {PLUGIN}"));
        let mut config: Value = serde_json::from_str(&before).unwrap();
        let plugins = config["plugins"].as_array_mut().unwrap();
        plugins.push(json!({ "type": "nacre-test-faulty" }));
        // containerd reads it when it starts.
        containerd.away_for(|| fs::write(&network, config.to_string()).unwrap());
        Self {
            containerd,
            network,
            before,
        }
    }
}

impl Drop for Faulty<'_> {
    fn drop(&mut self) {
        let restore = || {
            fs::write(&self.network, &self.before).unwrap();
            fs::remove_file(PLUGIN).unwrap();
        };
        self.containerd.away_for(restore);
    }
}

fn failing_plugin(setting: &mut Setting) {
    let containerd = setting.containerd;
    let faulty = Faulty::at(containerd, "ADD");
    let start = PodStart::new(containerd, setting.runtime, Pids::Private, |_| ());
    let ended = Running::to_the_end(start.command());
    assert_ne!(ended.code(), 0, "{ended}");
    assert!(ended.stderr.contains("out of order"), "{ended}");
    drop(faulty);

    let faulty = Faulty::at(containerd, "DEL");
    let pod = Pod::run(containerd, setting.runtime, Pids::Private);
    let stopped = pod.stop();
    assert_ne!(stopped.code(), 0, "{stopped}");
    assert!(stopped.stderr.contains("out of order"), "{stopped}");
    // The guest has ended all the same.
    assert!(proc::named("nacre-vmm").is_empty());
    drop(faulty);
    pod.remove();
}
