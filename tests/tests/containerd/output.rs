//! Bytes in and out of a container: all of them, in order, whatever the hurry.

use std::fs;
use std::process::Stdio;

use nacre_tests::containerd::NAMESPACE;
use nacre_tests::ctr::{self, Task, new_id};
use nacre_tests::image::{self, NOISE};
use nacre_tests::pty::Session;
use nacre_tests::{Running, noise, sh, wait_until};
use rustix::process::Signal;

use crate::setting::{EVERYWHERE, ONE_VERSION, Setting, Test};

pub(crate) const TESTS: &[Test] = &[
    Test {
        name: "much_output_and_a_burst_before_the_end_arrive_whole",
        places: EVERYWHERE,
        check: all_bytes,
    },
    Test {
        name: "a_terminal_is_a_terminal",
        places: ONE_VERSION,
        check: terminal,
    },
    Test {
        name: "a_logger_gets_all_output",
        places: ONE_VERSION,
        check: logger,
    },
    Test {
        name: "a_further_process_loses_no_output_whoever_takes_it",
        places: ONE_VERSION,
        check: output_of_an_exec,
    },
    Test {
        name: "who_attaches_again_goes_on_where_it_was",
        places: ONE_VERSION,
        check: attach,
    },
];

/// Bytes that go in and come back, then a burst just before the end.
fn all_bytes(setting: &mut Setting) {
    let sent = noise(20 << 20);
    let script = "cat; cat /noise; exit 3";
    let mut command = ctr::run(
        setting.containerd,
        setting.runtime,
        &[],
        &["sh", "-c", script],
    );
    command.stdin(Stdio::piped());
    let mut running = Running::start(command);
    running.write(&sent).unwrap();
    let ended = running.wait().expect_code(3);
    assert_eq!(ended.stdout.len(), sent.len() + NOISE);
    assert!(
        ended.stdout[..sent.len()] == sent,
        "other bytes than were sent"
    );
    assert!(
        ended.stdout[sent.len()..] == noise(NOISE),
        "other bytes than the file's"
    );
    assert_eq!(ended.stderr, "");
}

fn terminal(setting: &mut Setting) {
    let script = r#"
        until [ "$(stty size 2>/dev/null)" = "33 91" ]; do sleep 0.1; done
        echo "sized; tty $(test -t 0 && echo yes)"
        read line; echo "read <$line>"
        until [ "$(stty size)" = "40 120" ]; do sleep 0.1; done
        echo "resized"
        read line; exit 5"#;
    let run = ctr::run(
        setting.containerd,
        setting.runtime,
        &["--tty"],
        &["sh", "-c", script],
    );
    let words: Vec<_> = std::iter::once(run.get_program())
        .chain(run.get_args())
        .map(|word| word.to_str().unwrap())
        .collect();
    let mut session = Session::start(&words, 91, 33);
    session.wait_for("sized; tty yes");
    session.press(b"abc\r");
    session.wait_for("read <abc>");
    session.resize(120, 40);
    session.wait_for("resized");
    session.press(b"last\r");
    assert_eq!(session.wait().code(), Some(5), "{:?}", session.screen());
}

/// `file://` is what the tests of [`crate::faults`] use.
fn logger(setting: &mut Setting) {
    let dir = setting.containerd.dir().join("logger");
    fs::create_dir(&dir).unwrap();
    let program = dir.join("program");
    // Descriptors 3 and 4 are the output, the end of 5 says that it is ready. What the
    // address has behind its question mark are the arguments.
    let script = r#"#!/bin/sh
        cat <&3 >"$2/out" 5>&- &
        cat <&4 >"$2/err" 5>&- &
        echo "$CONTAINER_NAMESPACE $CONTAINER_ID" >"$2/who"
        exec 5>&-
        wait"#;
    fs::write(&program, script).unwrap();
    sh(&format!("chmod +x {}", program.display()));
    let uri = format!("binary://{}?to={}", program.display(), dir.display());
    let task = Task::start(
        setting.containerd,
        setting.runtime,
        &["--log-uri", &uri],
        &["sh", "-c", "echo err >&2; cat /noise; exit 6"],
    );
    task.wait_for("STOPPED");
    assert_eq!(task.delete(), 6);
    wait_until("the logger has all of it", || {
        let len = |name| fs::metadata(dir.join(name)).map_or(0, |file| file.len());
        len("out") >= NOISE as u64 && len("err") > 0
    });
    assert!(
        fs::read(dir.join("out")).unwrap() == noise(NOISE),
        "other bytes"
    );
    assert_eq!(fs::read_to_string(dir.join("err")).unwrap(), "err\n");
    let who = fs::read_to_string(dir.join("who")).unwrap();
    assert_eq!(who, format!("{NAMESPACE} {}\n", task.id()));
    fs::remove_dir_all(dir).unwrap();
}

/// A burst just before the end, to the caller and to a file.
fn output_of_an_exec(setting: &mut Setting) {
    let options = ["--null-io"];
    let task = Task::start(
        setting.containerd,
        setting.runtime,
        &options,
        &["sleep", "1000"],
    );
    let script = ["sh", "-c", "cat /noise; exit 6"];
    let ended = task.exec(&script).expect_code(6);
    assert!(ended.stdout == noise(NOISE), "other bytes");

    let log = setting.containerd.dir().join("exec.log");
    let uri = format!("file://{}", log.display());
    let logged = task.exec_command(&["--log-uri", &uri], &script);
    let _ = Running::to_the_end(logged).expect_code(6);
    assert!(fs::read(&log).unwrap() == noise(NOISE), "other bytes");
    fs::remove_file(log).unwrap();
    task.remove();
}

fn attach(setting: &mut Setting) {
    let containerd = setting.containerd;
    let task = Task::of(containerd, new_id());
    let mut command = containerd.ctr(&["run", "--runtime", setting.runtime.name()]);
    command.args([image::BUSYBOX, task.id(), "cat"]);
    command.stdin(Stdio::piped());
    let mut first = Running::start(command);
    first.write(b"one\n").unwrap();
    first.wait_for("one\n");
    first.signal(Signal::KILL);
    assert_eq!(first.wait().code(), 128 + 9);

    assert_eq!(task.state().as_deref(), Some("RUNNING"));
    let mut command = containerd.ctr(&["tasks", "attach", task.id()]);
    command.stdin(Stdio::piped());
    let mut second = Running::start(command);
    second.write(b"two\n").unwrap();
    second.wait_for("two\n");
    let _ = task.ctr(&["kill", "--signal", "KILL"]).expect_code(0);
    assert_eq!(second.wait().expect_code(137).text(), "two\n");
    // Who is attached at the end removes the task.
    wait_until("the task is gone", || task.state().is_none());
    task.forget();
}
