//! A container's life: start, end, and what is said of both.

use std::fs;

use nacre_tests::ctr::{self, Events, Task};
use nacre_tests::{Running, proc};

use crate::setting::{EVERYWHERE, NACRE, ONE_VERSION, Setting, Test};

pub(crate) const TESTS: &[Test] = &[
    Test {
        name: "a_container_ends_with_its_status_and_its_own_words",
        places: EVERYWHERE,
        check: status_and_words,
    },
    Test {
        name: "a_program_that_is_not_there_is_an_error_and_leaves_nothing",
        places: ONE_VERSION,
        check: missing_program,
    },
    Test {
        name: "a_container_lives_as_its_caller_says",
        places: EVERYWHERE,
        check: life,
    },
    Test {
        name: "a_container_out_of_memory_is_137_with_an_event",
        places: ONE_VERSION,
        check: out_of_memory,
    },
    Test {
        name: "a_configuration_is_what_the_caller_names_and_a_wrong_one_is_refused",
        places: NACRE,
        check: configuration,
    },
];

fn status_and_words(setting: &mut Setting) {
    let script = "echo out; echo err >&2; cat /etc/greeting; exit 7";
    let run = ctr::run(
        setting.containerd,
        setting.runtime,
        &[],
        &["sh", "-c", script],
    );
    let ended = Running::to_the_end(run).expect_code(7);
    assert_eq!(ended.text(), "out\nof the upper layer\n");
    assert_eq!(ended.stderr, "err\n");
}

fn missing_program(setting: &mut Setting) {
    let run = ctr::run(setting.containerd, setting.runtime, &[], &["/bin/missing"]);
    let ended = Running::to_the_end(run);
    assert_ne!(ended.code(), 0, "{ended}");
    assert!(ended.stderr.contains("/bin/missing"), "{ended}");
    assert!(
        ended.stderr.contains("no such file or directory"),
        "{ended}"
    );
}

fn configuration(setting: &mut Setting) {
    let containerd = setting.containerd;
    let file = containerd.dir().join("other.toml");
    let run = |text: &str| {
        fs::write(&file, text).unwrap();
        let option = format!("--runtime-config-path={}", file.display());
        let args = ["sed", "-n", "s/^MemTotal: *//p", "/proc/meminfo"];
        Running::to_the_end(ctr::run(containerd, setting.runtime, &[&option], &args))
    };
    let config = "default_memory_mib = 200\nboot_timeout_secs = 120\n";
    let memory = proc::kib(run(config).expect_code(0).text().trim_end());
    assert!((100 << 10..200 << 10).contains(&memory), "{memory} KiB");

    let ended = run("default_memory = 200\n");
    assert_ne!(ended.code(), 0, "{ended}");
    let place = file.display().to_string();
    for text in [&place, "default_memory"] {
        assert!(ended.stderr.contains(text), "{ended}");
    }
    fs::remove_file(&file).unwrap();
}

/// One container and all that can be asked of it.
fn life(setting: &mut Setting) {
    let containerd = setting.containerd;
    let events = Events::listen(containerd);
    // It counts in a file that an exec can read.
    let script =
        "trap 'exit 9' TERM; n=0; while true; do n=$((n + 1)); echo $n > /tmp/n; sleep 0.1; done";
    let task = Task::start(containerd, setting.runtime, &[], &["sh", "-c", script]);
    assert_eq!(task.state().as_deref(), Some("RUNNING"));

    executes(&task);
    pauses(&task);
    measures(&task);

    let _ = task.ctr(&["kill", "--signal", "TERM"]).expect_code(0);
    task.wait_for("STOPPED");
    let id = task.id().to_owned();
    assert_eq!(task.delete(), 9);

    let heard = events.until(&id, "/tasks/delete");
    let of_init: Vec<_> = heard
        .iter()
        .filter(|event| {
            let of = event.body["exec_id"].as_str().or(event.body["id"].as_str());
            of.is_none_or(|of| of.is_empty() || of == id)
        })
        .map(|event| event.topic.as_str())
        .collect();
    let expected = ["create", "start", "paused", "resumed", "exit", "delete"];
    assert_eq!(
        of_init,
        expected.map(|name| format!("/tasks/{name}")),
        "{heard:#?}"
    );
    let of_exec: Vec<_> = heard
        .iter()
        .filter(|event| event.body["exec_id"] == "exec1" || event.body["id"] == "exec1")
        .map(|event| event.topic.as_str())
        .collect();
    assert_eq!(
        of_exec,
        ["/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"],
        "{heard:#?}"
    );
    let exit = heard
        .iter()
        .rfind(|event| event.topic == "/tasks/exit")
        .unwrap();
    assert_eq!(exit.body["exit_status"], 9, "{exit:?}");
}

fn executes(task: &Task) {
    let ended = task
        .exec(&["sh", "-c", "echo out; echo err >&2; exit 5"])
        .expect_code(5);
    assert_eq!(
        (ended.text().as_str(), ended.stderr.as_str()),
        ("out\n", "err\n")
    );
    let mut command = task.exec_command(&[], &["cat"]);
    command.stdin(std::process::Stdio::piped());
    let mut cat = Running::start(command);
    cat.write(b"through\n").unwrap();
    cat.wait_for("through");
    assert_eq!(cat.wait().expect_code(0).text(), "through\n");
    let ended = task.exec(&["/bin/missing"]);
    assert_ne!(ended.code(), 0, "{ended}");
    assert!(ended.stderr.contains("/bin/missing"), "{ended}");
}

fn pauses(task: &Task) {
    let _ = task.ctr(&["pause"]).expect_code(0);
    assert_eq!(task.state().as_deref(), Some("PAUSED"));
    let _ = task.ctr(&["resume"]).expect_code(0);
    assert_eq!(task.state().as_deref(), Some("RUNNING"));
    let before = count(task);
    nacre_tests::wait_until("it counts on", || count(task) > before);
}

fn count(task: &Task) -> u32 {
    // Between truncation and writing the file is empty.
    task.exec(&["cat", "/tmp/n"])
        .expect_code(0)
        .text()
        .trim()
        .parse()
        .unwrap_or(0)
}

fn measures(task: &Task) {
    let metrics = task.ctr(&["metrics"]).expect_code(0).text();
    let value = |name: &str| -> u64 {
        let line = metrics.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
        value.unwrap_or_else(|| panic!("no {name}: {metrics}"))
    };
    assert!((1..=3).contains(&value("pids.current")), "{metrics}");
    assert!(
        (1 << 12..1 << 28).contains(&value("memory.usage ")),
        "{metrics}"
    );
    assert!(value("cpu.usage_usec") > 0, "{metrics}");
    let processes = task.ctr(&["ps"]).expect_code(0);
    assert!(processes.text().lines().count() >= 2, "{processes}");
}

fn out_of_memory(setting: &mut Setting) {
    let containerd = setting.containerd;
    let events = Events::listen(containerd);
    let limit = (32 << 20).to_string();
    // Waits for its neighbour, so that both are there when it happens.
    let script = "sleep 1; dd if=/dev/zero of=/dev/null bs=100M count=1";
    let options = ["--memory-limit", limit.as_str()];
    let task = Task::start(containerd, setting.runtime, &options, &["sh", "-c", script]);
    let _ = events.until(task.id(), "/tasks/oom");
    let heard = events.until(task.id(), "/tasks/exit");
    task.wait_for("STOPPED");
    // runc's shim watches the cgroup on its own, and may tell of it after the end.
    if setting.runtime.is_nacre() {
        let topics: Vec<_> = heard.iter().map(|event| event.topic.as_str()).collect();
        assert!(
            topics.ends_with(&["/tasks/oom", "/tasks/exit"]),
            "{topics:?}"
        );
    }
    assert_eq!(task.delete(), 137);
}
