//! What dies while a pod runs: a shim, a monitor, a guest's kernel, containerd. Nothing is
//! left of the first three, and nothing is lost by the last. What befalls a pod that starts is
//! in [`crate::start_faults`].

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nacre_tests::crictl::{Pids, Pod};
use nacre_tests::ctr::{Events, Task};
use nacre_tests::{Running, ctr, proc, running, sh, wait_until};
use rustix::process::Signal;

use crate::setting::{EVERYWHERE, NACRE, ONE_VERSION, PODS, Setting, Test};

pub(crate) const TESTS: &[Test] = &[
    Test {
        // runc's leaves its socket.
        name: "nothing_is_left_of_a_shim_that_is_killed",
        places: NACRE,
        check: killed_shim,
    },
    Test {
        name: "nothing_is_left_of_a_monitor_that_is_killed",
        places: NACRE,
        check: killed_monitor,
    },
    Test {
        name: "a_guest_kernel_that_panics_ends_its_container_and_says_why",
        places: NACRE,
        check: panicked_kernel,
    },
    Test {
        name: "nothing_is_lost_when_containerd_starts_anew",
        places: EVERYWHERE,
        check: restarted_containerd,
    },
    Test {
        name: "a_pod_lives_on_while_containerd_is_away",
        places: PODS,
        check: restarted_under_a_pod,
    },
    Test {
        name: "a_full_volume_is_an_error_for_who_writes",
        places: ONE_VERSION,
        check: full_volume,
    },
];

/// What docs/faults.md promises of an idle machine, at the latest.
const SHIM_IS_MISSED: Duration = Duration::from_secs(5);
/// The same of a monitor and of a guest's kernel.
const GUEST_IS_MISSED: Duration = Duration::from_secs(2);

/// How many times slower than such a machine an emulated one may be.
const EMULATION: u32 = 10;

/// Fails when a promise was not kept.
fn assert_in_time(since: Instant, promised: Duration) {
    let took = since.elapsed();
    let most = promised * EMULATION;
    eprintln!("after {took:?}, {promised:?} are promised");
    assert!(took < most, "{took:?} instead of {most:?}");
}

fn killed_shim(setting: &mut Setting) {
    let containerd = setting.containerd;
    let events = Events::listen(containerd);
    let task = Task::start(
        containerd,
        setting.runtime,
        &["--null-io"],
        &["sleep", "1000"],
    );
    running::kill(only("containerd-shim"), Signal::KILL);
    let killed = Instant::now();
    let heard = events.until(task.id(), "/tasks/delete");
    assert_in_time(killed, SHIM_IS_MISSED);
    let exit = heard.iter().find(|event| event.topic == "/tasks/exit");
    let status = exit.map(|event| event.body["exit_status"].clone());
    assert_eq!(status, Some(137.into()), "{heard:#?}");
    wait_until("the task is gone", || task.state().is_none());
    task.forget();
}

fn killed_monitor(setting: &mut Setting) {
    let containerd = setting.containerd;
    let events = Events::listen(containerd);
    let task = Task::start(containerd, setting.runtime, &[], &["sleep", "1000"]);
    running::kill(only("nacre-vmm"), Signal::KILL);
    let killed = Instant::now();
    let heard = events.until(task.id(), "/tasks/exit");
    assert_in_time(killed, GUEST_IS_MISSED);
    let exit = heard
        .iter()
        .find(|event| event.topic == "/tasks/exit")
        .unwrap();
    assert_eq!(exit.body["exit_status"], 137, "{heard:#?}");
    task.wait_for("STOPPED");
    assert_eq!(task.delete(), 137);
}

/// As a privileged container can bring about, for itself alone.
fn panicked_kernel(setting: &mut Setting) {
    let containerd = setting.containerd;
    let events = Events::listen(containerd);
    let options = ["--cap-add", "CAP_SYS_ADMIN"];
    let sleep = ["sleep", "1000"];
    let task = Task::start(containerd, setting.runtime, &options, &sleep);
    let crash = "mkdir /p; mount -t proc p /p; echo c >/p/sysrq-trigger";
    let asked = Instant::now();
    let cut_off = task.exec(&["sh", "-c", crash]);
    assert_ne!(cut_off.code(), 0, "{cut_off}");
    let heard = events.until(task.id(), "/tasks/exit");
    assert_in_time(asked, GUEST_IS_MISSED);
    assert!(
        heard
            .iter()
            .any(|event| event.topic == "/tasks/exit" && event.body["exit_status"] == 137),
        "{heard:#?}"
    );
    task.wait_for("STOPPED");
    assert_eq!(task.delete(), 137);
    let reason = "the pod is lost: the guest kernel panicked: sysrq triggered crash";
    wait_until("the log says why", || containerd.log().contains(reason));
}

/// The process of the only one of this name.
pub(crate) fn only(name: &str) -> u32 {
    let there = proc::named(name);
    assert_eq!(there.len(), 1, "{name}: {there:?}");
    there[0]
}

fn restarted_containerd(setting: &mut Setting) {
    let log = setting.containerd.dir().join("counted");
    let script =
        "n=0; while [ $n -lt 60 ]; do n=$((n + 1)); echo $n; sleep 0.1; done; exec sleep 1000";
    let id = start_logged(setting, script, &log);
    wait_until("it counts", || lines(&log).len() > 3);
    setting.containerd.away_for(|| ());

    let task = Task::of(setting.containerd, id);
    assert_eq!(task.state().as_deref(), Some("RUNNING"));
    assert_eq!(task.exec(&["echo", "here"]).expect_code(0).text(), "here\n");
    let expected: Vec<_> = (1..=60).map(|number| number.to_string()).collect();
    wait_until("all is counted", || lines(&log).len() >= expected.len());
    assert_eq!(lines(&log), expected);
    task.remove();
    fs::remove_file(log).unwrap();
}

/// Starts a container whose output goes to a file; returns its identifier.
fn start_logged(setting: &Setting, script: &str, log: &Path) -> String {
    let uri = format!("file://{}", log.display());
    let options = ["--log-uri", uri.as_str()];
    let task = Task::start(
        setting.containerd,
        setting.runtime,
        &options,
        &["sh", "-c", script],
    );
    task.id().to_owned()
}

fn lines(log: &Path) -> Vec<String> {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn restarted_under_a_pod(setting: &mut Setting) {
    let pod = Pod::run(setting.containerd, setting.runtime, Pids::Private);
    let script = "n=0; while true; do n=$((n + 1)); echo $n >/tmp/n; sleep 0.1; done";
    let counts = pod.start(script, Pids::Private);
    let ends = pod.start(
        "until [ -e /dev/shm/end ]; do sleep 0.1; done; exit 5",
        Pids::Private,
    );
    let before = counted(&counts.sh("cat /tmp/n"));
    // One ends while nobody is there to hear of it.
    let _ = counts.sh("(sleep 3; touch /dev/shm/end) >/dev/null 2>&1 </dev/null &");
    setting
        .containerd
        .away_for(|| std::thread::sleep(Duration::from_secs(5)));

    assert_eq!(pod.state(), "SANDBOX_READY");
    // For one that has ended, containerd may not ask, and takes its status for unknown.
    let status = ends.wait();
    assert!([5, 255].contains(&status), "{status}");
    assert_eq!(counts.state().0, "CONTAINER_RUNNING");
    assert!(
        counted(&counts.sh("cat /tmp/n")) > before + 20,
        "it stood still"
    );
    let late = pod.start("echo late; exit 4", Pids::Private);
    assert_eq!(late.wait(), 4);
    pod.remove();
}

/// A number from a file that is empty for a moment when it is written.
fn counted(text: &str) -> u32 {
    text.trim().parse().unwrap_or(0)
}

fn full_volume(setting: &mut Setting) {
    let volume = setting.containerd.dir().join("volume");
    fs::create_dir(&volume).unwrap();
    sh(&format!(
        "mount -t tmpfs -o size=1M none {}",
        volume.display()
    ));
    let mount = format!(
        "type=bind,src={},dst=/volume,options=rbind:rw",
        volume.display()
    );
    let script = "cd /volume
        dd if=/dev/zero of=file bs=64k; echo wrote $(stat -c %s file)
        rm file; echo again >file; cat file; exit 3";
    let options = ["--mount", mount.as_str()];
    let words = ["sh", "-c", script];
    let ended = Running::to_the_end(ctr::run(
        setting.containerd,
        setting.runtime,
        &options,
        &words,
    ));
    sh(&format!("umount {0}; rmdir {0}", volume.display()));
    let ended = ended.expect_code(3);
    assert!(ended.stderr.contains("No space left on device"), "{ended}");
    assert_eq!(ended.text(), "wrote 1048576\nagain\n", "{ended}");
}
