//! `root`, `mounts` and `linux` of `config.json`: what a container finds, compared with runc
//! on the same bundle where Debian's runc knows the field.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use nacre_tests::oci::{path, run_both};
use nacre_tests::{Clean, OciRuntime, TestBundle, VmRun, sh};
use serde_json::{Value, json};

/// Each mount: place, options, propagation, and of a file system that is the same under every
/// runtime its type and what options it has of its own. What is mounted below a volume is a
/// mount of its own on the host only.
const SHOW_MOUNTS: &str = r#"
    awk '$5 !~ /below$/ {
        for (dash = 7; $dash != "-"; dash++) ;
        propagation = ""
        for (field = 7; field < dash; field++) { sub(/:.*/, "", $field); propagation = propagation $field }
        what = "files"
        if ($5 == "/strict") $(dash + 1) = what
        if ($(dash + 1) ~ /^(proc|sysfs|cgroup2)$/) what = $(dash + 1)
        if ($(dash + 1) ~ /^(tmpfs|devpts|mqueue)$/) {
            sub(/^r[ow],?/, "", $(dash + 3))
            what = $(dash + 1) " " $(dash + 3)
        }
        is_device = what == "files" && $5 ~ /^\/dev\/[a-z]+$/
        print "mount", $5, is_device ? "device" : $6 " " propagation " " what
    }' /proc/self/mountinfo | sort"#;

/// Runs a bundle under both runtimes, which must say the same; what they said.
fn as_with_runc(bundle: &TestBundle) -> String {
    let [ours, runcs] = run_both(bundle);
    assert_eq!(
        (ours.code(), ours.text(), &ours.stderr),
        (runcs.code(), runcs.text(), &runcs.stderr)
    );
    ours.text()
}

fn assert_lines(seen: &str, lines: &[&str]) {
    for line in lines {
        assert!(seen.lines().any(|seen| seen == *line), "{line:?}: {seen}");
    }
}

fn mount(destination: &str, kind: &str, options: &[&str]) -> Value {
    json!({ "destination": destination, "type": kind, "source": kind, "options": options })
}

#[test]
fn mounts_of_every_kind_and_masked_and_read_only_paths_are_as_with_runc() {
    let _clean = Clean::slate();
    let data = tempfile::Builder::new()
        .prefix("nacre-test-")
        .tempdir()
        .unwrap();
    let at = |name: &str| data.path().join(name);
    for dir in ["plain", "fixed", "whole", "whole/below", "strict"] {
        fs::create_dir(at(dir)).unwrap();
    }
    sh(&format!(
        "cd {}; mount -t tmpfs -o size=1m below whole/below; mount -t tmpfs -o nosuid,noexec strict strict",
        path(data.path())
    ));
    fs::write(at("plain/program"), "#!/bin/sh\necho executed\n").unwrap();
    fs::set_permissions(at("plain/program"), PermissionsExt::from_mode(0o755)).unwrap();
    fs::write(at("one"), "one file\n").unwrap();

    let script = format!(
        r#"{SHOW_MOUNTS}
        try() {{ echo "$*: $("$@" 2>&1)"; }}
        try touch /made; try touch /plain/made; try /plain/program; try touch /fixed/made
        try touch /whole/made; try touch /whole/below/made; try touch /strict/made
        try cat /one; try ls -A /hidden; try cat /hidden-file; try cat /hidden-by-link; try touch /hidden/x
        try touch /kept/x; try /kept/program; try /noexec/program; try cat /proc/version
        try touch /proc/sys/kernel/x; try mknod /small/null c 1 3
        try dd if=/dev/zero of=/small/fill bs=1k count=40
        stat -c '%a %u %g %n' /small /made-by-runtime /dev/shm /dev/pts /dev/mqueue
        df -k /small | awk 'NR == 2 {{ print "size", $2 }}'
        head -n 1 /sys/fs/cgroup/cgroup.type /sys/fs/cgroup/pids.max"#
    );
    let mut bundle = TestBundle::sh(&script);
    for mount in [
        mount(
            "/dev/pts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount(
            "/dev/shm",
            "tmpfs",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        ),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", "ro"],
        ),
        mount(
            "/small",
            "tmpfs",
            &[
                "nodev",
                "noatime",
                "size=32k",
                "nr_inodes=20",
                "mode=750",
                "uid=7",
                "gid=8",
            ],
        ),
        mount("/made-by-runtime/deep", "tmpfs", &["ro", "mode=711"]),
    ] {
        bundle = bundle.with("/mounts/-", mount);
    }
    let root = bundle.in_root("");
    for dir in ["hidden", "kept", "noexec"] {
        fs::create_dir(root.join(dir)).unwrap();
        fs::copy(at("plain/program"), root.join(dir).join("program")).unwrap();
    }
    fs::write(root.join("hidden-file"), "secret\n").unwrap();
    fs::write(root.join("hidden-by-link"), "secret\n").unwrap();
    symlink("hidden-by-link", root.join("link")).unwrap();
    let bundle = bundle
        .with_bind(&at("plain"), "/plain", &["bind", "rw", "nosuid", "nodev"])
        .with_bind(&at("plain"), "/noexec", &["bind", "noexec", "noatime"])
        .with_bind(&at("fixed"), "/fixed", &["rbind", "ro", "rprivate"])
        .with_bind(&at("strict"), "/strict", &["bind"])
        .with_bind(&at("whole"), "/whole", &["rbind", "rro"])
        .with_bind(&at("one"), "/one", &["bind", "ro"])
        .with("/root/readonly", json!(true))
        .with("/linux/rootfsPropagation", json!("rprivate"))
        .with(
            "/linux/maskedPaths",
            json!([
                "/hidden",
                "/hidden-file",
                "/link",
                "/proc/version",
                "/nowhere"
            ]),
        )
        .with(
            "/linux/readonlyPaths",
            json!(["/kept", "/proc/sys", "/nowhere"]),
        )
        .with_capabilities(&["CAP_DAC_OVERRIDE", "CAP_MKNOD"]);
    let seen = as_with_runc(&bundle);
    assert_lines(
        &seen,
        &[
            "touch /made: touch: /made: Read-only file system",
            "/plain/program: executed",
            "/kept/program: executed",
            "cat /one: one file",
            "ls -A /hidden: ",
            "cat /hidden-file: ",
            "cat /hidden-by-link: ",
            "touch /whole/below/made: touch: /whole/below/made: Read-only file system",
            "750 7 8 /small",
            "size 32",
        ],
    );
    sh(&format!(
        "cd {}; umount whole/below strict",
        path(data.path())
    ));
}

#[test]
fn mounts_below_a_root_propagate_as_the_bundle_says() {
    let _clean = Clean::slate();
    let script = r#"
        awk '$5 == "/" { print "root", $7 ~ /^shared:/ ? "shared" : "alone" }' /proc/self/mountinfo
        mount --bind /later /other
        mount -t tmpfs later /later/below
        echo seen $(grep -c ' /other/below ' /proc/self/mountinfo)"#;
    for (propagation, lines) in [
        ("shared", ["root shared", "seen 1"]),
        ("rshared", ["root shared", "seen 1"]),
        ("private", ["root alone", "seen 0"]),
    ] {
        let bundle = TestBundle::sh(script)
            .with("/linux/rootfsPropagation", json!(propagation))
            .with_capabilities(&["CAP_SYS_ADMIN"]);
        fs::create_dir_all(bundle.in_root("later/below")).unwrap();
        fs::create_dir(bundle.in_root("other")).unwrap();
        // Debian's runc leaves such a root as it was.
        assert_lines(&VmRun::bundle(&bundle, &[]).expect_code(0).text(), &lines);
    }
}

#[test]
fn devices_limits_parameters_and_personality_are_as_with_runc() {
    let _clean = Clean::slate();
    let script = r#"
        try() { echo "$*: $("$@" 2>&1)"; }
        hostname
        for name in shmmax msgmax sem domainname; do echo "$name" $(cat /proc/sys/kernel/$name); done
        cat /proc/sys/fs/mqueue/msg_max /proc/sys/net/ipv4/ip_unprivileged_port_start
        stat -c '%A %u %g %t %T %n' /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty \
            /dev/fuse /dev/net/tun /dev/pipe /dev/kmsg /dev/dead /dev/dead-disk
        try sh -c ': </dev/dead'; try sh -c ': </dev/dead-disk'
        for link in fd stdin stdout stderr ptmx; do echo "$link $(readlink /dev/$link)"; done
        try sh -c ': </dev/fuse'; try sh -c ': >/dev/fuse'
        try head -c 4 /dev/zero; try mknod /dev/test-disk b 8 0; try head -c 1 /dev/test-disk
        try mknod /dev/test-mem c 1 1; try head -c 1 /dev/test-mem; try mknod /dev/test-zero c 1 5
        try head -c 1 /dev/test-zero
        cd /sys/fs/cgroup
        for file in cpu.max cpu.max.burst memory.max memory.low memory.high memory.swap.max pids.max \
            cpuset.cpus io.weight memory.oom.group hugetlb.2MB.max; do
            echo "$file $(cat $file 2>&1)"
        done
        cat /proc/self/cgroup; ls -l /proc/self/ns | wc -l
        for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do sleep 3 & done 2>/dev/null
        echo not reached"#;
    let bundle = TestBundle::sh(script)
        .with("/mounts/-", mount("/sys/fs/cgroup", "cgroup", &["ro"]))
        .with(
            "/linux/sysctl",
            json!({ "kernel.shmmax": "123456789", "kernel.msgmax": "12345", "kernel.sem": "100 200 30 40",
                "fs.mqueue.msg_max": "17", "net.ipv4.ip_unprivileged_port_start": "81",
                "kernel.domainname": "by.sysctl" }),
        )
        .with(
            "/linux/devices",
            json!([
                { "path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 5, "gid": 6 },
                { "path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200 },
                { "path": "/dev/pipe", "type": "p", "fileMode": 0o600 },
                { "path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11 },
                { "path": "/dev/dead", "type": "c", "major": 10, "minor": 666, "fileMode": 0o640 },
                { "path": "/dev/dead-disk", "type": "b", "major": 8, "minor": 666, "uid": 7 },
            ]),
        )
        .with(
            "/linux/resources",
            json!({
                "devices": [
                    { "allow": false, "access": "rwm" },
                    { "allow": true, "type": "c", "major": 10, "minor": 229, "access": "r" },
                ],
                "cpu": { "shares": 2048, "quota": 150_000, "period": 50_000 },
                "memory": { "limit": 100 << 20, "reservation": 50 << 20, "swap": 120 << 20 },
                "pids": { "limit": 12 },
                "hugepageLimits": [{ "pageSize": "2MB", "limit": 4 << 20 }],
                "unified": { "memory.high": "94371840", "memory.oom.group": "1", "cpuset.cpus": "0",
                    "cpu.max.burst": "10000" },
            }),
        )
        .with_capabilities(&["CAP_MKNOD", "CAP_DAC_OVERRIDE"]);
    let seen = as_with_runc(&bundle);
    assert_lines(
        &seen,
        &[
            "sh -c : </dev/fuse: ",
            "domainname by.sysctl",
            "cpu.max 150000 50000",
            "memory.max 104857600",
            "memory.swap.max 20971520",
            "pids.max 12",
            "hugetlb.2MB.max 4194304",
            "crw-r----- 5 6 a e5 /dev/fuse",
            "crw-r----- 0 0 a 29a /dev/dead",
            "sh -c : >/dev/fuse: sh: can't create /dev/fuse: Operation not permitted",
            "head -c 1 /dev/test-disk: head: /dev/test-disk: Operation not permitted",
        ],
    );
    assert!(!seen.contains("not reached"), "{seen}");
}

/// A rule for `kill` of a process that does not exist, so that each rule is asked for by its
/// number and nothing happens but the answer.
fn rule(process: u32, operator: &str, value: u64, value_two: u64) -> Value {
    json!({ "names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95, "args": [
        { "index": 0, "value": process, "op": "SCMP_CMP_EQ" },
        { "index": 1, "value": value, "valueTwo": value_two, "op": operator },
    ] })
}

fn action(process: u32, action: &str, errno: Option<u32>) -> Value {
    let args = json!([{ "index": 0, "value": process, "op": "SCMP_CMP_EQ" }]);
    let mut rule = json!({ "names": ["kill", "no_such_call"], "action": action, "args": args });
    if let Some(errno) = errno {
        rule["errnoRet"] = json!(errno);
    }
    rule
}

#[test]
fn every_operator_and_action_of_seccomp_is_as_with_runc() {
    let _clean = Clean::slate();
    let script = r#"
        for process in 1000001 1000002 1000003 1000004 1000005 1000006 1000007; do
            for signal in 9 10 11 12 14; do
                echo "$process $signal: $(kill -$signal $process 2>&1)"
            done
        done
        for process in 2000001 2000002 2000003 2000004 2000005 2000006 2000007 2000008 2000009; do
            echo "$process: $(sh -c "kill -9 $process" 2>&1; echo "status $?")"
        done
        grep Seccomp /proc/self/status; grep NoNewPrivs /proc/self/status"#;
    let syscalls = json!([
        rule(1_000_001, "SCMP_CMP_NE", 11, 0),
        rule(1_000_002, "SCMP_CMP_LT", 11, 0),
        rule(1_000_003, "SCMP_CMP_LE", 11, 0),
        rule(1_000_004, "SCMP_CMP_EQ", 11, 0),
        rule(1_000_005, "SCMP_CMP_GE", 11, 0),
        rule(1_000_006, "SCMP_CMP_GT", 11, 0),
        // 9 and 11 of them: the lowest bit is set, the third is not.
        rule(1_000_007, "SCMP_CMP_MASKED_EQ", 0b101, 0b001),
        action(2_000_001, "SCMP_ACT_ERRNO", None),
        action(2_000_002, "SCMP_ACT_ERRNO", Some(28)),
        action(2_000_003, "SCMP_ACT_TRAP", None),
        action(2_000_004, "SCMP_ACT_KILL", None),
        action(2_000_005, "SCMP_ACT_KILL_THREAD", None),
        action(2_000_006, "SCMP_ACT_KILL_PROCESS", None),
        action(2_000_007, "SCMP_ACT_LOG", None),
        action(2_000_008, "SCMP_ACT_TRACE", Some(5)),
    ]);
    for no_new_privileges in [true, false] {
        let bundle = TestBundle::sh(script)
            .with("/process/noNewPrivileges", json!(no_new_privileges))
            .with(
                "/linux/seccomp",
                json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
                     "syscalls": syscalls }),
            );
        let seen = as_with_runc(&bundle);
        assert_lines(
            &seen,
            &[
                "1000007 9: sh: can't kill pid 1000007: Operation not supported",
                "1000007 10: sh: can't kill pid 1000007: No such process",
                "1000004 11: sh: can't kill pid 1000004: Operation not supported",
                "2000002: sh: can't kill pid 2000002: No space left on device",
                "Seccomp:\t2",
            ],
        );
    }
    // What is not said is denied, with the number that the profile has for it.
    let bundle = TestBundle::sh("mkdir /tmp/x; echo on").with(
        "/linux/seccomp",
        json!({ "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "syscalls": [
            { "action": "SCMP_ACT_ALLOW", "names": ["execve", "write", "exit_group", "brk", "mmap", "munmap",
                "arch_prctl", "set_tid_address", "set_robust_list", "rseq", "prlimit64", "readlink", "getrandom",
                "mprotect", "getuid", "getpid", "getppid", "rt_sigaction", "rt_sigprocmask", "stat", "newfstatat",
                "fstat", "clone", "clone3", "vfork", "fork", "wait4", "read", "close", "openat", "open", "futex",
                "getcwd", "uname", "ioctl", "geteuid", "getgid", "getegid", "setuid", "setgid", "umask",
                "lseek", "fcntl", "dup2", "sigreturn", "rt_sigreturn", "exit", "access", "faccessat2", "accept4",
                "accept", "recvfrom", "fchdir", "close_range", "sendmsg", "epoll_pwait", "nanosleep", "prctl",
                "epoll_ctl", "tgkill", "gettid", "sched_yield", "readlinkat", "statx", "faccessat", "getdents64",
                "madvise", "capget", "capset", "setgroups", "chdir", "sigaltstack"] },
        ] }),
    );
    bundle.write();
    let runtime = OciRuntime::vm_run();
    let ended = runtime.call(&["run", "--bundle", path(bundle.path()), "x"]);
    let ended = ended.expect_code(0);
    assert_eq!(ended.text(), "on\n");
    assert!(ended.stderr.contains("Function not implemented"), "{ended}");
}

#[test]
fn users_are_mapped_as_with_runc() {
    let _clean = Clean::slate();
    let script = format!(
        r#"{SHOW_MOUNTS} | grep -v ' /sys/fs/cgroup '
        ls -d /sys/class/net/lo; ls /sys/fs/cgroup/cgroup.type; touch /sys/x 2>/dev/null || echo kept
        try() {{ echo "$*: $("$@" 2>&1)"; }}
        id; cat /proc/self/uid_map /proc/self/gid_map; grep -E '^(Cap|Groups)' /proc/self/status
        try touch /made; try chown 5:6 /made; stat -c '%u %g %n' /made / /bin/busybox /foreign
        try touch /foreign; try mount -t tmpfs t /tmp; try mknod /tmp/null c 1 3; try hostname other
        echo to stderr >&2; head -c 3 /dev/zero | wc -c; stat -c '%t %T %n' /dev/null /dev/tty
        echo again >/dev/stdout"#
    );
    let make = |args: &[&str], user: u32| {
        let mut bundle = TestBundle::new(args);
        for mount in [
            mount(
                "/dev/pts",
                "devpts",
                &["newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
            ),
            mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount(
                "/sys/fs/cgroup",
                "cgroup",
                &["nosuid", "noexec", "nodev", "ro"],
            ),
        ] {
            bundle = bundle.with("/mounts/-", mount);
        }
        let mapping = json!([{ "containerID": 0, "hostID": 100_000, "size": 1000 },
            { "containerID": 1000, "hostID": 300_000, "size": 10 }]);
        let dir = path(bundle.path());
        sh(&format!(
            "chmod 711 {dir}; chown -hR 100000:100000 {dir}/rootfs"
        ));
        fs::write(bundle.in_root("foreign"), "").unwrap();
        bundle
            .with(
                "/process/user",
                json!({ "uid": user, "gid": user, "additionalGids": [7] }),
            )
            .with("/linux/rootfsPropagation", json!("private"))
            .with("/linux/namespaces/-", json!({ "type": "user" }))
            .with("/linux/uidMappings", mapping.clone())
            .with("/linux/gidMappings", mapping)
            .with_capabilities(&[
                "CAP_CHOWN",
                "CAP_SYS_ADMIN",
                "CAP_MKNOD",
                "CAP_DAC_OVERRIDE",
            ])
    };
    let as_root = make(&["sh", "-c", &script], 0);
    let seen = as_with_runc(&as_root);
    let metadata = fs::metadata(as_root.in_root("made")).unwrap();
    assert_eq!(
        (metadata.uid(), metadata.gid()),
        (100_005, 100_006),
        "{seen}"
    );
    assert_lines(
        &seen,
        &[
            "         0     100000       1000",
            "65534 65534 /foreign",
            "again",
        ],
    );
    let seen = as_with_runc(&make(&["sh", "-c", &script], 1003));
    assert!(seen.contains("uid=1003 gid=1003 groups=7"), "{seen}");

    // A further process has the same users.
    let runtime = OciRuntime::vm_run();
    let bundle = make(&["sleep", "1000"], 0);
    runtime.run_detached("x", &bundle);
    let exec =
        |user: &str, look: &str| runtime.call(&["exec", "--user", user, "x", "sh", "-c", look]);
    let seen = exec("1001:5", "id -u; head -n 1 /proc/self/uid_map").text();
    assert!(
        seen.starts_with("1001\n         0     100000       1000\n"),
        "{seen}"
    );
    let seen = exec("0:0", "touch /by-exec; stat -c %u /by-exec").text();
    assert_eq!(seen, "0\n");
    assert_eq!(
        fs::metadata(bundle.in_root("by-exec")).unwrap().uid(),
        100_000
    );
}

/// Debian's runc does not know these.
#[test]
fn files_of_an_id_mapped_mount_belong_to_whom_its_mapping_says() {
    let _clean = Clean::slate();
    let data = tempfile::Builder::new()
        .prefix("nacre-test-")
        .tempdir()
        .unwrap();
    let at = |name: &str| data.path().join(name);
    sh(&format!(
        "cd {}; mkdir -p volume/below; mount -t tmpfs below volume/below
         touch volume/roots volume/others volume/below/roots; chown 1:1 volume/others",
        path(data.path())
    ));
    let mapping = |seen: u32| json!([{ "containerID": 0, "hostID": seen, "size": 1 }]);
    let mapped = |bundle: TestBundle, source: &str, place: &str, options: &[&str]| {
        let mount = json!({ "destination": place, "type": "bind", "source": at(source),
            "options": options, "uidMappings": mapping(1000), "gidMappings": mapping(100) });
        bundle.with("/mounts/-", mount)
    };
    let run = |bundle: &TestBundle| {
        bundle.write();
        OciRuntime::vm_run().call(&["run", "-b", path(bundle.path()), "x"])
    };
    let bundle = TestBundle::sh(
        "touch /volume/made; mkdir /volume/dir; ln -s roots /volume/link
         for volume in /volume /all; do
             stat -c '%n %u:%g' $volume/roots $volume/others $volume/made $volume/below/roots
         done
         touch /volume/others 2>&1",
    )
    .with("/process/user", json!({ "uid": 1000, "gid": 100 }));
    let bundle = mapped(bundle, "volume", "/volume", &["rbind"]);
    let ended = run(&mapped(
        bundle,
        "volume",
        "/all",
        &["rbind", "ro", "ridmap"],
    ));
    assert_eq!(
        ended.text(),
        "/volume/roots 1000:100\n/volume/others 65534:65534\n/volume/made 1000:100\n\
         /volume/below/roots 0:0\n\
         /all/roots 1000:100\n/all/others 65534:65534\n/all/made 1000:100\n\
         /all/below/roots 1000:100\n\
         touch: /volume/others: Permission denied\n",
        "{ended}"
    );
    for name in ["made", "dir", "link"] {
        let metadata = fs::symlink_metadata(at("volume").join(name)).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (0, 0), "{name}");
    }

    // The mount's users may be those of the container.
    let users = TestBundle::sh("stat -c %u:%g /volume/roots")
        .with("/linux/namespaces/-", json!({ "type": "user" }))
        .with("/linux/uidMappings", mapping(70_000))
        .with("/linux/gidMappings", mapping(70_000));
    sh(&format!(
        "chmod 711 {0}; chown -hR 70000:70000 {0}/rootfs",
        path(users.path())
    ));
    let users = users.with_bind(&at("volume"), "/volume", &["bind", "idmap"]);
    let ended = run(&users);
    assert_eq!(ended.text(), "0:0\n", "{ended}");

    // A file system that cannot be mapped.
    sh(&format!(
        "cd {}; mkdir upper work merged
         mount -t overlay -o lowerdir=volume,upperdir=upper,workdir=work overlay merged",
        path(data.path())
    ));
    let ended = run(&mapped(TestBundle::sh(""), "merged", "/merged", &["bind"]));
    assert_eq!(ended.code(), 1, "{ended}");
    assert!(
        ended.stderr.contains(&format!(
            "config.json: mounts[3]: {} cannot be ID-mapped: Invalid argument",
            path(&at("merged"))
        )),
        "{ended}"
    );
    sh(&format!(
        "cd {}; umount merged; umount volume/below",
        path(data.path())
    ));
}

/// What Debian's runc does not know, of the same specification.
#[test]
fn names_clocks_personality_and_flags_are_as_the_bundle_says() {
    let _clean = Clean::slate();
    let script = r#"
        hostname; cat /proc/sys/kernel/domainname; cut -d. -f1 /proc/uptime
        echo offsets $(cat /proc/self/timens_offsets)
        uname -m; echo "personality $(cat /proc/self/personality)"; mkdir /tmp/x
        grep Seccomp: /proc/self/status
        awk '$5 == "/" { print "root", $7 }' /proc/self/mountinfo; sleep 1000"#;
    let bundle = TestBundle::sh(script)
        .with("/hostname", json!("of-the-bundle"))
        .with("/domainname", json!("example.org"))
        .with("/linux/personality", json!({ "domain": "LINUX32" }))
        .with("/linux/rootfsPropagation", json!("unbindable"))
        .with("/linux/namespaces/-", json!({ "type": "time" }))
        .with(
            "/linux/timeOffsets",
            json!({ "monotonic": { "secs": 1000, "nanosecs": 7 },
                "boottime": { "secs": 5_000_000, "nanosecs": 0 } }),
        )
        .with(
            "/linux/seccomp",
            json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
                    "SECCOMP_FILTER_FLAG_TSYNC"],
                "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO",
                    "errnoRet": 95 }],
            }),
        );
    let runtime = OciRuntime::vm_run();
    runtime.run_detached("x", &bundle);
    runtime.wait_for_output("root unbindable");
    let seen = runtime.output();
    assert_lines(
        &seen,
        &[
            "of-the-bundle",
            "example.org",
            "offsets monotonic 1000 7 boottime 5000000 0",
            "i686",
            "personality 00000008",
            "Seccomp:\t2",
        ],
    );
    let uptime: u64 = seen.lines().nth(2).unwrap().parse().unwrap();
    assert!((5_000_000..5_010_000).contains(&uptime), "{seen}");
    let look = "cut -d. -f1 /proc/uptime; uname -m; mkdir /tmp/x";
    let of_exec = runtime.call(&["exec", "x", "sh", "-c", look]);
    let text = of_exec.text();
    let (later, machine) = text.trim().split_once('\n').unwrap();
    assert!(later.parse::<u64>().unwrap() >= uptime, "{of_exec}");
    assert_eq!(machine, "i686");
    assert!(
        of_exec.stderr.contains("Operation not supported"),
        "{of_exec}"
    );
}
