//! A guest that stands still, as one does whose host gives it no CPU. It may go on again, so
//! that nobody but who wants it to end ends it.

use std::time::{Duration, Instant};

use nacre_tests::crictl::{Pids, Pod};
use nacre_tests::{running, wait_until};
use rustix::process::Signal;

use crate::faults::only;
use crate::setting::{NACRE_PODS, Setting, Test};

pub(crate) const TESTS: &[Test] = &[Test {
    name: "a_frozen_guest_outlives_a_probe_and_ends_when_it_is_stopped",
    places: NACRE_PODS,
    check: frozen,
}];

/// What a signal to a guest that does not answer may take, a sixth of the tests' time for a
/// boot, and what else goes on in an emulated host.
const SIGNAL: Duration = Duration::from_secs(20 + 15);

fn frozen(setting: &mut Setting) {
    let pod = Pod::run(setting.containerd, setting.runtime, Pids::Private);
    let container = pod.start("while true; do sleep 1; done", Pids::Private);
    let monitor = only("nacre-vmm");

    let probe = container.probe(5, &["sh", "-c", "touch /tmp/probed; exec sleep 1000"]);
    wait_until("the probe runs", || {
        container.exec(&["test", "-e", "/tmp/probed"]).code() == 0
    });
    running::kill(monitor, Signal::STOP);
    let start = Instant::now();
    let late = probe.wait();
    assert_ne!(late.code(), 0, "{late}");
    // containerd tries its end, and then once more before it forgets it.
    let limit = Duration::from_secs(5) + 2 * SIGNAL;
    assert!(start.elapsed() < limit, "{:?}", start.elapsed());
    assert_eq!(pod.state(), "SANDBOX_READY");
    running::kill(monitor, Signal::CONT);
    assert_eq!(container.sh("echo on it goes"), "on it goes");
    assert_eq!(container.state().0, "CONTAINER_RUNNING");

    running::kill(monitor, Signal::STOP);
    let start = Instant::now();
    // TERM, two seconds, KILL.
    let _ = container.crictl(&["stop", "--timeout", "2"]);
    assert!(start.elapsed() < 2 * SIGNAL, "{:?}", start.elapsed());
    assert_eq!(container.wait(), 137);
    let start = Instant::now();
    pod.remove();
    assert!(start.elapsed() < SIGNAL, "{:?}", start.elapsed());
}
