//! `vm-run` as an OCI runtime: the life of a container, compared with runc's.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::Command;

use nacre_tests::oci::path;
use nacre_tests::{Clean, Ended, OciRuntime, TestBundle, running, wait_until};
use rustix::process::{Pid, Signal, WaitOptions, set_child_subreaper, waitpid};
use serde_json::json;

/// A program that ends only when it is killed.
const FOREVER: &[&str] = &["sleep", "1000000"];

/// What a caller learns of a call: its status, and the message without what is of its time
/// and the runtime's name.
fn learned(runtime: &OciRuntime, ended: &Ended) -> String {
    let message = ended.stderr.split_once("msg=").map_or("", |(_, text)| text);
    let message = message.trim().replace(runtime.program(), "runtime");
    format!("{} {message}", ended.code())
}

/// Makes calls, waits where told, and says what was learned of each.
fn transcript(runtime: &OciRuntime, calls: &[&str]) -> Vec<String> {
    calls
        .iter()
        .map(|call| {
            let words: Vec<_> = call.split(' ').collect();
            if let ["wait", id, status] = words[..] {
                runtime.wait_for_status(id, status);
                return (*call).to_owned();
            }
            let ended = runtime.call(&words);
            format!("{call}: {}", learned(runtime, &ended))
        })
        .collect()
}

#[test]
fn verbs_that_come_at_the_wrong_time_fail_as_with_runc() {
    let bundle = TestBundle::new(FOREVER);
    bundle.write();
    let _clean = Clean::slate();
    let create = format!("create --bundle {} x", path(bundle.path()));
    let calls = [
        "state x",
        "start x",
        "kill x",
        "pause x",
        "resume x",
        "ps x",
        "delete x",
        "delete --force x",
        "exec x true",
        &create,
        &create,
        "start x",
        "start x",
        "delete x",
        "resume x",
        "exec x true",
        "exec x false",
        "exec x nosuch",
        "exec x",
        "exec --cwd /tmp x pwd",
        "exec --user 5:6 --env A=b x true",
        "pause x",
        "pause x",
        "exec x true",
        "start x",
        "kill x FOO",
        "resume x",
        "kill x 99",
        "kill x sigusr1",
        "wait x running",
        "kill x KILL",
        "wait x stopped",
        "start x",
        "kill x",
        "exec x true",
        "pause x",
        "resume x",
        "ps x",
        "delete x",
        "delete x",
        "state x",
    ];
    let ours = transcript(&OciRuntime::vm_run(), &calls);
    let runcs = transcript(&OciRuntime::runc(), &calls);
    assert_eq!(ours, runcs);
}

#[test]
fn state_and_list_read_as_with_runc() {
    let _clean = Clean::slate();
    let bundle = TestBundle::new(FOREVER).with("/annotations", json!({ "org.test": "yes" }));
    let look = |runtime: &OciRuntime| {
        let mut looks = Vec::new();
        runtime.create("b", &bundle);
        runtime.run_detached("a", &bundle);
        for id in ["a", "b"] {
            let mut state = runtime.state(id);
            let pid = state["pid"].take().as_u64().unwrap();
            assert!(fs::exists(format!("/proc/{pid}")).unwrap());
            let created = state["created"].take();
            assert_is_time(created.as_str().unwrap());
            looks.push(state.to_string());
        }
        let listed = runtime.call(&["list", "--format", "json"]).expect_code(0);
        let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
        assert_eq!(listed[0]["pid"], runtime.state("a")["pid"]);
        looks.push(listed[1]["owner"].to_string());
        looks.push(runtime.call(&["list", "--quiet"]).text());
        let table = runtime.call(&["list"]).text();
        looks.push(table.lines().next().unwrap().to_owned());
        looks
    };
    assert_eq!(look(&OciRuntime::vm_run()), look(&OciRuntime::runc()));
}

/// Whether `text` is a time of RFC 3339, in UTC. runc leaves out the zeros at the end.
fn assert_is_time(text: &str) {
    let shape: String = text
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    let fraction = shape
        .strip_prefix("0000-00-00T00:00:00")
        .and_then(|rest| rest.strip_suffix('Z'));
    assert!(
        fraction.is_some_and(|rest| rest.len() <= 10 && ".000000000".starts_with(rest)),
        "{text} is no time"
    );
}

#[test]
fn run_ends_as_its_program_does() {
    let _clean = Clean::slate();
    let run = |runtime: &OciRuntime| {
        let mut ends = Vec::new();
        for script in [
            "exit 0",
            "exit 7",
            "kill -TERM $$",
            "echo out; echo err >&2",
        ] {
            let bundle = TestBundle::sh(script);
            bundle.write();
            let ended = runtime.call(&["run", "--bundle", path(bundle.path()), "x"]);
            ends.push((ended.code(), ended.text()));
            assert_eq!(runtime.status("x"), "", "run removes what it has made");
        }
        let bundle = TestBundle::new(&["nosuch"]);
        bundle.write();
        for verb in ["run", "create"] {
            let ended = runtime.call(&[verb, "--bundle", path(bundle.path()), "x"]);
            ends.push((ended.code(), learned(runtime, &ended)));
        }
        let bundle = TestBundle::new(FOREVER);
        bundle.write();
        let pid_file = runtime.path("pid");
        let detached = ["run", "--detach", "--pid-file", path(&pid_file), "--bundle"];
        let words = [&detached[..], &[path(bundle.path()), "x"]].concat();
        let _ = runtime.call(&words).expect_code(0);
        let pid = fs::read_to_string(pid_file).unwrap();
        assert_eq!(pid, runtime.pid("x").to_string());
        ends.push((0, runtime.status("x")));
        ends
    };
    assert_eq!(run(&OciRuntime::vm_run()), run(&OciRuntime::runc()));
}

/// A conmon or a shell's job control sees no difference to a child of its own.
#[test]
fn the_reported_process_takes_signals_and_exits_with_the_containers_status() {
    set_child_subreaper(Some(Pid::INIT)).unwrap();
    let _clean = Clean::slate();
    let runtime = OciRuntime::vm_run();
    let script = "trap 'echo got it; exit 5' USR1; echo ready; while :; do sleep 1; done";
    let bundle = TestBundle::sh(script);
    runtime.run_detached("x", &bundle);
    runtime.wait_for_output("ready");
    let pid = runtime.pid("x");
    running::kill(pid, Signal::USR1);
    let pid = Pid::from_raw(pid.cast_signed());
    let (_, status) = waitpid(pid, WaitOptions::empty()).unwrap().unwrap();
    assert_eq!(status.exit_status(), Some(5));
    assert!(runtime.output().contains("got it"));
    assert_eq!(runtime.status("x"), "stopped");
    set_child_subreaper(None).unwrap();
}

/// By default each of them would end the process that gets it.
#[test]
fn the_reported_process_passes_on_what_would_end_it() {
    let _clean = Clean::slate();
    let runtime = OciRuntime::vm_run();
    let signals = [
        ("ABRT", Signal::ABORT),
        ("QUIT", Signal::QUIT),
        ("SYS", Signal::SYS),
        ("TRAP", Signal::TRAP),
        ("XCPU", Signal::XCPU),
        ("XFSZ", Signal::XFSZ),
        ("STKFLT", Signal::STKFLT),
    ];
    let traps = signals.map(|(name, _)| format!("trap 'echo got {name}' {name}; "));
    let script = format!("{} echo ready; while :; do sleep 1; done", traps.concat());
    runtime.run_detached("x", &TestBundle::sh(&script));
    runtime.wait_for_output("ready");
    let pid = runtime.pid("x");
    for (name, signal) in signals {
        running::kill(pid, signal);
        runtime.wait_for_output(&format!("got {name}\n"));
    }
    assert_eq!(runtime.status("x"), "running");
}

#[test]
fn a_signal_for_all_reaches_every_process_of_a_container() {
    let _clean = Clean::slate();
    let script = "
        (trap 'echo child; exit' USR1; echo one ready; while :; do sleep 0.1; done) &
        trap 'echo first' USR1; echo two ready; while :; do sleep 0.1; done";
    let bundle = TestBundle::sh(script);
    let look = |runtime: &OciRuntime| {
        runtime.run_detached("x", &bundle);
        runtime.wait_for_output("one ready");
        runtime.wait_for_output("two ready");
        let code = runtime.call(&["kill", "--all", "x", "USR1"]).code();
        runtime.wait_for_output("child");
        runtime.wait_for_output("first");
        let killed = runtime.call(&["kill", "-a", "x", "KILL"]).code();
        runtime.wait_for_status("x", "stopped");
        (code, killed)
    };
    assert_eq!(look(&OciRuntime::vm_run()), (0, 0));
    assert_eq!(look(&OciRuntime::runc()), (0, 0));
}

#[test]
fn a_container_whose_keeper_was_killed_has_stopped_and_is_deleted_without_a_trace() {
    let _clean = Clean::slate();
    let runtime = OciRuntime::vm_run();
    let bundle = TestBundle::new(FOREVER).with("/linux/cgroupsPath", json!("/nacre-oci/x"));
    for started in [false, true] {
        runtime.create("x", &bundle);
        if started {
            let _ = runtime.call(&["start", "x"]).expect_code(0);
        }
        assert!(fs::exists("/sys/fs/cgroup/nacre-oci/x").unwrap());
        running::kill(runtime.pid("x"), Signal::KILL);
        runtime.wait_for_status("x", "stopped");
        assert_eq!(runtime.state("x")["pid"], 0);
        let _ = runtime.call(&["exec", "x", "true"]).expect_code(255);
        let _ = runtime.call(&["kill", "x", "KILL"]).expect_code(1);
        let _ = runtime.call(&["delete", "x"]).expect_code(0);
        assert_eq!(runtime.status("x"), "");
    }
    fs::remove_dir("/sys/fs/cgroup/nacre-oci").unwrap();
}

#[test]
fn of_a_create_that_is_killed_nothing_is_left() {
    let bundle = TestBundle::new(FOREVER);
    bundle.write();
    let clean = Clean::slate();
    let runtime = OciRuntime::vm_run();
    for milliseconds in [0, 20, 60, 200, 600, 1500] {
        let command = runtime.command(&["create", "--bundle", path(bundle.path()), "x"]);
        let mut create = runtime.spawn(command);
        std::thread::sleep(std::time::Duration::from_millis(milliseconds));
        let _ = create.kill();
        let killed = !create.wait().unwrap().success();
        if killed {
            wait_until("nothing is known of the container", || {
                nacre_tests::proc::names(&runtime.root()).is_empty()
            });
        } else {
            let _ = runtime.call(&["delete", "x"]).expect_code(0);
        }
    }
    drop(runtime);
    clean.assert_nothing_left();
}

#[test]
fn what_cannot_be_created_is_refused_in_one_line_and_leaves_nothing() {
    let _clean = Clean::slate();
    let runtime = OciRuntime::vm_run();
    let bundle = TestBundle::new(FOREVER);
    let create = |id: &str, more: &[&str]| {
        let words = [&["create", "--bundle", path(bundle.path())], more, &[id]].concat();
        let ended = runtime.call(&words).expect_code(1);
        assert_eq!(ended.stderr.lines().count(), 1, "{ended}");
        assert!(nacre_tests::proc::names(&runtime.root()).is_empty());
        ended.stderr
    };
    assert!(create("x", &[]).contains("config.json"));
    bundle.write();
    for id in ["a/b", "..", ".x", "", "a b"] {
        assert!(
            create(id, &[]).contains("invalid container ID format"),
            "{id}"
        );
    }
    assert!(create("x", &["--console-socket=/none"]).contains("console socket"));
    for text in ["", "{", "[]", "{}", "null", "\"x\""] {
        bundle.write_text(text);
        assert!(create("x", &[]).contains("config.json"), "{text}");
    }
    let terminal = TestBundle::new(FOREVER).with("/process/terminal", json!(true));
    bundle.write_text(&terminal.config.to_string());
    assert!(create("x", &[]).contains("console socket"));
    assert!(create("x", &["--console-socket=/none"]).contains("/none"));
    let host = TestBundle::new(FOREVER).with("/linux/namespaces/1/type", json!("cgroup"));
    bundle.write_text(&host.config.to_string());
    assert!(create("x", &[]).contains("linux.namespaces"));
    let ended = runtime.call(&["create", "--bundle", "/nonexistent", "x"]);
    assert!(ended.expect_code(1).stderr.contains("/nonexistent"));
    let with_one = runtime.command(&["create", "--preserve-fds=1", "x"]);
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$@\" 3</dev/null", "sh"]);
    shell.arg(with_one.get_program()).args(with_one.get_args());
    let ended = runtime.end(shell).expect_code(1);
    let expected = "--preserve-fds: descriptor 3 is open";
    assert!(ended.stderr.contains(expected), "{ended}");
}

/// What a tool is told that asks before it writes a bundle.
#[test]
fn features_are_those_of_runc_but_for_what_is_of_the_host() {
    let look = |runtime: &OciRuntime| {
        let ended = runtime.call(&["features"]).expect_code(0);
        serde_json::from_slice::<serde_json::Value>(&ended.stdout).unwrap()
    };
    let (ours, runcs) = (look(&OciRuntime::vm_run()), look(&OciRuntime::runc()));
    let all_of = |pointer: &str, but: &[&str]| {
        let ours = ours.pointer(pointer).unwrap().as_array().unwrap();
        for item in runcs
            .pointer(pointer)
            .into_iter()
            .flat_map(|v| v.as_array().unwrap())
        {
            let is_left_out = but.contains(&item.as_str().unwrap());
            assert_ne!(ours.contains(item), is_left_out, "{pointer}: {item}");
        }
    };
    all_of("/hooks", &[]);
    all_of(
        "/mountOptions",
        &[
            "acl", "noacl", "remount", "shared", "rshared", "slave", "rslave",
        ],
    );
    all_of("/linux/capabilities", &[]);
    all_of("/linux/namespaces", &[]);
    all_of("/linux/seccomp/actions", &["SCMP_ACT_NOTIFY"]);
    all_of("/linux/seccomp/operators", &[]);
    let archs = ours["linux"]["seccomp"]["archs"].as_array().unwrap();
    assert!(archs.contains(&json!("SCMP_ARCH_X86_64")));
}

#[test]
fn engines_find_errors_in_the_log_that_they_name() {
    let _clean = Clean::slate();
    let look = |runtime: &OciRuntime| {
        let log = runtime.path("log");
        let words = ["--log", path(&log), "--log-format", "json", "start", "x"];
        let ended = runtime.call(&words);
        let text = fs::read_to_string(log).unwrap();
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        (
            ended.code(),
            ended.stderr,
            line["level"].clone(),
            line["msg"].clone(),
        )
    };
    assert_eq!(look(&OciRuntime::vm_run()), look(&OciRuntime::runc()));
}

#[test]
fn of_verbs_at_the_same_time_one_wins() {
    let bundle = TestBundle::new(FOREVER);
    bundle.write();
    let _clean = Clean::slate();
    let runtime = OciRuntime::vm_run();
    let both = |words: &[&str]| {
        let children = [(); 2].map(|()| runtime.spawn(runtime.command(words)));
        let mut codes = children.map(|child| runtime.wait(child).code());
        codes.sort_unstable();
        codes
    };
    assert_eq!(
        both(&["create", "--bundle", path(bundle.path()), "x"]),
        [0, 1]
    );
    assert_eq!(both(&["start", "x"]), [0, 1]);
    assert_eq!(both(&["kill", "x", "KILL"])[0], 0);
    runtime.wait_for_status("x", "stopped");
    assert_eq!(both(&["delete", "x"]), [0, 1]);
}

#[test]
fn ten_containers_at_once() {
    let bundle = TestBundle::new(FOREVER);
    bundle.write();
    let _clean = Clean::slate();
    let runtime = OciRuntime::vm_run();
    let ids: Vec<_> = (0..10).map(|number| format!("c{number}")).collect();
    let all = |words: &[&str]| {
        let calls = ids.iter().map(|id| {
            let words = [words, &[id]].concat();
            runtime.spawn(runtime.command(&words))
        });
        for child in calls.collect::<Vec<_>>() {
            let _ = runtime.wait(child).expect_code(0);
        }
    };
    all(&["run", "-d", "--bundle", path(bundle.path())]);
    assert_eq!(runtime.call(&["list", "-q"]).text().lines().count(), 10);
    assert!(ids.iter().all(|id| runtime.status(id) == "running"));
    all(&["delete", "--force"]);
    assert_eq!(runtime.call(&["list", "-q"]).text(), "");
}
