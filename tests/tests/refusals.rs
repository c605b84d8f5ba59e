//! Bad input: an exit status, and one line that says what is wrong, where, and
//! what to do. None of these starts a virtual machine, unless it has to.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Instant;

use nacre_tests::initramfs::Initramfs;
use nacre_tests::loop_device::LoopDevice;
use nacre_tests::{Clean, Ended, TestBundle, VmRun};
use serde_json::{Value, json};

/// Fails unless one line of `vm-run`, with all these texts in it, is all that was said.
fn assert_one_line(ended: &Ended, texts: &[&str]) {
    assert_eq!(ended.stderr.lines().count(), 1, "{ended}");
    assert!(ended.stderr.starts_with("vm-run: "), "{ended}");
    for text in texts {
        assert!(ended.stderr.contains(text), "{text:?} is not in: {ended}");
    }
    assert_eq!(ended.text(), "");
}

fn refused(bundle: &TestBundle, options: &[&str], texts: &[&str]) {
    let start = Instant::now();
    let ended = VmRun::bundle(bundle, options).expect_code(1);
    assert_one_line(&ended, texts);
    assert!(
        start.elapsed().as_secs() < 5,
        "it took {:?}",
        start.elapsed()
    );
}

#[test]
fn a_configuration_that_cannot_be_read_is_refused_by_its_path() {
    let _clean = Clean::slate();
    let bundle = TestBundle::new(&["true"]);
    let path = bundle.path().join("config.json");
    let path = path.to_str().unwrap();
    let run = || {
        VmRun::start_command(VmRun::command(bundle.path(), &[]))
            .wait()
            .expect_code(1)
    };

    assert_one_line(&run(), &[path, "No such file or directory"]);
    let large = format!("\"{}\"", "x".repeat(4 << 20));
    for (text, message) in [
        ("", "EOF"),
        ("{ \"ociVersion\": ", "line 1 column 16"),
        ("[]", "ociVersion"),
        ("{}", "ociVersion"),
        (&large[..], "larger than 3 MiB"),
    ] {
        bundle.write_text(text);
        assert_one_line(&run(), &[path, message]);
    }
}

#[test]
fn each_field_that_cannot_be_honoured_is_refused_by_its_name() {
    let _clean = Clean::slate();
    let disk = LoopDevice::new(1);
    let cases: &[(&str, Value, &str)] = &[
        (
            "/ociVersion",
            json!("2.0.0"),
            "ociVersion: 2.0.0 is not supported",
        ),
        (
            "/ociVersion",
            json!("1.99.0"),
            "ociVersion: 1.99.0 is not supported",
        ),
        ("/process/args", json!([]), "process.args: empty"),
        ("/process/args/0", json!(""), "process.args[0]: empty"),
        ("/process/cwd", json!("tmp"), "process.cwd"),
        (
            "/process/apparmorProfile",
            json!("strict"),
            "process.apparmorProfile",
        ),
        (
            "/process/selinuxLabel",
            json!("label"),
            "process.selinuxLabel",
        ),
        ("/root/path", json!("nowhere"), "root.path"),
        ("/root/path", json!("config.json"), "root.path"),
        ("/root/path", json!("/proc"), "root.path"),
        (
            "/hooks/prestart",
            json!([{ "path": "true" }]),
            "hooks.prestart[0].path",
        ),
        ("/windows", json!({ "layerFolders": ["x"] }), "windows"),
        (
            "/mounts/-",
            json!({ "destination": "/a", "source": "/nowhere", "options": ["bind"] }),
            "mounts[3].source: /nowhere: No such file or directory",
        ),
        (
            "/mounts/-",
            json!({ "destination": "/a", "source": "/dev/null", "options": ["bind"] }),
            "mounts[3].source: /dev/null: is a device",
        ),
        (
            "/mounts/-",
            json!({ "destination": "/a", "source": "/sys/kernel", "options": ["rbind"] }),
            "mounts[3].source",
        ),
        (
            "/mounts/-",
            json!({ "destination": "a", "type": "tmpfs", "source": "a" }),
            "mounts[3].destination",
        ),
        (
            "/mounts/-",
            json!({ "destination": "/a", "type": "xfs", "source": "/dev/vda" }),
            "mounts[3].type",
        ),
        (
            "/mounts/-",
            json!({ "destination": "/a", "type": "ext4", "source": "/dev/null" }),
            "mounts[3].source: /dev/null: is no block device",
        ),
        (
            "/linux/devices",
            json!([disk.listed("/dev/xvda")]),
            "linux.devices[0]: \"/dev/xvda\": no rule of linux.resources.devices",
        ),
        (
            "/mounts/2/options",
            json!(["rshared"]),
            "mounts[2].options[0]",
        ),
        (
            "/linux/namespaces",
            json!([{ "type": "mount" }]),
            "linux.namespaces",
        ),
        (
            "/linux/namespaces/0/path",
            json!("/proc/1/ns/pid"),
            "linux.namespaces[0].path",
        ),
        (
            "/linux/namespaces/1/path",
            json!("/proc/1/ns/net"),
            "network",
        ),
        (
            "/linux/namespaces/1/path",
            json!("/run/netns/nowhere"),
            "/run/netns/nowhere",
        ),
        (
            "/linux/intelRdt",
            json!({ "closID": "x" }),
            "linux.intelRdt",
        ),
        (
            "/linux/devices",
            json!([{ "path": "/dev/kvm", "type": "c", "major": 10, "minor": 232 }]),
            "linux.devices[0]: \"/dev/kvm\": names a device of the host",
        ),
        (
            "/linux/resources",
            json!({ "cpu": { "cpus": "zero" } }),
            "linux.resources.cpu.cpus",
        ),
        ("/linux/cgroupsPath", json!("a:b:c"), "linux.cgroupsPath"),
        ("/linux/cgroupsPath", json!("/../../x"), "linux.cgroupsPath"),
        (
            "/linux/seccomp/defaultAction",
            json!("SCMP_ACT_NOTIFY"),
            "linux.seccomp",
        ),
    ];
    for (pointer, value, message) in cases {
        let bundle = TestBundle::new(&["true"]).with(pointer, value.clone());
        refused(&bundle, &[], &[message]);
    }
}

#[test]
fn a_command_line_that_makes_no_sense_is_refused() {
    let _clean = Clean::slate();
    let run = |words: &[&str]| {
        let mut command = Command::new("vm-run");
        command.args(words).stdin(std::process::Stdio::null());
        VmRun::start_command(command).wait().expect_code(1)
    };
    let cases: &[(&[&str], &str)] = &[
        (&[], "Usage"),
        (&["bundle"], "<DIR>"),
        (&["bundle", "--cpus", "0", "/b"], "--cpus"),
        (&["bundle", "--cpus", "4096", "/b"], "--cpus"),
        (&["bundle", "--memory", "lots", "/b"], "--memory"),
        (&["bundle", "--memory", "1M", "/b"], "a kernel needs that"),
        (&["bundle", "--net", "eth0", "/b"], "--net"),
        (&["bundle", "--id", "../x", "/b"], "--id"),
        (&["bundle", "--no-jail", "/b"], "--no-jail"),
    ];
    for (words, message) in cases {
        let ended = run(words);
        assert!(ended.stderr.contains(message), "{words:?}: {ended}");
    }
    let bundle = TestBundle::new(&["true"]);
    refused(
        &bundle,
        &["--net", "/run/netns/nowhere"],
        &["/run/netns/nowhere"],
    );
    refused(&bundle, &["--net", "/dev/null"], &["/dev/null"]);
}

#[test]
fn a_kernel_or_initramfs_that_is_none_is_refused_by_its_path() {
    let _clean = Clean::slate();
    let bundle = TestBundle::new(&["true"]);
    let bzimage = {
        let mut bytes = vec![0; 0x400];
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes
    };
    let mut arm = fs::read("/nacre/guest/vmlinux").unwrap();
    arm.truncate(4096);
    let broken = arm.clone();
    arm[18] = 183;
    for (name, bytes, message) in [
        ("empty", Vec::new(), "not an ELF file"),
        ("text", b"this is no kernel\n".to_vec(), "not an ELF file"),
        ("bzImage", bzimage, "compressed bzImage"),
        ("arm", arm, "not for x86-64"),
    ] {
        let path = bundle.path().join(name);
        fs::write(&path, bytes).unwrap();
        let path = path.to_str().unwrap();
        refused(&bundle, &["--kernel", path], &[path, message]);
    }
    refused(
        &bundle,
        &["--kernel", "/nowhere"],
        &["guest kernel /nowhere: No such file"],
    );
    refused(
        &bundle,
        &["--initramfs", "/nowhere"],
        &["initramfs /nowhere: No such file"],
    );

    // Only the monitor sees that the rest of it is missing.
    let path = bundle.path().join("broken");
    fs::write(&path, broken).unwrap();
    let ended = VmRun::bundle(&bundle, &["--kernel", path.to_str().unwrap()]).expect_code(1);
    assert!(
        ended
            .stderr
            .contains("the monitor could not run the virtual machine"),
        "{ended}"
    );
    assert!(ended.stderr.contains("kernel"), "{ended}");
}

#[test]
fn kvm_that_is_missing_or_forbidden_is_said_with_what_to_do() {
    let _clean = Clean::slate();
    let bundle = TestBundle::new(&["true"]);
    bundle.write();
    // In a mount namespace of its own, where /dev/kvm is something else.
    let run = |prepare: &str| {
        let mut command = Command::new("unshare");
        let script = format!("{prepare} && exec vm-run bundle \"$0\"");
        command.args(["--mount", "sh", "-c", &script]);
        command
            .arg(bundle.path())
            .stdin(std::process::Stdio::null());
        VmRun::start_command(command).wait().expect_code(1)
    };
    let missing = run("mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3");
    assert_one_line(
        &missing,
        &["/dev/kvm: No such file", "no KVM", "vm-run check"],
    );
    // A mount without devices forbids them even to root.
    let forbidden = run("mount --bind /dev/kvm /dev/kvm && mount -o remount,bind,nodev /dev/kvm");
    assert_one_line(
        &forbidden,
        &["/dev/kvm: Permission denied", "run as root", "vm-run check"],
    );
    let other = run("mount --bind /dev/zero /dev/kvm");
    assert!(other.stderr.contains("KVM"), "{other}");
}

#[test]
fn a_program_that_is_missing_is_127_and_one_that_cannot_be_executed_126() {
    let _clean = Clean::slate();
    let missing = TestBundle::new(&["no-such-program"]);
    let ended = VmRun::bundle(&missing, &[]).expect_code(127);
    assert_one_line(&ended, &["no-such-program", "not found"]);

    let bundle = TestBundle::new(&["/etc/text"]);
    fs::write(bundle.in_root("etc/text"), "#!/bin/sh\nexit 0\n").unwrap();
    fs::set_permissions(
        bundle.in_root("etc/text"),
        fs::Permissions::from_mode(0o644),
    )
    .unwrap();
    let ended = VmRun::bundle(&bundle, &[]).expect_code(126);
    assert_one_line(&ended, &["/etc/text", "ermission denied"]);
}

#[test]
fn too_little_memory_to_boot_is_said_so() {
    let _clean = Clean::slate();
    let bundle = TestBundle::new(&["true"]);
    refused(&bundle, &["--memory=36M"], &["memory are too few"]);
    // It fits in, and leaves too little to be unpacked.
    let initramfs = Initramfs::new(None, 22);
    let path = initramfs.path();
    let options = ["--memory", "64M", "--initramfs", path.to_str().unwrap()];
    let ended = VmRun::bundle(&bundle, &options).expect_code(1);
    assert!(
        ended
            .stderr
            .starts_with("vm-run: the guest has too little memory to boot"),
        "{ended}"
    );
}

#[test]
fn a_kernel_that_panics_is_told_with_its_last_words() {
    let _clean = Clean::slate();
    let bundle = TestBundle::new(&["true"]);
    let initramfs = Initramfs::new(None, 0);
    let path = initramfs.path();
    let ended = VmRun::bundle(&bundle, &["--initramfs", path.to_str().unwrap()]).expect_code(1);
    assert!(
        ended
            .stderr
            .starts_with("vm-run: the guest kernel panicked: "),
        "{ended}"
    );
    assert!(
        ended.stderr.contains("last lines of the guest console:"),
        "{ended}"
    );
    assert!(ended.stderr.lines().count() > 5, "{ended}");
}

/// An init that writes to the kernel's log, which the console shows, and no more.
const NOBODY_SERVES: &str = "
    busybox() { /bin/busybox \"$@\"; }
    busybox mkdir -p /dev; busybox mount -t devtmpfs dev /dev
    echo '<3>nobody serves here' >/dev/kmsg
    busybox sleep 1000";

#[test]
fn a_guest_whose_agent_never_comes_is_told_with_its_last_words() {
    let _clean = Clean::slate();
    let bundle = TestBundle::new(&["true"]);
    let initramfs = Initramfs::new(Some(NOBODY_SERVES), 0);
    let path = initramfs.path();
    let options = [
        "--initramfs",
        path.to_str().unwrap(),
        "--boot-timeout",
        "20",
    ];
    let start = Instant::now();
    let ended = VmRun::bundle(&bundle, &options).expect_code(1);
    assert!(start.elapsed().as_secs() >= 20, "before the time was over");
    assert!(
        ended
            .stderr
            .starts_with("vm-run: the guest kernel runs, but its agent did not answer within 20 s"),
        "{ended}"
    );
    assert!(ended.stderr.contains("] nobody serves here"), "{ended}");
}
