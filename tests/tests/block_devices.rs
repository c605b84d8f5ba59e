//! Block devices of the host in a pod: what its container writes is on the device, what it
//! may not write it cannot, and the pod lets go of it in the end.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::ErrorKind;

use nacre_tests::loop_device::LoopDevice;
use nacre_tests::{Clean, TestBundle, VmRun};
use serde_json::json;

/// A bundle that has these devices as /dev/xvda, /dev/xvdb and so on, with that access.
fn bundle(script: &str, devices: &[(&LoopDevice, &str)]) -> TestBundle {
    let listed: Vec<_> = ('a'..='z')
        .zip(devices)
        .map(|(letter, (device, _))| device.listed(&format!("/dev/xvd{letter}")))
        .collect();
    let allowed: Vec<_> = devices
        .iter()
        .map(|(device, access)| device.allowed(access))
        .collect();
    TestBundle::sh(script)
        .with("/linux/devices", json!(listed))
        .with("/linux/resources/devices", json!(allowed))
}

/// A bundle that has an ext4 at /data.
fn bundle_with_ext4(script: &str, device: &LoopDevice, options: &[&str]) -> TestBundle {
    let mount = json!({ "destination": "/data", "type": "ext4", "source": device.node(),
        "options": options });
    TestBundle::sh(script).with("/mounts/-", mount)
}

#[test]
fn what_a_container_writes_is_on_the_device_and_what_is_there_it_reads() {
    let _clean = Clean::slate();
    let device = LoopDevice::new(8);
    device.write(4096, b"of the host!");
    let script = "
        set -e
        dd if=/dev/xvda bs=4096 skip=1 count=1 2>/dev/null | head -c 12; echo
        dd if=/dev/xvda bs=1M 2>/dev/null | wc -c
        echo 'of the guest' | dd of=/dev/xvda bs=512 seek=16 conv=notrunc,fsync 2>/dev/null
        seq 1 300000 | dd of=/dev/xvda bs=1M seek=4 conv=notrunc,fsync 2>/dev/null
        stat -c '%F %a' /dev/xvda";
    let ended = VmRun::bundle(&bundle(script, &[(&device, "rwm")]), &[]).expect_code(0);
    let expected = format!("of the host!\n{}\nblock special file 660\n", 8 << 20);
    assert_eq!(ended.text(), expected, "{ended}");
    assert_eq!(device.read(16 * 512, 12), b"of the guest");
    let numbers: String = (1..=300_000).map(|number| format!("{number}\n")).collect();
    assert!(device.read(4 << 20, numbers.len()) == numbers.as_bytes());
}

#[test]
fn a_device_without_the_right_to_write_is_not_written() {
    let _clean = Clean::slate();
    let device = LoopDevice::new(1);
    device.write(0, b"of the host!");
    let script = "
        head -c 12 /dev/xvda; echo
        echo changed | dd of=/dev/xvda conv=notrunc,fsync 2>/dev/null && echo written
        cat /sys/block/vda/ro
        true";
    let sys = json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs" });
    let read_only = bundle(script, &[(&device, "r")]).with("/mounts/-", sys);
    let ended = VmRun::bundle(&read_only, &[]).expect_code(0);
    assert_eq!(ended.text(), "of the host!\n1\n", "{ended}");
    // Nor by a container that may use every device that there is.
    let all = json!({ "allow": true, "access": "rwm" });
    let privileged = read_only.with("/linux/resources/devices/-", all);
    let ended = VmRun::bundle(&privileged, &[]).expect_code(0);
    assert_eq!(ended.text(), "of the host!\n1\n", "{ended}");
    assert_eq!(device.read(0, 12), b"of the host!");
}

/// A monitor sees its own descriptors in procfs, as whoever has taken it over does.
#[test]
fn no_descriptor_of_a_monitor_opens_the_device_anew() {
    let _clean = Clean::slate();
    let (listed, source) = (LoopDevice::new(1), LoopDevice::new(8));
    source.make_ext4("greeting", "of the host\n");
    let mount = json!({ "destination": "/data", "type": "ext4", "source": source.node(),
        "options": ["ro"] });
    let bundle = bundle("echo ready; cat", &[(&listed, "r")]).with("/mounts/-", mount);
    let mut running = VmRun::start(&bundle, &[]);
    running.wait_for("ready");
    for device in [&listed, &source] {
        let descriptors = device.descriptors_of_monitors();
        assert_eq!(descriptors.len(), 1, "{descriptors:?}");
        for write in [true, false] {
            let opened = fs::File::options()
                .read(true)
                .write(write)
                .open(&descriptors[0]);
            let error = opened.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        }
    }
    drop(running.wait().expect_code(0));
}

#[test]
fn a_file_system_on_a_device_is_mounted_in_the_guest_and_unmounted_at_the_end() {
    let _clean = Clean::slate();
    let device = LoopDevice::new(32);
    device.make_ext4("greeting", "of the host\n");
    let script = "
        set -e
        cat /data/greeting
        grep ' /data ' /proc/mounts | cut -d ' ' -f 3,4 | cut -d , -f 1,2
        mkdir /data/made; seq 1 100000 > /data/made/numbers
        mknod /tmp/below b $(grep ' /data ' /proc/self/mountinfo | cut -d ' ' -f 3 | tr : ' ')
        head -c 1 /tmp/below 2>/dev/null || echo not below it";
    let bundle = bundle_with_ext4(script, &device, &["noatime", "errors=remount-ro"])
        .with_capabilities(&["CAP_MKNOD"]);
    let ended = VmRun::bundle(&bundle, &[]).expect_code(0);
    assert_eq!(
        ended.text(),
        "of the host\next4 rw,noatime\nnot below it\n",
        "{ended}"
    );
    let about = device.about_ext4();
    assert!(!about.contains("needs_recovery"), "{about}");
    device.mounted(|dir| {
        let numbers = fs::read_to_string(dir.join("made/numbers")).unwrap();
        assert_eq!(numbers.lines().count(), 100_000);
    });
}

#[test]
fn a_file_system_that_is_read_only_stays_as_it_is() {
    let _clean = Clean::slate();
    let device = LoopDevice::new(8);
    device.make_ext4("greeting", "of the host\n");
    let before = device.read(0, 8 << 20);
    let script = "cat /data/greeting; echo x > /data/new 2>/dev/null || echo refused";
    let bundle = bundle_with_ext4(script, &device, &["ro"]);
    let ended = VmRun::bundle(&bundle, &[]).expect_code(0);
    assert_eq!(ended.text(), "of the host\nrefused\n", "{ended}");
    assert!(device.read(0, 8 << 20) == before);
}

#[test]
fn a_file_system_that_the_host_has_mounted_is_not_given_to_a_guest() {
    let _clean = Clean::slate();
    let device = LoopDevice::new(8);
    device.make_ext4("greeting", "of the host\n");
    device.mounted(|_| {
        let bundle = bundle_with_ext4("true", &device, &[]);
        let ended = VmRun::bundle(&bundle, &[]).expect_code(1);
        assert!(ended.stderr.contains("is in use"), "{ended}");
    });
}

#[test]
fn a_pod_has_so_many_slots_and_says_so() {
    // The kernel keeps the nodes that it has made for them.
    let devices: Vec<_> = (0..9).map(|_| LoopDevice::new(1)).collect();
    let _clean = Clean::slate();
    for (index, device) in devices.iter().enumerate() {
        device.write(0, &[b'0' + u8::try_from(index).unwrap()]);
    }
    let all: Vec<_> = devices.iter().map(|device| (device, "rw")).collect();
    let script = "cat /dev/xvd? | tr -d '\\0'";
    let ended = VmRun::bundle(&bundle(script, &all[..8]), &[]).expect_code(0);
    assert_eq!(ended.text(), "01234567", "{ended}");
    let ended = VmRun::bundle(&bundle(script, &all), &[]).expect_code(1);
    assert!(ended.stderr.contains("has 8 block devices"), "{ended}");
}
