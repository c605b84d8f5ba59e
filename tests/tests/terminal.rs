//! A container with a terminal, at the terminal of a person.

#![allow(clippy::unwrap_used)]

use nacre_tests::pty::Session;
use nacre_tests::{Clean, TestBundle, VmRun};
use serde_json::json;

#[test]
fn keys_sizes_and_interrupts_reach_the_container_and_the_terminal_is_restored() {
    let _clean = Clean::slate();
    let script = r#"
        trap 'interrupted=1' INT
        trap 'echo "resized to $(stty size)"' WINCH
        echo "size $(stty size) tty $(test -t 0 && echo yes) terminal $TERM"
        read line; echo "read <$line>"
        while [ -z "$interrupted" ]; do sleep 0.1; done
        echo interrupted
        read line; echo "then <$line>"
        exit 5"#;
    let bundle = TestBundle::sh(script)
        .with("/process/terminal", json!(true))
        .with("/process/env/-", json!("TERM=xterm"))
        .with(
            "/mounts/-",
            json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] }),
        );
    bundle.write();
    let dir = bundle.path().to_str().unwrap();
    let mut session = Session::start(&["vm-run", "bundle", dir], 91, 33);
    session.wait_for("size 33 91 tty yes terminal xterm");
    assert!(session.is_raw());
    session.press(b"abc\r");
    session.wait_for("read <abc>");
    session.resize(120, 40);
    session.wait_for("resized to 40 120");
    session.press(&[3]);
    session.wait_for("interrupted");
    session.press(b"last\r");
    session.wait_for("then <last>");
    assert_eq!(session.wait().code(), Some(5), "{:?}", session.screen());
    assert!(!session.is_raw(), "the terminal stayed raw");
}

#[test]
fn a_terminal_that_is_none_is_refused() {
    let _clean = Clean::slate();
    let bundle = TestBundle::new(&["true"]).with("/process/terminal", json!(true));
    let ended = VmRun::bundle(&bundle, &[]).expect_code(1);
    assert!(
        ended
            .stderr
            .starts_with("vm-run: process.terminal is true, but"),
        "{ended}"
    );
}
