//! `vm-run exec`, and terminals that go over a console socket, compared with runc.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use nacre_tests::oci::{Console, path};
use nacre_tests::pty::Session;
use nacre_tests::{Clean, OciRuntime, TestBundle, running, wait_until};
use rustix::process::{Pid, Signal, WaitOptions, set_child_subreaper, waitpid};
use serde_json::json;

/// A program that ends only when it is killed.
const FOREVER: &[&str] = &["sleep", "1000000"];

/// A bundle whose processes can have terminals.
fn with_terminals(args: &[&str]) -> TestBundle {
    let mount = json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts",
        "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] });
    TestBundle::new(args)
        .with("/mounts/-", mount)
        .with("/process/env/-", json!("PS1=> "))
}

#[test]
fn an_attached_exec_passes_its_streams_and_its_status_on() {
    let _clean = Clean::slate();
    let look = |runtime: &OciRuntime| {
        let bundle = TestBundle::new(FOREVER)
            .with("/process/env/-", json!("OF=container"))
            .with("/process/user/gid", json!(9))
            .with("/process/noNewPrivileges", json!(false))
            .with_capabilities(&["CAP_KILL"]);
        runtime.run_detached("x", &bundle);
        let process = runtime.path("process.json");
        let of_file = json!({
            "args": ["sh", "-c", "echo $A; pwd; exit 9"], "cwd": "/tmp",
            "env": ["PATH=/bin", "A=of the file"], "user": { "uid": 7, "gid": 8 }
        });
        fs::write(&process, of_file.to_string()).unwrap();
        let calls: &[&[&str]] = &[
            &["exec", "x", "sh", "-c", "echo out; echo err >&2; exit 3"],
            &["exec", "x", "sh", "-c", "kill -KILL $$"],
            &[
                "exec",
                "-e",
                "A=1",
                "-e",
                "B=2",
                "x",
                "sh",
                "-c",
                "echo $OF $A $B",
            ],
            &["exec", "--cwd", "/tmp", "x", "pwd"],
            &["exec", "--user", "5:6", "-g", "7", "-g", "8", "x", "id"],
            &["exec", "--user", "5", "x", "id"],
            &[
                "exec",
                "--no-new-privs",
                "x",
                "grep",
                "NoNewPrivs",
                "/proc/self/status",
            ],
            &["exec", "x", "grep", "Cap", "/proc/self/status"],
            &[
                "exec",
                "--cap",
                "CAP_CHOWN",
                "x",
                "grep",
                "Cap",
                "/proc/self/status",
            ],
            &["exec", "--process", path(&process), "x"],
            &["exec", "-p", "/nonexistent", "x"],
            &["exec", "x"],
            &["exec", "--", "x", "echo", "--tty"],
        ];
        let learned = calls.iter().map(|call| {
            let ended = runtime.call(call);
            let stderr = if ended.stderr.contains("level=error") {
                String::new()
            } else {
                ended.stderr.clone()
            };
            (call.join(" "), ended.code(), ended.text(), stderr)
        });
        let learned: Vec<_> = learned
            .map(|call| format!("{call:?}").replace(path(&process), "P"))
            .collect();
        let mut command = runtime.command(&["exec", "x", "cat"]);
        command.stdin(Stdio::piped());
        let before = runtime.output().len();
        let mut cat = runtime.spawn(command);
        cat.stdin
            .take()
            .unwrap()
            .write_all(b"through and back")
            .unwrap();
        let _ = runtime.wait(cat).expect_code(0);
        (learned, runtime.output()[before..].to_owned())
    };
    assert_eq!(look(&OciRuntime::vm_run()), look(&OciRuntime::runc()));
}

#[test]
fn signals_for_an_exec_reach_its_process_alone() {
    let _clean = Clean::slate();
    let runtime = OciRuntime::vm_run();
    let bundle = TestBundle::new(FOREVER);
    runtime.run_detached("x", &bundle);
    let script = "trap 'echo caught; exit 4' TERM; echo ready; while :; do sleep 1; done";
    let exec = runtime.spawn(runtime.command(&["exec", "x", "sh", "-c", script]));
    runtime.wait_for_output("ready");
    running::kill(exec.id(), Signal::TERM);
    let _ = runtime.wait(exec).expect_code(4);
    assert!(runtime.output().contains("caught"));
    assert_eq!(runtime.status("x"), "running");
}

#[test]
fn the_process_of_a_detached_exec_lives_as_long_as_what_it_stands_for() {
    set_child_subreaper(Some(Pid::INIT)).unwrap();
    let _clean = Clean::slate();
    let runtime = OciRuntime::vm_run();
    let bundle = TestBundle::new(FOREVER);
    runtime.run_detached("x", &bundle);
    let file = runtime.path("pid");
    let detached = |script: &str| {
        let words = [
            "exec",
            "--detach",
            "--pid-file",
            path(&file),
            "x",
            "sh",
            "-c",
            script,
        ];
        let _ = runtime.call(&words).expect_code(0);
        let pid = fs::read_to_string(&file).unwrap().parse().unwrap();
        Pid::from_raw(pid).unwrap()
    };
    let pid = detached("trap 'exit 6' USR1; echo up; while :; do sleep 1; done");
    runtime.wait_for_output("up");
    running::kill(pid.as_raw_nonzero().get().unsigned_abs(), Signal::USR1);
    let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
    assert_eq!(status.exit_status(), Some(6));
    // When it is killed, so is the process in the guest.
    let pid = detached("echo $$ > /tmp/pid; exec sleep 1000");
    let alive = "test -d /proc/$(cat /tmp/pid)";
    wait_until("it runs", || {
        runtime.call(&["exec", "x", "sh", "-c", alive]).code() == 0
    });
    running::kill(pid.as_raw_nonzero().get().unsigned_abs(), Signal::KILL);
    waitpid(Some(pid), WaitOptions::empty()).unwrap();
    wait_until("it is gone", || {
        runtime.call(&["exec", "x", "sh", "-c", alive]).code() == 1
    });
    set_child_subreaper(None).unwrap();
}

#[test]
fn an_exec_takes_the_callers_terminal() {
    let _clean = Clean::slate();
    let runtime = OciRuntime::vm_run();
    let bundle = with_terminals(FOREVER);
    runtime.run_detached("x", &bundle);
    let root = runtime.root();
    let words = ["vm-run", "--root", path(&root), "exec", "-t", "x", "sh"];
    let mut session = Session::start(&words, 91, 27);
    session.press(b"stty size; echo 1$((1))1\n");
    session.wait_for("27 91");
    session.wait_for("111");
    assert!(session.is_raw());
    session.resize(70, 20);
    session.press(b"sleep 1; stty size\n");
    session.wait_for("20 70");
    session.press(b"exit 5\n");
    assert_eq!(session.wait().code(), Some(5));
    assert!(!session.is_raw(), "the terminal is as before");
}

#[test]
fn terminals_go_over_a_console_socket() {
    let _clean = Clean::slate();
    let runtime = OciRuntime::vm_run();
    let bundle = with_terminals(&["sh"])
        .with("/process/terminal", json!(true))
        .with("/process/consoleSize", json!({ "height": 33, "width": 99 }));
    bundle.write();
    let socket = runtime.path("console");
    let listener = UnixListener::bind(&socket).unwrap();
    let create = [
        "create",
        "--console-socket",
        path(&socket),
        "--bundle",
        path(bundle.path()),
    ];
    let create = runtime.spawn(runtime.command(&[&create[..], &["x"]].concat()));
    let mut console = Console::accept(&listener);
    let _ = runtime.wait(create).expect_code(0);
    let _ = runtime.call(&["start", "x"]).expect_code(0);
    console.press("stty size\n");
    console.wait_for("33 99");
    console.resize(80, 24);
    // A new size takes another way than what is typed.
    console.press("until [ \"$(stty size)\" != \"33 99\" ]; do sleep 0.1; done; stty size\n");
    console.wait_for("24 80");

    let exec = [
        "exec",
        "-t",
        "-d",
        "--console-socket",
        path(&socket),
        "x",
        "sh",
        "-c",
    ];
    let script = "stty size; read line; echo got $line;
        until [ \"$(stty size)\" = \"17 61\" ]; do sleep 0.1; done; stty size";
    let exec = runtime.spawn(runtime.command(&[&exec[..], &[script]].concat()));
    let mut second = Console::accept(&listener);
    let _ = runtime.wait(exec).expect_code(0);
    second.resize(61, 17);
    second.press("hello\n");
    second.wait_for("got hello");
    second.wait_for("17 61");
    second.wait_for_end();

    console.press("exit 0\n");
    console.wait_for_end();
    runtime.wait_for_status("x", "stopped");
}

#[test]
fn limits_change_and_what_is_used_is_told() {
    let _clean = Clean::slate();
    let runtime = OciRuntime::vm_run();
    let bundle = TestBundle::new(FOREVER)
        .with("/linux/resources/memory/limit", json!(128 << 20))
        .with(
            "/mounts/-",
            json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup" }),
        );
    runtime.run_detached("x", &bundle);
    let update = ["update", "--memory", "64M", "--pids-limit", "9", "x"];
    let _ = runtime.call(&update).expect_code(0);
    let show = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max";
    let shown = runtime.call(&["exec", "x", "sh", "-c", show]).text();
    assert_eq!(shown, "67108864\n9\n");
    let file = runtime.path("resources");
    fs::write(&file, r#"{ "pids": { "limit": 8 } }"#).unwrap();
    let _ = runtime
        .call(&["update", "--resources", path(&file), "x"])
        .expect_code(0);
    let idle = ["update", "--cpu-idle", "1", "--cpuset-cpus", "0", "x"];
    let _ = runtime.call(&idle).expect_code(0);
    let shown = runtime.call(&["exec", "x", "cat", "/sys/fs/cgroup/cpu.idle"]);
    assert_eq!(shown.text(), "1\n");
    let status = fs::read_to_string(format!("/proc/{}/status", runtime.pid("x"))).unwrap();
    assert!(status.contains("Cpus_allowed_list:\t0\n"), "{status}");
    let _ = runtime
        .call(&["update", "--cpu-idle", "0", "--blkio-weight", "500", "x"])
        .expect_code(0);
    let shown = runtime.call(&["exec", "x", "cat", "/sys/fs/cgroup/io.weight"]);
    assert_eq!(shown.text(), "default 4950\n");
    for (option, value) in [("--cpuset-mems", "0"), ("--cpuset-cpus", "4095")] {
        let refused = runtime.call(&["update", option, value, "x"]).expect_code(1);
        assert_eq!(refused.stderr.lines().count(), 1, "{refused}");
    }
    let event = runtime.call(&["events", "--stats", "x"]).expect_code(0);
    let event: serde_json::Value = serde_json::from_slice(&event.stdout).unwrap();
    assert_eq!(
        (&event["type"], &event["id"]),
        (&json!("stats"), &json!("x"))
    );
    let data = &event["data"];
    assert_eq!(data["pids"], json!({ "current": 1, "limit": 8 }));
    assert_eq!(data["memory"]["usage"]["limit"], 64 << 20);
    assert!(
        data["cpu"]["usage"]["total"].as_u64().unwrap() > 0,
        "{data}"
    );
    let processes = runtime.call(&["ps", "--format", "json", "x"]).text();
    let processes: Vec<u32> = serde_json::from_str(&processes).unwrap();
    assert_eq!(processes.len(), 1);
}

/// As `ps -ef` of a host has them, which runc calls.
#[test]
fn processes_are_listed_in_the_columns_of_ps() {
    let _clean = Clean::slate();
    let runtime = OciRuntime::vm_run();
    runtime.run_detached("x", &TestBundle::new(FOREVER));
    for options in [&[][..], &["-ef"]] {
        let words = [&["ps", "x"], options].concat();
        let table = runtime.call(&words).expect_code(0).text();
        let lines: Vec<_> = table.lines().collect();
        let title = "UID          PID    PPID  C STIME TTY          TIME CMD";
        assert_eq!((lines.len(), lines[0]), (2, title), "{table}");
        let words: Vec<_> = lines[1].split_whitespace().collect();
        assert_eq!((words[0], words[5]), ("root", "?"), "{table}");
        assert_eq!(words[7..], ["sleep", "1000000"], "{table}");
    }
    let chosen = runtime
        .call(&["ps", "x", "-eo", "ppid,args"])
        .expect_code(0);
    assert!(chosen.text().ends_with(" sleep 1000000\n"), "{chosen}");
    let refused = runtime.call(&["ps", "x", "--forest"]).expect_code(1);
    assert_eq!(refused.stderr.lines().count(), 1, "{refused}");
}

#[test]
fn a_kill_for_want_of_memory_is_an_event() {
    let _clean = Clean::slate();
    let runtime = OciRuntime::vm_run();
    let bundle = TestBundle::new(FOREVER).with("/linux/resources/memory/limit", json!(32 << 20));
    runtime.run_detached("x", &bundle);
    let mut events = runtime.spawn(runtime.command(&["events", "--interval", "1", "x"]));
    runtime.wait_for_output(r#""type":"stats""#);
    let much = "dd if=/dev/zero of=/dev/null bs=64M count=1";
    let _ = runtime.call(&["exec", "x", "sh", "-c", much]);
    wait_until("it is told", || {
        let said = runtime.output();
        let mut told = said
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        told.any(|event: serde_json::Value| event == json!({ "type": "oom", "id": "x" }))
    });
    events.kill().unwrap();
    events.wait().unwrap();
}

#[test]
fn a_bundle_of_spec_runs() {
    let _clean = Clean::slate();
    let runtime = OciRuntime::vm_run();
    let bundle = TestBundle::new(&["sh"]);
    let dir = path(bundle.path());
    let _ = runtime.call(&["spec", "--bundle", dir]).expect_code(0);
    let again = runtime.call(&["spec", "--bundle", dir]).expect_code(1);
    assert!(again.stderr.contains("exists"), "{again}");
    let rootless = runtime.call(&["spec", "--rootless"]).expect_code(1);
    assert!(rootless.stderr.contains("--rootless: "), "{rootless}");
    let root = runtime.root();
    let words = ["vm-run", "--root", path(&root), "run", "--bundle", dir, "x"];
    let mut session = Session::start(&words, 80, 24);
    session.press(b"echo $((41+1)); exit 3\n");
    session.wait_for("42");
    assert_eq!(session.wait().code(), Some(3));
}

/// `/dev/full` and friends aside, streams of an exec may be any files.
#[test]
fn an_exec_reads_a_file_and_writes_another() {
    let _clean = Clean::slate();
    let runtime = OciRuntime::vm_run();
    let bundle = TestBundle::new(FOREVER);
    runtime.run_detached("x", &bundle);
    let noise = nacre_tests::noise(3 << 20);
    fs::write(runtime.path("in"), &noise).unwrap();
    let mut command = runtime.command(&["exec", "x", "cat"]);
    command.stdin(File::open(runtime.path("in")).unwrap());
    command.stdout(File::create(runtime.path("out")).unwrap());
    assert!(command.status().unwrap().success());
    let mut copied = Vec::new();
    File::open(runtime.path("out"))
        .unwrap()
        .read_to_end(&mut copied)
        .unwrap();
    assert!(copied == noise);
}

#[test]
fn a_container_that_was_not_started_is_executed_in_and_paused_as_with_runc() {
    let _clean = Clean::slate();
    let bundle = TestBundle::sh("echo main; exec sleep 1000000");
    let look = |runtime: &OciRuntime| {
        runtime.create("x", &bundle);
        let exec = runtime.call(&["exec", "x", "sh", "-c", "echo early; exit 4"]);
        let mut looks = vec![format!("{} {}", exec.code(), exec.text())];
        for verb in ["pause", "resume"] {
            let _ = runtime.call(&[verb, "x"]).expect_code(0);
            looks.push(runtime.status("x"));
        }
        let _ = runtime.call(&["start", "x"]).expect_code(0);
        // What it prints must not come between what a call does.
        runtime.wait_for_output("main");
        looks.push(runtime.status("x"));
        looks
    };
    assert_eq!(look(&OciRuntime::vm_run()), look(&OciRuntime::runc()));
}

#[test]
fn an_exec_that_ignores_a_pause_runs_when_it_is_over() {
    let _clean = Clean::slate();
    let bundle = TestBundle::new(FOREVER);
    let look = |runtime: &OciRuntime| {
        runtime.run_detached("x", &bundle);
        let _ = runtime.call(&["pause", "x"]).expect_code(0);
        let refused = runtime.call(&["exec", "x", "true"]).code();
        let words = ["exec", "--ignore-paused", "x", "sh", "-c", "exit 6"];
        let exec = runtime.spawn(runtime.command(&words));
        let _ = runtime.call(&["resume", "x"]).expect_code(0);
        (refused, runtime.wait(exec).code())
    };
    let ends = look(&OciRuntime::vm_run());
    assert_eq!(ends, look(&OciRuntime::runc()));
    assert_eq!(ends.1, 6);
}
