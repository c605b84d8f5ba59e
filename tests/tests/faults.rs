//! What fails in the middle, and what is left of it: nothing. Each test ends
//! with a look at processes, mounts, cgroups, sockets, links and directories.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nacre_tests::{Clean, TestBundle, VmRun, count, noise, proc, running};
use rustix::process::Signal;
use serde_json::json;

/// A container that says `ready` and then runs until it is ended.
fn endless() -> TestBundle {
    TestBundle::sh("echo ready; while true; do sleep 1; done")
        .with("/linux/cgroupsPath", json!("/nacre-test/endless"))
}

#[test]
fn a_monitor_that_is_killed_is_told_and_nothing_is_left() {
    let _clean = Clean::slate();
    let bundle = endless();
    let mut running = VmRun::start(&bundle, &[]);
    running.wait_for("ready");
    running::kill(running.monitor(), Signal::KILL);
    let start = Instant::now();
    let ended = running.wait().expect_code(1);
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
    assert!(
        ended
            .stderr
            .starts_with("vm-run: the monitor was killed by signal 9 while the guest was running"),
        "{ended}"
    );
}

#[test]
fn nothing_is_left_of_a_vm_run_that_is_killed() {
    let bundle = TestBundle::sh("echo ready; while true; do sleep 1; done");
    let clean = Clean::slate();
    for when in ["at once", "while it boots", "while it runs"] {
        let mut running = VmRun::start(&bundle, &[]);
        match when {
            "at once" => {}
            "while it boots" => {
                while proc::named("nacre-vmm").is_empty() {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            _ => running.wait_for("ready"),
        }
        running.signal(Signal::KILL);
        let ended = running.wait();
        assert_eq!(ended.code(), 128 + 9, "{when}: {ended}");
        let left = clean.left_behind();
        assert!(left.is_empty(), "{when}: {left:#?}");
    }
}

#[test]
fn a_slow_reader_gets_every_byte_and_costs_no_memory() {
    // KiB; what a front door or monitor may hold beyond what it had at the start.
    const GROWTH: u64 = 8 << 10;
    let _clean = Clean::slate();
    let len = count(64, 256) << 20;
    let expected = noise(len);
    let bundle = TestBundle::sh("echo begin >&2; cat /etc/noise");
    fs::write(bundle.in_root("etc/noise"), &expected).unwrap();
    let (running, mut output) = VmRun::start_unread(&bundle, &[]);

    let mut received = Vec::with_capacity(len);
    let mut buffer = vec![0; 1 << 18];
    let mut before = BTreeMap::new();
    loop {
        let read = output.read(&mut buffer).unwrap();
        if read == 0 {
            break;
        }
        if before.is_empty() {
            before = held(&running);
            // Nobody reads for a while: all that is between has to fill up and wait.
            std::thread::sleep(Duration::from_secs(3));
        }
        let old = received.len();
        received.extend_from_slice(&buffer[..read]);
        if received.len() >> 23 != old >> 23 && received.len() < len {
            std::thread::sleep(Duration::from_millis(100));
            for (pid, kib) in held(&running) {
                let limit = before[&pid] + GROWTH;
                assert!(
                    kib < limit,
                    "process {pid} holds {kib} KiB after {}",
                    received.len()
                );
            }
        }
    }
    assert_eq!(received.len(), expected.len());
    assert!(received == expected, "same length, other bytes");
    let ended = running.wait().expect_code(0);
    assert_eq!(ended.stderr, "begin\n");
}

/// What the front door and the monitor hold for themselves, in KiB.
fn held(running: &VmRun) -> BTreeMap<u32, u64> {
    [running.pid(), running.monitor()]
        .into_iter()
        .map(|pid| (pid, proc::own_anonymous_kib(pid)))
        .collect()
}

#[test]
fn a_container_out_of_memory_is_137_and_a_line_that_says_so() {
    let _clean = Clean::slate();
    let bundle = TestBundle::new(&["dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1"])
        .with("/linux/resources/memory/limit", json!(32 << 20));
    let ended = VmRun::bundle(&bundle, &[]).expect_code(137);
    assert_eq!(ended.stderr.lines().count(), 1, "{ended}");
    for text in ["vm-run: the container ran out of memory", "limit is 32 MiB"] {
        assert!(ended.stderr.contains(text), "{ended}");
    }
}

#[test]
fn a_container_that_does_not_read_its_input_ends_all_the_same() {
    let _clean = Clean::slate();
    let bundle = TestBundle::sh("head -c 5; exec 0<&-; echo; echo closed; exit 3");
    bundle.write();
    let mut command = VmRun::command(bundle.path(), &[]);
    command.stdin(Stdio::piped());
    let mut running = VmRun::start_command(command);
    let chunk = noise(1 << 16);
    running.write(b"12345").unwrap();
    // Until it is gone: nobody may wait for the other for ever.
    let error = loop {
        match running.write(&chunk) {
            Ok(()) => std::thread::sleep(Duration::from_millis(1)),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    let ended = running.wait().expect_code(3);
    assert_eq!(ended.text(), "12345\nclosed\n");
    assert_eq!(ended.stderr, "");
}

#[test]
fn input_that_was_closed_from_the_start_is_empty() {
    let _clean = Clean::slate();
    let bundle = TestBundle::sh("cat; echo status $?");
    bundle.write();
    let mut command = std::process::Command::new("sh");
    command
        .args(["-c", "exec vm-run bundle \"$0\" <&-"])
        .arg(bundle.path());
    let ended = VmRun::start_command(command).wait().expect_code(0);
    assert_eq!(ended.text(), "status 0\n");
    assert_eq!(ended.stderr, "");
}

#[test]
fn output_that_nobody_wants_does_not_hold_up_the_container() {
    let _clean = Clean::slate();
    let bundle = TestBundle::sh(
        "yes=0; while [ $yes -lt 2000 ]; do echo $yes || exit 9; \
         yes=$((yes + 1)); done; exit 4",
    );
    let (running, output) = VmRun::start_unread(&bundle, &[]);
    drop(output);
    let ended = running.wait();
    // As with any runtime, the container may see that its reader is gone.
    assert!([4, 9, 141].contains(&ended.code()), "{ended}");
}

#[test]
fn starts_in_a_row_let_nothing_grow() {
    const WARM_UP: usize = 3;
    let bundle = TestBundle::new(&["echo", "done"]);
    let clean = Clean::slate();
    let mut before = None;
    for number in 0..count(20, 500) {
        if number == WARM_UP {
            before = Some(Usage::now());
        }
        let ended = VmRun::bundle(&bundle, &[]).expect_code(0);
        assert_eq!(ended.text(), "done\n", "start {number}: {ended}");
        let left = clean.left_behind();
        assert!(left.is_empty(), "after start {number}: {left:#?}");
    }
    let (before, after) = (before.unwrap(), Usage::now());
    assert!(
        after.processes <= before.processes,
        "{before:?}, then {after:?}"
    );
    assert!(
        after.files <= before.files + 32,
        "{before:?}, then {after:?}"
    );
    assert_eq!(after.mounts, before.mounts, "{before:?}, then {after:?}");
    // A leak of one guest's memory, or of 1 MiB a start, would be more.
    let lost = before.available.saturating_sub(after.available);
    assert!(
        lost < 8 << 10,
        "{lost} KiB are gone: {before:?}, then {after:?}"
    );
}

/// What of the host is in use.
#[derive(Debug)]
struct Usage {
    processes: usize,
    files: u64,
    mounts: usize,
    /// KiB.
    available: u64,
}

impl Usage {
    fn now() -> Self {
        // So that what the kernel remembers for speed does not count.
        fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
        let files = fs::read_to_string("/proc/sys/fs/file-nr").unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        Self {
            processes: proc::all()
                .into_iter()
                .filter(|&pid| !proc::is_kernels(pid))
                .count(),
            files: files.split_whitespace().next().unwrap().parse().unwrap(),
            mounts: mounts.lines().count(),
            available: proc::available_kib(),
        }
    }
}
