//! Bytes in and out of a container: all of them, in order, whatever the hurry.

use std::process::Stdio;

use nacre_tests::ctr;
use nacre_tests::image::NOISE;
use nacre_tests::pty::Session;
use nacre_tests::{Running, noise};

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
