//! podman, as the distribution ships it, with `vm-run` for its runtime.

#![allow(clippy::unwrap_used)]

use std::fs;

use nacre_tests::podman::IMAGE;
use nacre_tests::pty::Session;
use nacre_tests::{Podman, proc, sh, wait_until};

#[test]
fn a_container_runs_takes_an_exec_stops_and_goes() {
    let podman = Podman::new();
    let script = "echo started; echo problem >&2; trap 'echo stopped; exit 4' TERM; \
                  while :; do sleep 1; done";
    let run = podman.call(&["run", "-d", "--name", "x", IMAGE, "sh", "-c", script]);
    let id = run.expect_code(0).text().trim().to_owned();
    assert_eq!(id.len(), 64);
    wait_until("it has started", || {
        podman.call(&["logs", "x"]).text().contains("started")
    });
    assert!(podman.call(&["logs", "x"]).stderr.contains("problem"));
    let inspect = |what: &str| {
        let format = format!("{{{{.State.{what}}}}}");
        let inspected = podman.call(&["inspect", "--format", &format, "x"]);
        inspected.expect_code(0).text().trim().to_owned()
    };
    assert_eq!(inspect("Status"), "running");
    let keeper = fs::read_to_string(format!("/proc/{}/cmdline", inspect("Pid"))).unwrap();
    assert!(keeper.contains(&id), "{keeper:?}");

    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let exec = |args: &[&str]| podman.call(&[&["exec"], args].concat());
    assert_ne!(exec(&["x", "uname", "-r"]).expect_code(0).text(), kernel);
    let ended = exec(&[
        "--user",
        "somebody",
        "--env",
        "A=b",
        "x",
        "sh",
        "-c",
        "id -un; echo $A; exit 3",
    ]);
    assert_eq!(ended.expect_code(3).text(), "somebody\nb\n");
    let _ = exec(&["x", "nosuch"]).expect_code(127);
    let _ = exec(&["--detach", "x", "sh", "-c", "sleep 1; touch /made"]).expect_code(0);
    wait_until("a detached exec has run", || {
        exec(&["x", "test", "-e", "/made"]).code() == 0
    });

    let _ = podman.call(&["pause", "x"]).expect_code(0);
    assert_eq!(inspect("Status"), "paused");
    let _ = podman.call(&["unpause", "x"]).expect_code(0);
    let _ = podman
        .call(&["update", "--memory", "99m", "x"])
        .expect_code(0);
    let limit = exec(&["x", "cat", "/sys/fs/cgroup/memory.max"]);
    assert_eq!(limit.expect_code(0).text(), format!("{}\n", 99 << 20));

    let _ = podman.call(&["stop", "x"]).expect_code(0);
    assert_eq!(
        (inspect("Status"), inspect("ExitCode")),
        ("exited".into(), "4".into())
    );
    assert!(podman.call(&["logs", "x"]).text().contains("stopped"));
    let _ = podman.call(&["start", "x"]).expect_code(0);
    let _ = podman.call(&["kill", "x"]).expect_code(0);
    assert_eq!(podman.call(&["wait", "x"]).expect_code(0).text(), "137\n");
    let _ = podman.call(&["start", "x"]).expect_code(0);
    let _ = podman
        .call(&["rm", "--force", "--time", "0", "x"])
        .expect_code(0);
    assert!(proc::named("nacre-vmm").is_empty());
    assert!(proc::names("/run/vm-run".as_ref()).is_empty());
}

#[test]
fn statuses_are_the_programs() {
    let podman = Podman::new();
    let _ = podman.run(&[], "exit 0").expect_code(0);
    let _ = podman.run(&[], "exit 42").expect_code(42);
    let missing = podman
        .call(&["run", "--rm", IMAGE, "nosuch"])
        .expect_code(127);
    assert!(
        missing.stderr.contains("executable file not found"),
        "{missing}"
    );
}

#[test]
fn options_reach_the_guest() {
    let podman = Podman::new();
    let limited = podman.run(
        &["--memory", "77m", "--cpus", "2", "--pids-limit", "33"],
        "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max; nproc",
    );
    assert_eq!(
        limited.expect_code(0).text(),
        format!("{}\n33\n2\n", 77 << 20)
    );
    let poor = podman.run(
        &[
            "--cap-drop",
            "all",
            "--user",
            "1000:1000",
            "--hostname",
            "carved",
        ],
        "id -u; hostname; grep CapBnd /proc/self/status",
    );
    let expected = "1000\ncarved\nCapBnd:\t0000000000000000\n";
    assert_eq!(poor.expect_code(0).text(), expected);
    let read_only = podman.run(
        &["--read-only"],
        "touch /x 2>/dev/null; echo $?; touch /tmp/x; echo $?",
    );
    assert_eq!(read_only.expect_code(0).text(), "1\n0\n");
    let tmpfs = podman.run(
        &["--tmpfs", "/filled:size=1m,mode=1777", "--tmpfs", "/new"],
        "cat /filled/file; stat -c %a /filled; df /filled | tail -1 | tr -s ' ' | cut -d ' ' -f 2; ls /new",
    );
    assert_eq!(tmpfs.expect_code(0).text(), "of the image\n1777\n1024\n");
    let names = podman.run(
        &["--add-host", "a:192.0.2.1", "--dns", "192.0.2.2"],
        "cat /etc/hosts /etc/resolv.conf",
    );
    let names = names.expect_code(0);
    assert!(names.text().contains("192.0.2.1"), "{names}");
    names.assert_line("nameserver 192.0.2.2");
}

#[test]
fn volumes_are_the_hosts_files() {
    let podman = Podman::new();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "of the host").unwrap();
    let path = dir.path().to_str().unwrap();
    let both = format!("{path}:/v");
    let _ = podman
        .run(&["-v", &both], "cat /v/file; echo of the guest > /v/new")
        .expect_code(0);
    assert_eq!(
        fs::read_to_string(dir.path().join("new")).unwrap(),
        "of the guest\n"
    );
    let only = format!("{path}:/v:ro");
    let _ = podman
        .run(&["-v", &only], "cat /v/file && ! touch /v/file")
        .expect_code(0);
    let file = format!("{path}/file:/etc/one");
    let one = podman.run(&["-v", &file], "cat /etc/one");
    assert_eq!(one.expect_code(0).text(), "of the host");
    let _ = podman
        .run(&["-v", "named:/v"], "echo kept > /v/a")
        .expect_code(0);
    assert_eq!(
        podman
            .run(&["-v", "named:/v"], "cat /v/a")
            .expect_code(0)
            .text(),
        "kept\n"
    );
}

#[test]
fn ports_are_published_by_podmans_own_network() {
    let podman = Podman::new();
    let script = "mkdir /w; echo a page > /w/index.html; exec httpd -f -p 80 -h /w";
    let run = [
        "run",
        "-d",
        "--name",
        "web",
        "-p",
        "127.0.0.1:8085:80",
        IMAGE,
        "sh",
        "-c",
        script,
    ];
    let _ = podman.call(&run).expect_code(0);
    wait_until("it answers", || {
        sh("busybox wget -q -T 5 -O - http://127.0.0.1:8085/index.html || true") == "a page\n"
    });
    let address = podman.call(&[
        "inspect",
        "--format",
        "{{.NetworkSettings.IPAddress}}",
        "web",
    ]);
    let url = format!("http://{}/index.html", address.expect_code(0).text().trim());
    // From another container, over podman's bridge.
    let get = podman.run(&[], &format!("wget -q -T 30 -O - {url}"));
    assert_eq!(get.expect_code(0).text(), "a page\n");
    let alone = podman.run(&["--network", "none"], "ls /sys/class/net");
    assert_eq!(alone.expect_code(0).text(), "lo\n");
}

#[test]
fn a_person_at_a_terminal_sees_the_containers() {
    let podman = Podman::new();
    let words = podman.words(&["run", "--rm", "-it", "--env", "PS1=> ", IMAGE, "sh"]);
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let mut session = Session::start(&words, 93, 31);
    session.press(b"stty size; echo $((6*7))\n");
    session.wait_for("31 93");
    session.wait_for("42");
    session.resize(66, 22);
    session.press(b"sleep 2; stty size\n");
    session.wait_for("22 66");
    session.press(b"exit 7\n");
    assert_eq!(session.wait().code(), Some(7));
}

#[test]
fn a_privileged_container_is_privileged_in_its_guest() {
    let podman = Podman::new();
    let script = "grep CapEff /proc/self/status; mount -t tmpfs none /tmp && echo mounted; \
                  ls /dev/kvm /dev/vda; echo 1 >/proc/sys/vm/drop_caches && echo dropped";
    let ran = podman.run(&["--privileged"], script).expect_code(0);
    ran.assert_line("mounted");
    ran.assert_line("dropped");
    assert!(ran.text().starts_with("CapEff:\t000001ffffffffff"), "{ran}");
    assert!(!ran.text().contains("/dev/"), "{ran}");
}

#[test]
fn a_guest_has_as_many_cpus_as_it_is_confined_to() {
    let podman = Podman::new();
    for (cpus, count) in [("--cpuset-cpus=1", "1"), ("--cpuset-cpus=0-1", "2")] {
        let ran = podman.run(&[cpus], "nproc").expect_code(0);
        ran.assert_line(count);
    }
    let refused = podman.run(&["--cpuset-cpus=0-77"], "true");
    assert_ne!(refused.code(), 0, "{refused}");
}

#[test]
fn what_a_guest_cannot_have_is_refused_by_name() {
    let podman = Podman::new();
    for (option, field) in [
        ("--network=host", "linux.namespaces"),
        ("--pid=host", "linux.namespaces"),
        ("--ipc=host", "linux.namespaces"),
        ("--device=/dev/kvm", "linux.devices"),
    ] {
        let refused = podman.run(&[option], "true").expect_code(126);
        assert!(refused.stderr.contains(field), "{option}: {refused}");
    }
    assert!(proc::named("nacre-vmm").is_empty());
}
