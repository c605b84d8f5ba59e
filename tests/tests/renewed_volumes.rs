//! Volumes that the kubelet renews: what it changes while a container runs reaches it, and
//! fires inotify in it, under `vm-run` as under runc.
//!
//! What watches is this program, the test `inside`.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::mem::MaybeUninit;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use nacre_tests::kubelet::Volume;
use nacre_tests::{Clean, OciRuntime, TestBundle, count, wait_until};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use serde_json::json;

/// A bundle of this very program, which is to watch the volume.
fn watching(volume: &Volume) -> TestBundle {
    let program = std::env::current_exe().unwrap();
    let words = ["/inside", "--ignored", "--exact", "--nocapture", "inside"];
    TestBundle::new(&words)
        .with_bind(&program, "/inside", &["bind", "ro"])
        .with_bind(volume.path(), "/volume", &["rbind", "rprivate", "ro"])
}

/// What is done in the container.
#[test]
#[ignore = "is run in a container by the other tests"]
fn inside() {
    let watch = inotify::init(CreateFlags::CLOEXEC).unwrap();
    let events = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVE;
    inotify::add_watch(&watch, "/volume", events).unwrap();
    println!("watching, key: {}", key());
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(&watch, &mut buffer);
    loop {
        let event = reader.next().unwrap();
        let name = event.file_name().unwrap().to_str().unwrap().to_owned();
        let flags: Vec<_> = event.events().iter_names().map(|(flag, _)| flag).collect();
        println!("{} {name}", flags.join("|"));
        if name == "..data" {
            println!("key: {}", key());
        }
        std::io::stdout().flush().unwrap();
    }
}

fn key() -> String {
    // The directory may be another one between two steps of the way to the file.
    let read = (0..100).find_map(|_| fs::read_to_string("/volume/key").ok());
    read.unwrap_or_else(|| "unreadable".to_owned())
}

#[test]
fn an_update_fires_the_events_that_it_fires_with_runc() {
    let _clean = Clean::slate();
    for kind in ["configmap", "projected"] {
        let look = |runtime: &OciRuntime| {
            let volume = Volume::new(kind);
            volume.write("..1", &[("key", "old"), ("goes", "")], |_| {});
            let bundle = watching(&volume);
            runtime.run_detached("x", &bundle);
            runtime.wait_for_output("watching, key: old\n");
            volume.write("..2", &[("key", "new"), ("comes", "")], |_| {});
            runtime.wait_for_output("DELETE|ISDIR ..1\n");
            let output = runtime.output();
            runtime.call(&["kill", "x", "KILL"]);
            runtime.wait_for_status("x", "stopped");
            let (_, seen) = output.split_once("watching").unwrap();
            seen.to_owned()
        };
        let runcs = look(&OciRuntime::runc());
        assert!(runcs.contains("MOVED_TO ..data\nkey: new\n"), "{runcs}");
        assert_eq!(look(&OciRuntime::vm_run()), runcs);
        println!("{kind}:{runcs}");
    }
}

#[test]
fn updates_in_a_row_all_arrive_in_the_end() {
    let _clean = Clean::slate();
    let updates = count(20, 500);
    for runtime in [OciRuntime::runc(), OciRuntime::vm_run()] {
        let volume = Volume::new("secret");
        volume.write("..first", &[("key", "first")], |_| {});
        let bundle = watching(&volume);
        runtime.run_detached("x", &bundle);
        runtime.wait_for_output("watching, key: first\n");
        for number in 0..updates {
            let text = format!("text {number}.");
            volume.write(&format!("..{number}"), &[("key", &text)], |_| {});
            std::thread::sleep(std::time::Duration::from_millis(number % 7 * 100));
        }
        runtime.wait_for_output(&format!("key: text {}.\n", updates - 1));
        let last = format!("text {}.", updates - 1);
        // A line of the watching program may be among what it prints.
        wait_until("the file is the last", || {
            runtime.call(&["exec", "x", "cat", "/volume/key"]).text() == last
        });
        // What comes after a rest arrives, too.
        std::thread::sleep(std::time::Duration::from_secs(3));
        volume.write("..last", &[("key", "the last")], |_| {});
        runtime.wait_for_output("key: the last\n");
        wait_until("the old content is gone", || {
            let listed = runtime.call(&["exec", "x", "ls", "-a", "/volume"]).text();
            listed.split_whitespace().collect::<Vec<_>>() == [".", "..", "..data", "..last", "key"]
        });
        runtime.call(&["kill", "x", "KILL"]);
        runtime.wait_for_status("x", "stopped");
    }
}

/// As with `fsGroup` and `defaultMode` of a Secret.
fn of_a_group(content: &Path) {
    let key = content.join("key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o440)).unwrap();
    chown(&key, Some(0), Some(2000)).unwrap();
    chown(content, Some(0), Some(2000)).unwrap();
    fs::set_permissions(content, fs::Permissions::from_mode(0o2750)).unwrap();
}

#[test]
fn a_secret_is_for_whom_it_is_for_and_cannot_be_written() {
    let _clean = Clean::slate();
    let script = r#"cd /volume
        stat -c '%n %A %u %g' . ..data key ..1 ..1/key ..data/key; readlink key; cat key
        echo x > ..1/key; echo x > new; rm key; echo "user $(id -u)"
        while [ "$(cat key)" = first ]; do sleep 0.1; done
        stat -c '%n %A %u %g' ..data/key; cat key"#;
    let look = |runtime: &OciRuntime, user: u32| {
        let volume = Volume::new("secret");
        chown(volume.path(), Some(0), Some(2000)).unwrap();
        fs::set_permissions(volume.path(), fs::Permissions::from_mode(0o2775)).unwrap();
        volume.write("..1", &[("key", "first")], of_a_group);
        let bundle = TestBundle::sh(script)
            .with("/process/user/uid", json!(user))
            .with("/process/user/additionalGids", json!([2000]))
            .with_bind(volume.path(), "/volume", &["rbind", "rprivate", "ro"]);
        runtime.run_detached("x", &bundle);
        runtime.wait_for_output(&format!("user {user}\n"));
        volume.write("..2", &[("key", "second")], of_a_group);
        runtime.wait_for_output("\nsecond");
        let output = runtime.output();
        runtime.wait_for_status("x", "stopped");
        output
    };
    for user in [0, 1000] {
        let runcs = look(&OciRuntime::runc(), user);
        assert_eq!(look(&OciRuntime::vm_run(), user), runcs);
        assert!(
            runcs.contains("..data/key -r--r----- 0 2000\nsecond"),
            "{runcs}"
        );
    }
}

#[test]
fn other_directories_stay_live_both_ways() {
    let _clean = Clean::slate();
    let runtime = OciRuntime::vm_run();
    let volume = Volume::new("configmap");
    // Not written by the kubelet, so that there is nothing to follow.
    fs::write(volume.path().join("plain"), "old").unwrap();
    let writable = Volume::new("secret");
    writable.write("..1", &[("key", "of the host")], |_| {});
    let script = "echo of the guest > /writable/..data/key; echo begun
        while [ \"$(cat /volume/plain)\" = old ]; do sleep 0.1; done; echo seen";
    let bundle = TestBundle::sh(script)
        .with_bind(volume.path(), "/volume", &["bind", "ro"])
        .with_bind(writable.path(), "/writable", &["bind"]);
    runtime.run_detached("x", &bundle);
    runtime.wait_for_output("begun\n");
    let written = fs::read_to_string(writable.path().join("key")).unwrap();
    assert_eq!(written, "of the guest\n");
    fs::write(volume.path().join("plain"), "new").unwrap();
    runtime.wait_for_output("seen\n");
    runtime.wait_for_status("x", "stopped");
}
