//! The jail of a running monitor, as the host's `/proc` shows it.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use nacre_tests::{Clean, TestBundle, VmRun, proc};

/// CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID and SETFCAP: what a file
/// server needs to keep owners and modes.
const FILE_SERVER: u64 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 31;

/// Where the fields are in a line of mountinfo; see proc(5).
struct Mount<'a> {
    point: &'a str,
    options: BTreeSet<&'a str>,
    kind: &'a str,
}

fn mounts(table: &str) -> Vec<Mount<'_>> {
    let mount = |line| {
        let words: Vec<&str> = str::split(line, ' ').collect();
        let dash = words.iter().position(|word| *word == "-").unwrap();
        Mount {
            point: words[4],
            options: words[5].split(',').collect(),
            kind: words[dash + 1],
        }
    };
    table.lines().map(mount).collect()
}

#[test]
fn a_running_monitor_has_nothing_but_its_pod() {
    let _clean = Clean::slate();
    let host = TestBundle::new(&[]);
    let bundle = TestBundle::sh("ls -lR /bin /data /fixed >/dev/null; echo ready; cat")
        .with_bind(&host.in_root("tmp"), "/data", &["rbind"])
        .with_bind(&host.in_root("etc"), "/fixed", &["rbind", "ro"]);
    let mut running = VmRun::start(&bundle, &["--id", "jailed"]);
    running.wait_for("ready");
    let pid = running.monitor();
    let dir = Path::new("/proc").join(pid.to_string());
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap();

    namespaces_are_its_own(&dir);
    threads_are_bound(&dir);

    let status = read("status");
    let pids: Vec<_> = proc::field(&status, "NSpid").split_whitespace().collect();
    assert_eq!(pids.last(), Some(&"1"), "alone in its PID namespace");
    assert_eq!(proc::field(&status, "Groups"), "");
    let limits = read("limits");
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    assert_eq!(
        core.unwrap().split_whitespace().nth(4),
        Some("0"),
        "guest memory in a core file"
    );

    assert_eq!(proc::names(&dir.join("root")), ["proc", "share"]);
    assert_eq!(proc::names(&dir.join("root/share")), [".volumes", "jailed"]);
    assert_eq!(proc::names(&dir.join("root/share/jailed")), ["rootfs"]);
    assert_eq!(proc::names(&dir.join("root/share/.volumes")), ["0", "1"]);
    assert_eq!(fs::read_link(dir.join("cwd")).unwrap(), Path::new("/"));
    its_mounts_are_few_and_bare(&read("mountinfo"));
    assert_eq!(proc::names(&dir.join("root/proc")), ["self"]);
    assert_eq!(proc::names(&dir.join("root/proc/self")), ["fd"]);

    let devices = read("net/dev");
    let interfaces: Vec<_> = devices
        .lines()
        .filter_map(|line| Some(line.split_once(':')?.0.trim()))
        .collect();
    assert_eq!(interfaces, ["lo"]);

    descriptors_are_of_the_pod(pid);
    assert_eq!(read("environ"), "", "nothing of the caller's environment");
    drop(running.wait().expect_code(0));
}

fn namespaces_are_its_own(dir: &Path) {
    for kind in ["user", "mnt", "net", "ipc", "uts", "pid", "cgroup"] {
        let theirs = fs::read_link(dir.join("ns").join(kind)).unwrap();
        let ours = fs::read_link(Path::new("/proc/self/ns").join(kind)).unwrap();
        assert_ne!(theirs, ours, "{kind}");
    }
}

/// No thread has a capability beyond a file server's, in its own user namespace
/// alone, nor a way to more, and each is under a seccomp filter.
fn threads_are_bound(dir: &Path) {
    let mut kinds = BTreeSet::new();
    for thread in proc::names(&dir.join("task")) {
        let read = |name| fs::read_to_string(dir.join("task").join(&thread).join(name)).unwrap();
        let (status, name) = (read("status"), read("comm"));
        for set in ["CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"] {
            let mask = u64::from_str_radix(proc::field(&status, set), 16).unwrap();
            assert_eq!(mask & !FILE_SERVER, 0, "{name}: {set} {mask:x}");
        }
        assert_eq!(proc::field(&status, "CapAmb"), "0000000000000000");
        assert_eq!(proc::field(&status, "NoNewPrivs"), "1", "{name}");
        assert_eq!(proc::field(&status, "Seccomp"), "2", "{name}");
        kinds.insert(name.trim_end().to_owned());
    }
    for kind in ["nacre-vmm", "vcpu", "vsock", "fs", "blk"] {
        assert!(kinds.contains(kind), "no thread {kind}: {kinds:?}");
    }
}

fn its_mounts_are_few_and_bare(table: &str) {
    let mounts = mounts(table);
    let points: BTreeSet<_> = mounts.iter().map(|mount| mount.point).collect();
    let expected = [
        "/",
        "/proc/self/fd",
        "/share",
        "/share/jailed/rootfs",
        "/share/.volumes/0",
        "/share/.volumes/1",
    ];
    assert_eq!(points, BTreeSet::from(expected), "{table}");
    for mount in &mounts {
        for option in ["nodev", "nosuid", "noexec"] {
            assert!(
                mount.options.contains(option),
                "{option} of {}: {table}",
                mount.point
            );
        }
        let is_written = ["/share/jailed/rootfs", "/share/.volumes/0", "/proc/self/fd"];
        let mode = if is_written.contains(&mount.point) {
            "rw"
        } else {
            "ro"
        };
        assert!(
            mount.options.contains(mode),
            "{mode} of {}: {table}",
            mount.point
        );
        let kinds = [
            ("/", "tmpfs"),
            ("/proc/self/fd", "proc"),
            ("/share", "tmpfs"),
        ];
        if let Some((_, kind)) = kinds.iter().find(|(point, _)| *point == mount.point) {
            assert_eq!(mount.kind, *kind, "{table}");
        }
    }
}

fn descriptors_are_of_the_pod(pid: u32) {
    const NAMELESS: &[&str] = &["anon_inode:[eventfd]", "anon_inode:[eventpoll]"];
    const NAMES: &[&str] = &["/dev/null", "/null", "/share", "/proc/self/fd"];
    const BEGINNINGS: &[&str] = &[
        "anon_inode:kvm-",
        "socket:[",
        "/share/jailed",
        "/share/.volumes",
    ];
    let descriptors = proc::descriptors(pid);
    assert!(descriptors.len() > 10, "{descriptors:?}");
    let mut pipes = BTreeSet::new();
    for (number, target) in &descriptors {
        let target = target.to_string_lossy();
        if target.starts_with("pipe:[") {
            // Its log.
            pipes.insert(target.into_owned());
            continue;
        }
        let known = NAMELESS.contains(&&*target)
            || NAMES.contains(&&*target)
            || BEGINNINGS
                .iter()
                .any(|beginning| target.starts_with(beginning));
        assert!(known, "descriptor {number} is {target}: {descriptors:#?}");
    }
    assert_eq!(pipes.len(), 1, "{descriptors:#?}");
}
