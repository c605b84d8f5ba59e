//! Hooks, compared with runc's where runc follows the specification.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use nacre_tests::oci::path;
use nacre_tests::{Clean, OciRuntime, TestBundle, VmRun};
use serde_json::{Value, json};

/// A program that ends only when it is killed.
const FOREVER: &[&str] = &["sleep", "1000000"];

/// Moments at which hooks run on the host.
const ON_THE_HOST: &[&str] = &["prestart", "createRuntime", "poststart", "poststop"];

fn sh(script: &str) -> Value {
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script] })
}

/// A hook that adds the name of its moment and the state to a file.
fn note(moment: &str, file: &Path) -> Value {
    sh(&format!(
        "{{ printf '%s ' {moment}; cat; echo; }} >>{}",
        file.display()
    ))
}

/// A bundle with two such hooks for each moment on the host.
fn noting(bundle: TestBundle, file: &Path) -> TestBundle {
    ON_THE_HOST.iter().fold(bundle, |bundle, moment| {
        let hooks = json!([note(moment, file), note(moment, file)]);
        bundle.with(&format!("/hooks/{moment}"), hooks)
    })
}

/// What hooks have noted: the moment, and the state that they were told.
fn notes(file: &Path) -> Vec<(String, Value)> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines()
        .map(|line| {
            let (moment, state) = line.split_once(' ').unwrap();
            (moment.to_owned(), serde_json::from_str(state).unwrap())
        })
        .collect()
}

fn moments(file: &Path) -> Vec<String> {
    notes(file).into_iter().map(|(moment, _)| moment).collect()
}

#[test]
fn hooks_run_at_their_moments_with_the_state_on_their_input() {
    let _clean = Clean::slate();
    let learn = |runtime: &OciRuntime| {
        let file = runtime.path("notes");
        let bundle = noting(TestBundle::new(FOREVER), &file);
        let bundle = bundle.with("/annotations", json!({ "org.test": "yes" }));
        runtime.create("x", &bundle);
        let pid = runtime.pid("x");
        let created = moments(&file);
        let _ = runtime.call(&["start", "x"]).expect_code(0);
        let _ = runtime.call(&["kill", "x", "KILL"]).expect_code(0);
        runtime.wait_for_status("x", "stopped");
        let ended = moments(&file);
        let _ = runtime.call(&["delete", "x"]).expect_code(0);
        let states: Vec<_> = notes(&file)
            .into_iter()
            .map(|(moment, mut state)| {
                let told = state["pid"].take();
                assert_eq!(state["bundle"].take(), json!(bundle.path()));
                // runc calls poststart hooks while it creates.
                if moment == "poststart" {
                    state["status"].take();
                }
                let is_over = moment == "poststop";
                assert!(is_over || told == json!(pid), "{moment}: {told}, not {pid}");
                (moment, state)
            })
            .collect();
        (created, ended, states)
    };
    let (created, ended, ours) = learn(&OciRuntime::vm_run());
    let (_, _, runcs) = learn(&OciRuntime::runc());
    assert_eq!(ours, runcs);
    let until_created = ["prestart", "prestart", "createRuntime", "createRuntime"];
    assert_eq!(created, until_created);
    assert_eq!(ended[4..], ["poststart", "poststart"]);
    assert_eq!(ours[6].1["status"], "stopped");
    assert_eq!(ours[0].1["status"], "creating");
    assert_eq!(ours[0].1["annotations"]["org.test"], "yes");
}

#[test]
fn a_container_that_runs_attached_has_the_same_hooks() {
    let _clean = Clean::slate();
    let runtime = OciRuntime::vm_run();
    let all: Vec<_> = ON_THE_HOST
        .iter()
        .flat_map(|moment| [*moment, *moment])
        .collect();
    let file = runtime.path("run");
    let bundle = noting(TestBundle::new(&["true"]), &file);
    bundle.write();
    let run = ["run", "--bundle", path(bundle.path()), "x"];
    let _ = runtime.call(&run).expect_code(0);
    assert_eq!(moments(&file), all);
    let file = runtime.path("bundle");
    let bundle = noting(bundle, &file);
    let _ = VmRun::bundle(&bundle, &[]).expect_code(0);
    assert_eq!(moments(&file), all);
    let states = notes(&file);
    assert_eq!(states[4].1["status"], "running");
    assert_eq!(states[4].1["bundle"], json!(bundle.path()));
}

#[test]
fn a_hook_that_fails_before_the_start_undoes_the_container() {
    let _clean = Clean::slate();
    let learn = |runtime: &OciRuntime, moment: &str| {
        let file = runtime.path(moment);
        let hook = sh("cat >/dev/null; echo wrong thing >&2; exit 5");
        let bundle = TestBundle::new(FOREVER)
            .with(&format!("/hooks/{moment}"), json!([hook]))
            .with("/hooks/poststop", json!([note("poststop", &file)]));
        bundle.write();
        let create = ["create", "--bundle", path(bundle.path()), "x"];
        let ended = runtime.call(&create);
        assert!(ended.stderr.contains("exit status 5"), "{ended:?}");
        assert!(ended.stderr.contains("wrong thing"), "{ended:?}");
        (ended.code(), runtime.status("x"), moments(&file))
    };
    for moment in ["prestart", "createRuntime"] {
        let ours = learn(&OciRuntime::vm_run(), moment);
        assert_eq!(ours, (1, String::new(), vec!["poststop".to_owned()]));
        let (code, status, _) = learn(&OciRuntime::runc(), moment);
        assert_eq!((code, status), (1, String::new()));
    }
}

#[test]
fn a_hook_that_takes_too_long_is_killed() {
    let _clean = Clean::slate();
    let learn = |runtime: &OciRuntime| {
        let hook = json!({ "path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 2 });
        let bundle = TestBundle::new(FOREVER).with("/hooks/createRuntime", json!([hook]));
        bundle.write();
        let ended = runtime.call(&["create", "--bundle", path(bundle.path()), "x"]);
        (ended.code(), runtime.status("x"), ended.stderr)
    };
    let (code, status, message) = learn(&OciRuntime::vm_run());
    assert_eq!((code, status.as_str()), (1, ""), "{message}");
    let expected = "hooks.createRuntime[0]: /bin/sleep: not done within 2 s";
    assert!(message.contains(expected), "{message}");
    let (code, status, _) = learn(&OciRuntime::runc());
    assert_eq!((code, status.as_str()), (1, ""));
}

#[test]
fn a_hook_that_fails_after_the_start_stops_the_container() {
    let _clean = Clean::slate();
    let runtime = OciRuntime::vm_run();
    let file = runtime.path("notes");
    let bundle = TestBundle::new(FOREVER)
        .with("/hooks/poststart", json!([sh("echo late >&2; exit 6")]))
        .with("/hooks/poststop", json!([note("poststop", &file)]));
    runtime.create("x", &bundle);
    let started = runtime.call(&["start", "x"]).expect_code(1);
    let expected = "hooks.poststart[0]: /bin/sh: exit status 6: late";
    assert!(started.stderr.contains(expected), "{started:?}");
    runtime.wait_for_status("x", "stopped");
    assert_eq!(moments(&file), [""; 0]);
    let _ = runtime.call(&["delete", "x"]).expect_code(0);
    assert_eq!(moments(&file), ["poststop"]);
    // Attached, there is nobody else to delete it.
    let run = ["run", "--bundle", path(bundle.path()), "y"];
    let ran = runtime.call(&run).expect_code(1);
    assert!(ran.stderr.contains(expected), "{ran:?}");
    assert_eq!(runtime.status("y"), "");
    assert_eq!(moments(&file), ["poststop", "poststop"]);
}

#[test]
fn a_hook_that_fails_after_the_end_is_warned_of() {
    let _clean = Clean::slate();
    let runtime = OciRuntime::vm_run();
    let file = runtime.path("notes");
    let hooks = json!([sh("exit 1"), note("poststop", &file)]);
    let bundle = TestBundle::new(FOREVER).with("/hooks/poststop", hooks);
    runtime.create("x", &bundle);
    let deleted = runtime.call(&["delete", "--force", "x"]).expect_code(0);
    let expected = "hooks.poststop[0]: /bin/sh: exit status 1";
    assert!(deleted.stderr.contains(expected), "{deleted:?}");
    assert_eq!(moments(&file), ["poststop"]);
    assert_eq!(runtime.status("x"), "");
}

#[test]
fn hooks_run_where_the_runtime_was_started() {
    let _clean = Clean::slate();
    let runtime = OciRuntime::vm_run();
    let file = runtime.path("places");
    let look = "for kind in mnt net pid; do readlink /proc/self/ns/$kind; done; \
                cat /proc/self/cgroup; pwd";
    let hook = sh(&format!("{{ {look}; }} >>{}", file.display()));
    let bundle = ON_THE_HOST
        .iter()
        .fold(TestBundle::new(&["true"]), |bundle, moment| {
            bundle.with(&format!("/hooks/{moment}"), json!([hook]))
        })
        .with("/linux/cgroupsPath", json!("/nacre-test/hooks"));
    bundle.write();
    let run = ["run", "--bundle", path(bundle.path()), "x"];
    let _ = runtime.call(&run).expect_code(0);
    let here = std::process::Command::new("/bin/sh")
        .args(["-c", look])
        .current_dir(bundle.path())
        .output()
        .unwrap();
    let here = String::from_utf8(here.stdout).unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), here.repeat(4));
}

#[test]
fn a_hook_may_wire_the_network_of_the_state_s_process() {
    let _clean = Clean::slate();
    let learn = |runtime: &OciRuntime| {
        // The other side of the pair is the host's, and goes with the namespace.
        let wire = "pid=$(sed 's/.*\"pid\": *\\([0-9]*\\).*/\\1/') || exit 1; \
                    PATH=/usr/sbin:/sbin:$PATH; \
                    ip link add nacre-hook type veth peer name eth0 netns $pid || exit 1; \
                    ip addr add 10.99.7.1/24 dev nacre-hook; ip link set nacre-hook up; \
                    nsenter -t $pid -n ip addr add 10.99.7.2/24 dev eth0; \
                    nsenter -t $pid -n ip link set eth0 up";
        let bundle = TestBundle::sh("ip -o -4 addr show dev eth0; ping -c 1 -w 60 10.99.7.1")
            .with_capabilities(&["CAP_NET_RAW"])
            .with("/hooks/createRuntime", json!([sh(wire)]));
        bundle.write();
        let ended = runtime.call(&["run", "--bundle", path(bundle.path()), "x"]);
        let text = ended.expect_code(0).text();
        (
            text.contains("10.99.7.2/24"),
            text.contains("1 packets received"),
        )
    };
    assert_eq!(learn(&OciRuntime::vm_run()), (true, true));
    assert_eq!(learn(&OciRuntime::runc()), (true, true));
}

#[test]
fn a_hook_that_changes_nothing_leaves_a_pod_without_a_network() {
    let _clean = Clean::slate();
    let runtime = OciRuntime::vm_run();
    let bundle = TestBundle::sh("ls /sys/class/net")
        .with(
            "/mounts/-",
            json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs" }),
        )
        .with("/hooks/createRuntime", json!([sh("cat >/dev/null")]));
    bundle.write();
    let run = ["run", "--bundle", path(bundle.path()), "x"];
    let ran = runtime.call(&run).expect_code(0);
    assert_eq!(ran.text(), "lo\n");
}

#[test]
fn hooks_of_the_guest_run_in_the_container() {
    let _clean = Clean::slate();
    let learn = |runtime: &OciRuntime| {
        let hook = |script: &str| json!({ "path": "/bin/sh", "args": ["sh", "-c", script] });
        let bundle = TestBundle::sh("cat /tmp/state; echo; cat /tmp/env")
            .with("/process/env/-", json!("OF=process"))
            .with("/annotations", json!({ "org.test": "yes" }))
            .with(
                "/hooks/startContainer",
                json!([hook("cat >/tmp/state"), hook("echo $OF >/tmp/env")]),
            );
        bundle.write();
        let ended = runtime.call(&["run", "--bundle", path(bundle.path()), "x"]);
        let text = ended.expect_code(0).text();
        let (state, env) = text.split_once('\n').unwrap();
        let mut state: Value = serde_json::from_str(state).unwrap();
        // A path of whoever runs the hook.
        state["bundle"].take();
        state["ociVersion"].take();
        (state, env.to_owned())
    };
    let ours = learn(&OciRuntime::vm_run());
    assert_eq!(ours, learn(&OciRuntime::runc()));
    assert_eq!(ours.0["pid"], 1);
}

#[test]
fn a_program_of_the_host_runs_in_the_guest_before_the_container_s_root_is_entered() {
    let _clean = Clean::slate();
    let runtime = OciRuntime::vm_run();
    // BusyBox is one program that needs no other file.
    let hook = |args: Value| json!([{ "path": "/bin/busybox", "args": args }]);
    let root = "/run/nacre/share/x/rootfs";
    let bundle = TestBundle::sh("hostname; cat /made").with(
        "/hooks/createContainer",
        hook(json!([
            "sh",
            "-c",
            format!("busybox cat >/dev/null; echo made >{root}/made; hostname hooked")
        ])),
    );
    bundle.write();
    let run = ["run", "--bundle", path(bundle.path()), "x"];
    let ran = runtime.call(&run).expect_code(0);
    assert_eq!(ran.text(), "hooked\nmade\n");
    let failing = bundle.with("/hooks/createContainer", hook(json!(["false"])));
    let file = runtime.path("notes");
    let failing = failing.with("/hooks/poststop", json!([note("poststop", &file)]));
    failing.write();
    let dir = path(failing.path()).to_owned();
    let create = ["create", "--bundle", &dir, "x"];
    let ended = runtime.call(&create).expect_code(1);
    let expected = "hooks.createContainer: a hook has failed";
    assert!(ended.stderr.contains(expected), "{ended:?}");
    assert_eq!(runtime.status("x"), "");
    assert_eq!(moments(&file), ["poststop"]);
    let script = failing.with("/hooks/createContainer/0/path", json!("/bin/sh"));
    script.write();
    let ended = runtime.call(&create).expect_code(1);
    let expected = "hooks.createContainer[0].path: /bin/sh: runs in the guest";
    assert!(ended.stderr.contains(expected), "{ended:?}");
}

#[test]
fn a_hook_that_fails_in_the_container_s_place_ends_it() {
    let _clean = Clean::slate();
    let runtime = OciRuntime::vm_run();
    let file = runtime.path("notes");
    let failing = json!([{ "path": "/bin/sh", "args": ["sh", "-c", "exit 9"] }]);
    let bundle = TestBundle::sh("echo ran")
        .with("/hooks/startContainer", failing)
        .with("/hooks/poststart", json!([note("poststart", &file)]))
        .with("/hooks/poststop", json!([note("poststop", &file)]));
    runtime.create("x", &bundle);
    let started = runtime.call(&["start", "x"]).expect_code(1);
    let expected =
        "hooks.startContainer[0]: /bin/sh: hook command exited with non-zero exit code: 9";
    assert!(started.stderr.contains(expected), "{started:?}");
    runtime.wait_for_status("x", "stopped");
    let _ = runtime.call(&["delete", "x"]).expect_code(0);
    assert_eq!(moments(&file), ["poststop"]);
    let mut slow = json!([{ "path": "/bin/sleep", "args": ["sleep", "1000"] }]);
    slow[0]["timeout"] = json!(1);
    let bundle = bundle.with("/hooks/startContainer", slow);
    bundle.write();
    let run = ["run", "--bundle", path(bundle.path()), "x"];
    let ran = runtime.call(&run).expect_code(1);
    assert!(ran.stderr.contains("timeout"), "{ran:?}");
    assert!(!runtime.output().contains("ran\n"), "the program has run");
}
