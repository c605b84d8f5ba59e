//! What people and the kubelet do with the streams of a pod's container: a shell at a terminal,
//! `crictl attach`, the rotation of logs.

use nacre_tests::crictl::{Pids, Pod};
use nacre_tests::wait_until;
use rustix::process::Signal;

use crate::setting::{POD_KINDS, Setting, Test};

pub(crate) const TESTS: &[Test] = &[
    Test {
        name: "an_exec_has_the_terminal_of_who_asks_for_it",
        places: POD_KINDS,
        check: at_a_terminal,
    },
    Test {
        name: "a_container_is_attached_to_again_and_again",
        places: POD_KINDS,
        check: attached,
    },
    Test {
        name: "nothing_is_lost_when_a_log_is_rotated",
        places: POD_KINDS,
        check: rotated,
    },
];

fn at_a_terminal(setting: &mut Setting) {
    let pod = Pod::run(setting.containerd, setting.runtime, Pids::Private);
    let container = pod.start("exec sleep 10000", Pids::Private);
    let script = r#"
        is() { until [ "$(stty size)" = "$1" ]; do sleep 0.1; done; echo "now $1"; }
        trap 'echo "trapped"; stop=1' INT
        test -t 0 && test -t 1 && test -t 2 && echo "all three"
        is "30 90"
        read -r line; echo "read <$line>"
        is "40 120"
        until [ "$stop" ]; do sleep 0.1; done
        exit 7"#;
    let mut session = container.terminal(&["sh", "-c", script], 90, 30);
    session.wait_for("all three");
    session.wait_for("now 30 90");
    session.press("wörd\r".as_bytes());
    session.wait_for("read <wörd>");
    session.resize(120, 40);
    session.wait_for("now 40 120");
    session.press(b"\x03");
    session.wait_for("trapped");
    // crictl has a status of its own, and tells the other.
    assert!(!session.wait().success());
    let screen = session.screen();
    assert!(screen.contains("exit code 7"), "{screen}");
    assert!(!session.is_raw());
    pod.remove();
}

fn attached(setting: &mut Setting) {
    let pod = Pod::run(setting.containerd, setting.runtime, Pids::Private);
    let script = r#"while read -r line; do echo "got $line"; [ "$line" != end ] || { sleep 2; exit 3; }; done"#;
    let container = pod.start_changed(script, Pids::Private, |config| {
        config["stdin"] = true.into();
    });
    let mut first = container.attach();
    first.write(b"one\n").unwrap();
    first.wait_for("got one\n");
    first.signal(Signal::KILL);
    let _ = first.wait();

    assert_eq!(container.state().0, "CONTAINER_RUNNING");
    let mut second = container.attach();
    second.write(b"two\n").unwrap();
    second.wait_for("got two\n");
    second.write(b"end\n").unwrap();
    second.wait_for("got end\n");
    let said = second.wait().text();
    assert!(!said.contains("one"), "{said}");
    assert_eq!(container.wait(), 3);
    assert_eq!(
        container.log(),
        "stdout got one\nstdout got two\nstdout got end\n"
    );
    pod.remove();
}

fn rotated(setting: &mut Setting) {
    let pod = Pod::run(setting.containerd, setting.runtime, Pids::Private);
    let script = "for n in $(seq 100); do echo $n; sleep 0.1; done; exec sleep 10000";
    let container = pod.start(script, Pids::Private);
    wait_until("it has begun", || container.log().lines().count() > 3);
    container.rotate_log();
    let all: String = (1..=100)
        .map(|number| format!("stdout {number}\n"))
        .collect();
    wait_until("all is there, in both", || {
        container.rotated_log() + &container.log() == all
    });
    assert!(container.log().lines().count() > 3, "{}", container.log());
    pod.remove();
}
