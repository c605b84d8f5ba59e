//! The main path: a bundle runs in a kernel of its own, as its specification says.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::MetadataExt;

use nacre_tests::{Clean, TestBundle, VmRun, noise, proc};
use rustix::process::Signal;
use serde_json::json;

/// A seccomp profile that answers one group of calls with `action`.
fn seccomp(action: &str, calls: &[&str]) -> serde_json::Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{ "names": calls, "action": action, "errnoRet": 95 }]
    })
}

#[test]
fn a_container_runs_in_its_own_kernel_as_the_specification_says() {
    let _clean = Clean::slate();
    let script = r#"
        echo "kernel $(uname -r)"; echo "host name $(hostname)"; echo "cwd $(pwd)"
        echo "id $(id -u) $(id -g) $(id -G)"; echo "greeting $GREETING"; echo "args $0 $1 $#"
        sed -n 's/:\t/ /; /^CapBnd /p; /^CapEff /p; /^NoNewPrivs /p; /^Seccomp /p' /proc/self/status
        echo "write: $(touch /etc/x 2>&1)"
        echo "denied: $(mkdir /tmp/x 2>&1)"
        echo "ulimit $(ulimit -n)"
        echo "interfaces $(ls /sys/class/net 2>/dev/null | tr "\n" " ")"
        echo "to stderr" >&2
        exit 7"#;
    let bundle = TestBundle::new(&["sh", "-c", script, "zero", "one"])
        .with("/hostname", json!("carved"))
        .with(
            "/process/user",
            json!({ "uid": 1000, "gid": 1001, "additionalGids": [1002] }),
        )
        .with("/process/cwd", json!("/etc"))
        .with("/process/env/-", json!("GREETING=hello world"))
        .with(
            "/process/rlimits",
            json!([{ "type": "RLIMIT_NOFILE", "soft": 77, "hard": 78 }]),
        )
        .with("/root/readonly", json!(true))
        .with(
            "/linux/seccomp",
            seccomp("SCMP_ACT_ERRNO", &["mkdir", "mkdirat"]),
        )
        // As numbers 5 and 10.
        .with_capabilities(&["CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    let ended = VmRun::bundle(&bundle, &[]).expect_code(7);

    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let text = ended.text();
    assert!(text.starts_with("kernel "), "{ended}");
    assert!(!text.contains(kernel.trim()), "the host's kernel: {ended}");
    for line in [
        "host name carved",
        "cwd /etc",
        "id 1000 1001 1001 1002",
        "greeting hello world",
        "args zero one 1",
        "CapBnd 0000000000000420",
        "CapEff 0000000000000420",
        "NoNewPrivs 1",
        "Seccomp 2",
        "write: touch: /etc/x: Read-only file system",
        "denied: mkdir: can't create directory '/tmp/x': Operation not supported",
        "ulimit 77",
    ] {
        ended.assert_line(line);
    }
    assert_eq!(ended.stderr, "to stderr\n", "and nothing of vm-run's own");
    assert!(!bundle.in_root("etc/x").exists());
}

#[test]
fn a_container_that_dies_of_a_signal_is_128_and_the_signal() {
    let _clean = Clean::slate();
    let bundle = TestBundle::new(&["mkdir", "/tmp/x"]).with(
        "/linux/seccomp",
        seccomp("SCMP_ACT_KILL_PROCESS", &["mkdir", "mkdirat"]),
    );
    // SIGSYS, which the profile sends.
    let ended = VmRun::bundle(&bundle, &[]).expect_code(128 + 31);
    assert_eq!(ended.text(), "");
}

#[test]
fn input_reaches_the_container_and_comes_back_unchanged() {
    let _clean = Clean::slate();
    let bundle = TestBundle::sh("cat; echo end >&2");
    let sent = noise(8 << 20);
    let mut running = VmRun::start(&bundle, &[]);
    running.write(&sent).unwrap();
    let ended = running.wait().expect_code(0);
    assert_eq!(ended.stdout.len(), sent.len());
    assert!(ended.stdout == sent, "same length, other bytes");
    assert_eq!(ended.stderr, "end\n");
}

#[test]
fn files_pass_through_the_root_and_bind_mounts_and_nowhere_else() {
    let _clean = Clean::slate();
    let script = r#"
        echo made >/made-inside && chmod 640 /made-inside
        cat /data/from-host && echo inside >/data/from-guest
        cat /etc/one-file && echo changed >/etc/one-file
        cat /fixed/f
        echo x >/fixed/f; echo "status $?"
        rm /fixed/f; echo "status $?"
        mount -o remount,rw /fixed 2>/dev/null; echo x >/fixed/f; echo "status $?"
        ls /data"#;
    let host = TestBundle::new(&[]);
    let path = |name: &str| host.in_root("tmp").join(name);
    fs::create_dir(path("data")).unwrap();
    fs::create_dir(path("fixed")).unwrap();
    fs::write(path("data/from-host"), "hello from the host\n").unwrap();
    fs::write(path("single"), "a file alone\n").unwrap();
    fs::write(path("beside"), "not to be seen\n").unwrap();
    fs::write(path("fixed/f"), "read only\n").unwrap();
    let bundle = TestBundle::sh(script)
        .with_bind(&path("data"), "/data", &["rbind", "rw"])
        .with_bind(&path("single"), "/etc/one-file", &["bind"])
        .with_bind(&path("fixed"), "/fixed", &["bind", "ro"])
        .with_capabilities(&["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_FOWNER"]);
    let ended = VmRun::bundle(&bundle, &[]).expect_code(0);

    assert_eq!(
        ended.text(),
        "hello from the host\na file alone\nread only\nstatus 1\nstatus 1\nstatus 1\n\
         from-guest\nfrom-host\n",
        "{ended}"
    );
    let read = |path| fs::read_to_string(path).unwrap();
    assert_eq!(read(bundle.in_root("made-inside")), "made\n");
    let metadata = fs::metadata(bundle.in_root("made-inside")).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.uid()), (0o640, 0));
    assert_eq!(read(path("data/from-guest")), "inside\n");
    assert_eq!(read(path("single")), "changed\n");
    assert_eq!(read(path("beside")), "not to be seen\n");
    assert_eq!(read(path("fixed/f")), "read only\n");
}

#[test]
fn the_guest_has_the_cpus_and_the_memory_asked_for_and_timing_is_told() {
    let _clean = Clean::slate();
    let bundle = TestBundle::sh(r#"nproc; sed -n "s/^MemTotal: *//p" /proc/meminfo"#);
    let options = ["--cpus", "2", "--memory", "300M", "--timing"];
    let ended = VmRun::bundle(&bundle, &options).expect_code(0);
    let text = ended.text();
    let (cpus, memory) = text.trim_end().split_once('\n').unwrap();
    assert_eq!(cpus, "2");
    let memory = proc::kib(memory) >> 10;
    assert!((240..=300).contains(&memory), "{memory} MiB");

    let mut phases = Vec::new();
    for line in ended
        .stderr
        .lines()
        .filter(|line| line.split_whitespace().count() >= 4)
    {
        let columns: Vec<_> = line.rsplitn(3, ' ').collect();
        if let Ok(at) = line.split_whitespace().rev().nth(1).unwrap().parse::<f64>() {
            phases.push((columns[2].trim().to_owned(), at));
        }
    }
    let times: Vec<_> = phases.iter().map(|(_, at)| *at).collect();
    assert!(
        times.len() == 7 && times.is_sorted() && times[0] > 0.0,
        "{ended}"
    );
    for phase in [
        "monitor up",
        "kernel entered",
        "agent ready",
        "first output",
        "pod gone",
    ] {
        assert!(ended.stderr.contains(phase), "{phase}: {ended}");
    }
    let number = |name: &str| -> u64 {
        let line = ended
            .stderr
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap();
        line.split_whitespace().last().unwrap().parse().unwrap()
    };
    let until_ready = number("VM exits until ready");
    assert!((1..100_000).contains(&until_ready), "{ended}");
    assert!(number("VM exits until ended") > until_ready, "{ended}");
    let touched = number("guest memory touched KiB") >> 10;
    assert!((1..=300).contains(&touched), "{ended}");
}

#[test]
fn signals_to_vm_run_are_for_the_container() {
    let _clean = Clean::slate();
    let bundle = TestBundle::sh(
        "trap 'echo INT' INT; trap 'echo USR1' USR1; trap 'echo TERM; exit 143' TERM
         echo ready; while true; do sleep 0.1; done",
    );
    let mut running = VmRun::start(&bundle, &[]);
    running.wait_for("ready");
    for (signal, name) in [(Signal::INT, "INT"), (Signal::USR1, "USR1")] {
        running.signal(signal);
        running.wait_for(name);
    }
    running.signal(Signal::TERM);
    let ended = running.wait().expect_code(143);
    assert_eq!(ended.text(), "ready\nINT\nUSR1\nTERM\n");
    assert_eq!(ended.stderr, "");
}
