//! `process` of `config.json`: what a container's first process finds itself to be, compared
//! with runc on the same bundle where Debian's runc knows the field.

#![allow(clippy::unwrap_used)]

use std::os::unix::net::UnixListener;

use nacre_tests::oci::{Console, path, run_both};
use nacre_tests::{Clean, OciRuntime, TestBundle, VmRun};
use serde_json::{Value, json};

/// Prints all that `process` decides, as the container's first process, PID 1, sees it.
const LOOK: &str = r#"
    echo "args $0 $# <$1> <$2>"; env; pwd; id; umask
    for file in /proc/1/fd/*; do echo "$file"; done
    grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp)' /proc/1/status
    echo "oom score $(cat /proc/1/oom_score_adj)"
    echo "io priority $(ionice -p 1)"
    set -- $(sed 's/.*) //' /proc/1/stat)
    echo "nice ${17} real-time ${38} policy ${39}"
    touch /tmp/made; mkdir /tmp/dir; stat -c '%a %u %g %n' /tmp/made /tmp/dir"#;

fn limit(kind: &str, soft: u64, hard: u64) -> Value {
    json!({ "type": format!("RLIMIT_{kind}"), "soft": soft, "hard": hard })
}

/// A limit of each kind, none of which the host or the guest has by itself.
fn limits() -> Value {
    json!([
        limit("AS", 1 << 40, 1 << 41),
        limit("CORE", 3 << 10, 4 << 10),
        limit("CPU", 1001, 1002),
        limit("DATA", 1 << 42, 1 << 43),
        limit("FSIZE", 5 << 30, 6 << 30),
        limit("LOCKS", 71, 72),
        limit("MEMLOCK", 64 << 10, 65 << 10),
        limit("MSGQUEUE", 81_920, 81_921),
        limit("NICE", 5, 9),
        limit("NOFILE", 11, 12),
        limit("NPROC", 501, 502),
        limit("RSS", 1 << 33, u64::MAX),
        limit("RTPRIO", 3, 4),
        limit("RTTIME", 900_001, 900_002),
        limit("SIGPENDING", 101, 102),
        limit("STACK", 4 << 20, 5 << 20),
    ])
}

/// The same text from `vm-run` and from runc.
fn assert_as_with_runc(bundle: &TestBundle) -> String {
    let [ours, runcs] = run_both(bundle);
    assert_eq!(
        (ours.code(), ours.text(), &ours.stderr),
        (runcs.code(), runcs.text(), &runcs.stderr)
    );
    ours.text()
}

#[test]
fn a_process_is_all_that_its_bundle_says() {
    let _clean = Clean::slate();
    let script = format!("{LOOK}\ncat /proc/1/limits; exit 29");
    let bundle = TestBundle::new(&["sh", "-c", &script, "zero", "", "two words"])
        .with("/process/cwd", json!("/made/by the runtime"))
        .with(
            "/process/env",
            json!(["PATH=/bin", "Z=1", "A=equals=sign", "EMPTY=", "MANY=a\nb"]),
        )
        .with(
            "/process/user",
            json!({ "uid": 1000, "gid": 1001, "umask": 0o027, "additionalGids": [7, 1002, 5] }),
        )
        .with(
            "/process/capabilities",
            json!({
                "bounding": ["CAP_KILL", "CAP_NET_RAW", "CAP_CHOWN", "CAP_SYS_TIME"],
                "permitted": ["CAP_KILL", "CAP_NET_RAW", "CAP_CHOWN"],
                "effective": ["CAP_KILL"],
                "inheritable": ["CAP_KILL", "CAP_NET_RAW"],
                "ambient": ["CAP_KILL", "CAP_NET_RAW"],
            }),
        )
        .with("/process/rlimits", limits())
        .with("/process/oomScoreAdj", json!(612));
    let seen = assert_as_with_runc(&bundle);
    for line in [
        "args zero 2 <> <two words>",
        "/made/by the runtime",
        "HOME=/",
        "0027",
        "NoNewPrivs:\t1",
        "oom score 612",
        "640 1000 1001 /tmp/made",
        "Max open files            11                   12                   files     ",
    ] {
        assert!(seen.lines().any(|seen| seen == line), "{line:?}: {seen}");
    }
}

#[test]
fn a_process_that_says_little_is_what_it_is_with_runc() {
    let _clean = Clean::slate();
    let mut bundle = TestBundle::sh(LOOK).with(
        "/process/capabilities",
        json!({ "bounding": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"] }),
    );
    let process = bundle.config["process"].as_object_mut().unwrap();
    process.remove("noNewPrivileges");
    let seen = assert_as_with_runc(&bundle);
    assert!(seen.contains("NoNewPrivs:\t0\n"), "{seen}");
    assert!(seen.contains("HOME=/\n"), "{seen}");
}

/// Prints the priorities of the shell itself.
const LOOK_AT_PRIORITIES: &str = r#"
    echo "io priority $(ionice -p $$)"
    set -- $(sed 's/.*) //' /proc/$$/stat)
    echo "nice ${17} real-time ${38} policy ${39}""#;

/// Debian's runc knows neither field.
#[test]
fn priorities_of_scheduler_and_devices_are_as_the_bundle_says() {
    let _clean = Clean::slate();
    let cases = [
        (
            json!({ "policy": "SCHED_BATCH", "nice": 7 }),
            json!({ "class": "IOPRIO_CLASS_BE", "priority": 6 }),
            [
                "nice 7 real-time 0 policy 3",
                "io priority best-effort: prio 6",
            ],
        ),
        (
            json!({ "policy": "SCHED_FIFO", "priority": 5, "flags": ["SCHED_FLAG_RESET_ON_FORK"] }),
            json!({ "class": "IOPRIO_CLASS_IDLE", "priority": 0 }),
            ["nice 0 real-time 5 policy 1", "io priority idle"],
        ),
    ];
    for (scheduler, io_priority, lines) in cases {
        let bundle = TestBundle::sh(LOOK)
            .with("/process/scheduler", scheduler)
            .with("/process/ioPriority", io_priority);
        bundle.write();
        let runtime = OciRuntime::vm_run();
        let ended = runtime.call(&["run", "--bundle", path(bundle.path()), "x"]);
        let ended = ended.expect_code(0);
        for line in lines {
            ended.assert_line(line);
        }
        // A further process is given what its container's first one is, as any user.
        let mut bundle = bundle;
        bundle.config["process"]["args"] = json!(["sleep", "1000000"]);
        runtime.run_detached("y", &bundle);
        for user in ["0:0", "1000:1000"] {
            let words = ["exec", "--user", user, "y", "sh", "-c", LOOK_AT_PRIORITIES];
            let ended = runtime.call(&words).expect_code(0);
            for line in lines {
                ended.assert_line(line);
            }
        }
    }
}

/// What an engine gives to every container keeps it off the host's kernel, which it is not on.
#[test]
fn profiles_and_labels_of_engines_are_left_out_with_a_warning() {
    let _clean = Clean::slate();
    let bundle = TestBundle::sh("echo ran")
        .with("/process/apparmorProfile", json!("docker-default"))
        .with(
            "/process/selinuxLabel",
            json!("system_u:system_r:container_t:s0:c1,c2"),
        )
        .with(
            "/linux/mountLabel",
            json!("system_u:object_r:container_file_t:s0:c1,c2"),
        );
    let ended = VmRun::bundle(&bundle, &[]).expect_code(0);
    assert_eq!(ended.text(), "ran\n");
    bundle.write();
    let runtime = OciRuntime::vm_run();
    let log = runtime.path("log");
    let words = [
        "--log",
        path(&log),
        "run",
        "--bundle",
        path(bundle.path()),
        "x",
    ];
    let _ = runtime.call(&words).expect_code(0);
    let log = std::fs::read_to_string(log).unwrap();
    // Who names no file is told at the terminal.
    let detached = ["run", "--detach", "--bundle", path(bundle.path()), "y"];
    let told = runtime.call(&detached).expect_code(0);
    assert!(told.stderr.contains("process.apparmorProfile: "), "{told}");
    for field in [
        "process.apparmorProfile: ",
        "process.selinuxLabel: ",
        "linux.mountLabel: ",
    ] {
        let said = |text: &str| text.lines().any(|line| line.contains(field));
        assert!(said(&ended.stderr) && said(&log), "{field}: {ended}\n{log}");
        assert!(
            log.lines().all(|line| line.contains("level=warning")),
            "{log}"
        );
    }
}

#[test]
fn a_terminal_is_the_users_and_has_the_size_that_the_bundle_says() {
    let _clean = Clean::slate();
    let script = r#"
        stty size; tty; stat -c '%a %u %F %n' $(tty) /dev/console
        for fd in 0 1 2; do stat -L -c '%u %F %t' /proc/self/fd/$fd; done
        echo done; read line"#;
    let bundle = TestBundle::sh(script)
        .with("/process/terminal", json!(true))
        .with("/process/consoleSize", json!({ "height": 43, "width": 132 }))
        .with("/process/user", json!({ "uid": 1000, "gid": 1000 }))
        .with(
            "/mounts/-",
            json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] }),
        );
    bundle.write();
    let look = |runtime: &OciRuntime| {
        let socket = runtime.path("console");
        let listener = UnixListener::bind(&socket).unwrap();
        let create = ["create", "--console-socket", path(&socket), "--bundle"];
        let words = [&create[..], &[path(bundle.path()), "x"]].concat();
        let create = runtime.spawn(runtime.command(&words));
        let mut console = Console::accept(&listener);
        let _ = runtime.wait(create).expect_code(0);
        let _ = runtime.call(&["start", "x"]).expect_code(0);
        console.wait_for("done\r\n");
        let screen = console.screen();
        console.press("\n");
        console.wait_for_end();
        screen
    };
    let seen = look(&OciRuntime::vm_run());
    assert_eq!(seen, look(&OciRuntime::runc()));
    assert!(seen.starts_with("43 132\r\n/dev/pts/0\r\n"), "{seen}");
}
