//! What a pod's security context says holds inside of its containers, and what it would give
//! of the host is refused by its field.

use std::fs;

use nacre_tests::Running;
use nacre_tests::Runtime::NacreSandbox;
use nacre_tests::crictl::{Container, Pids, Pod, PodStart};
use nacre_tests::loop_device::LoopDevice;
use serde_json::{Value, json};

use crate::setting::{NACRE_PODS, POD_KINDS, Setting, Test};

pub(crate) const TESTS: &[Test] = &[
    Test {
        name: "a_security_context_holds_inside_of_the_container",
        places: POD_KINDS,
        check: confined,
    },
    Test {
        name: "a_privileged_container_has_no_more_than_its_kernel",
        // runc's takes options off the host's own cgroup mount.
        places: NACRE_PODS,
        check: privileged,
    },
    Test {
        name: "namespaces_of_the_host_are_refused_by_the_field",
        places: NACRE_PODS,
        check: of_the_host,
    },
];

/// A container that sleeps, with these fields in its security context.
fn sleeping<'a>(pod: &Pod<'a>, fields: &Value) -> Container<'a> {
    saying(pod, "", fields)
}

/// The same, whose first process runs a line of shell before.
fn saying<'a>(pod: &Pod<'a>, script: &str, fields: &Value) -> Container<'a> {
    let script = format!("{script}\nexec sleep 10000");
    pod.start_changed(&script, Pids::Private, |config| {
        let context = config["linux"]["security_context"].as_object_mut().unwrap();
        context.extend(fields.as_object().unwrap().clone());
    })
}

fn confined(setting: &mut Setting) {
    let pod = Pod::run(setting.containerd, setting.runtime, Pids::Private);
    let plain = sleeping(&pod, &json!({}));
    runs_as_another_user(&pod);
    has_other_capabilities(&pod, &plain);
    has_a_read_only_root(&pod, &plain);
    is_filtered(setting, &pod);
    has_masked_files(&pod);
    pod.remove();
}

fn runs_as_another_user(pod: &Pod) {
    // Engines may list the group of the process once more.
    let show = "echo $(id -u) $(id -g) and \
                $(awk '$1 == \"Groups:\"' /proc/self/status | tr -s '\\t ' '\\n' | sort -nu \
                  | grep -vx -e Groups: -e 4321)";
    let fields = json!({
        "run_as_user": { "value": 1234 }, "run_as_group": { "value": 4321 },
        "supplemental_groups": [60, 7]
    });
    let container = saying(pod, show, &fields);
    let expected = "1234 4321 and 7 60";
    nacre_tests::wait_until("it has spoken", || !container.log().is_empty());
    assert_eq!(container.log(), format!("stdout {expected}\n"));
    assert_eq!(container.sh(show), expected, "an exec");
    let denied = container.exec(&["touch", "/etc/file"]);
    assert!(denied.stderr.contains("Permission denied"), "{denied}");
    container.remove();
}

/// A field of the status of a container's first process, which one that is executed has, too.
fn status(container: &Container, field: &str) -> String {
    let of = |pid| {
        let script = format!("awk '$1 == \"{field}:\" {{ print $2 }}' /proc/{pid}/status");
        container.sh(&script)
    };
    let first = of("1");
    assert_eq!(first, of("self"), "{field} of an exec");
    first
}

/// The capabilities of a container as a mask, which are those that it is bounded by, too.
fn capabilities(container: &Container) -> u64 {
    let mask = status(container, "CapEff");
    assert_eq!(mask, status(container, "CapBnd"));
    u64::from_str_radix(&mask, 16).unwrap()
}

fn has_other_capabilities(pod: &Pod, plain: &Container) {
    const CHOWN: u64 = 1 << 0;
    const NET_ADMIN: u64 = 1 << 12;
    let own = "touch /tmp/file; chown 1 /tmp/file";
    let configure = "ip link set dev eth0 mtu 1400; ip -o link show dev eth0 | grep -o 'mtu 1400'";
    let does = |container: &Container, script| {
        let ended = container.exec(&["sh", "-ec", script]);
        ended.code() == 0
    };
    let usual = capabilities(plain);
    assert_eq!(usual & (CHOWN | NET_ADMIN), CHOWN, "{usual:x}");
    assert!(does(plain, own) && !does(plain, configure));

    let fields = json!({ "capabilities": {
        "add_capabilities": ["NET_ADMIN"], "drop_capabilities": ["CHOWN"]
    } });
    let other = sleeping(pod, &fields);
    assert_eq!(capabilities(&other), usual & !CHOWN | NET_ADMIN);
    assert!(!does(&other, own) && does(&other, configure));
    other.remove();

    let none = sleeping(
        pod,
        &json!({ "capabilities": { "drop_capabilities": ["ALL"] }, "no_new_privs": true }),
    );
    assert_eq!(capabilities(&none), 0);
    assert_eq!(status(&none, "NoNewPrivs"), "1");
    assert_eq!(status(plain, "NoNewPrivs"), "0");
    none.remove();
}

fn has_a_read_only_root(pod: &Pod, plain: &Container) {
    let fixed = sleeping(pod, &json!({ "readonly_rootfs": true }));
    let touch = ["touch", "/file"];
    let refused = fixed.exec(&touch);
    assert!(
        refused.stderr.contains("Read-only file system"),
        "{refused}"
    );
    let _ = fixed.sh("touch /dev/shm/file");
    let _ = plain.exec(&touch).expect_code(0);
    fixed.remove();
}

fn is_filtered(setting: &Setting, pod: &Pod) {
    let profile = setting.containerd.dir().join("seccomp.json");
    let no_directories = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO" }]
    });
    fs::write(&profile, no_directories.to_string()).unwrap();
    // SecurityProfile.ProfileType of CRI.
    let (runtime_default, unconfined, localhost) = (0, 1, 2);
    for (what, mode, makes) in [
        (json!({ "profile_type": runtime_default }), "2", true),
        (json!({ "profile_type": unconfined }), "0", true),
        (
            json!({ "profile_type": localhost, "localhost_ref": profile }),
            "2",
            false,
        ),
    ] {
        let container = sleeping(pod, &json!({ "seccomp": what }));
        assert_eq!(status(&container, "Seccomp"), mode, "{what}");
        let made = container.exec(&["mkdir", "/tmp/directory"]);
        assert_eq!(made.code() == 0, makes, "{what}: {made}");
        container.remove();
    }
    fs::remove_file(&profile).unwrap();
}

fn has_masked_files(pod: &Pod) {
    let show = "wc -l </proc/version; ls /proc/tty | wc -l
        awk '$2 == \"/proc/sys\" { print substr($4, 1, 2) }' /proc/mounts";
    let shown = |masked: &[&str], fixed: &str| {
        let paths = json!({ "masked_paths": masked, "readonly_paths": [fixed] });
        let container = sleeping(pod, &paths);
        let shown = container.sh(show);
        container.remove();
        shown
    };
    // A list of nothing would be one that is not given.
    let nothing = "/proc/no-such-file";
    let masked = shown(&["/proc/version", "/proc/tty", nothing], "/proc/sys");
    assert_eq!(masked, "0\n0\nro");
    let open = shown(&[nothing], nothing);
    let lines: Vec<_> = open.lines().collect();
    assert!(
        matches!(lines[..], ["1", entries] if entries != "0"),
        "{open}"
    );
}

fn privileged(setting: &mut Setting) {
    let device = LoopDevice::new(1);
    let node = device.node().display();
    let privileged = json!({ "privileged": true });
    let pod = Pod::run_with(
        setting.containerd,
        setting.runtime,
        Pids::Private,
        |config| {
            config["linux"]["security_context"]["privileged"] = true.into();
        },
    );
    let container = sleeping(&pod, &privileged);
    let last: u32 = container
        .sh("cat /proc/sys/kernel/cap_last_cap")
        .parse()
        .unwrap();
    assert_eq!(capabilities(&container), (2 << last) - 1);
    assert_eq!(status(&container, "Seccomp"), "0");
    let _ = container.sh("mkdir /tmp/here; mount -t tmpfs none /tmp/here");

    // What is the host's, its devices and its kernel, a guest has not got.
    let show = format!("ls {node} /dev/kvm 2>/dev/null | wc -l");
    assert_eq!(nacre_tests::sh(&show).trim_end(), "2");
    assert_eq!(container.sh(&show), "0");
    let host = nacre_tests::sh("uname -r");
    assert_ne!(container.sh("uname -r"), host.trim_end());
    pod.remove();
}

fn of_the_host(setting: &mut Setting) {
    // NamespaceMode of CRI.
    let node = 2;
    for (kind, reason) in [
        (
            "network",
            "the host's network cannot be shared with a guest",
        ),
        ("pid", "the host's processes cannot be shared with a guest"),
        (
            "ipc",
            "the host's IPC objects cannot be shared with a guest",
        ),
    ] {
        // Of a pod without a network namespace whose sandbox is refused, containerd 2.1 dies.
        if setting.runtime == NacreSandbox && kind == "network" {
            continue;
        }
        let start = PodStart::new(
            setting.containerd,
            setting.runtime,
            Pids::Private,
            |config| {
                config["linux"]["security_context"]["namespace_options"][kind] = node.into();
            },
        );
        let ended = Running::to_the_end(start.command());
        assert_ne!(ended.code(), 0, "{kind}: {ended}");
        let (field, reason) = match setting.runtime {
            NacreSandbox => (
                format!("linux.security_context.namespace_options.{kind}: "),
                "the host's cannot be shared with a guest",
            ),
            _ => ("linux.namespaces: ".to_owned(), reason),
        };
        for text in [field.as_str(), reason] {
            assert!(ended.stderr.contains(text), "no {text:?}: {ended}");
        }
    }
}
