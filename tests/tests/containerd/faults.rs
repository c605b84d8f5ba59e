//! What dies in the middle: a shim, a monitor, containerd. Nothing is left of the
//! first two, and nothing is lost by the third.

use std::fs;
use std::path::Path;

use nacre_tests::ctr::{Events, Task};
use nacre_tests::{proc, running, wait_until};
use rustix::process::Signal;

use crate::setting::{EVERYWHERE, NACRE, Setting, Test};

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
        name: "nothing_is_lost_when_containerd_starts_anew",
        places: EVERYWHERE,
        check: restarted_containerd,
    },
];

fn killed_shim(setting: &mut Setting) {
    let containerd = &*setting.containerd;
    let events = Events::listen(containerd);
    let task = Task::start(
        containerd,
        setting.runtime,
        &["--null-io"],
        &["sleep", "1000"],
    );
    running::kill(only("containerd-shim"), Signal::KILL);
    let heard = events.until(task.id(), "/tasks/delete");
    let exit = heard.iter().find(|event| event.topic == "/tasks/exit");
    let status = exit.map(|event| event.body["exit_status"].clone());
    assert_eq!(status, Some(137.into()), "{heard:#?}");
    wait_until("the task is gone", || task.state().is_none());
    task.forget();
}

fn killed_monitor(setting: &mut Setting) {
    let containerd = &*setting.containerd;
    let events = Events::listen(containerd);
    let task = Task::start(containerd, setting.runtime, &[], &["sleep", "1000"]);
    running::kill(only("nacre-vmm"), Signal::KILL);
    let heard = events.until(task.id(), "/tasks/exit");
    let exit = heard
        .iter()
        .find(|event| event.topic == "/tasks/exit")
        .unwrap();
    assert_eq!(exit.body["exit_status"], 137, "{heard:#?}");
    task.wait_for("STOPPED");
    assert_eq!(task.delete(), 137);
}

/// The process of the only one of this name.
fn only(name: &str) -> u32 {
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
