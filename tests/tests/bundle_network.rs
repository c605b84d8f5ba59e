//! `vm-run bundle --net`: a guest takes the place of a network namespace.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nacre_tests::netns::{Namespace, add_veth, sh};
use tempfile::TempDir;

/// A pod's namespace as a CNI plugin makes it, and the one that it talks to.
fn wired() -> (Namespace, Namespace) {
    let (pod, outside) = (Namespace::new(), Namespace::new());
    add_veth(&pod, "eth0", &outside, "out");
    outside.sh("ip link set lo up
         ip address add 10.7.0.1/24 dev out; ip -6 address add fd07::1/64 dev out nodad");
    pod.sh("ip link set eth0 mtu 1400
         ip address add 10.7.0.2/24 dev eth0; ip -6 address add fd07::2/64 dev eth0 nodad
         ip route add default via 10.7.0.1; ip -6 route add default via fd07::1");
    (pod, outside)
}

/// A bundle whose container runs `script` in BusyBox's shell.
fn bundle(script: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let bin = dir.path().join("rootfs/bin");
    fs::create_dir_all(&bin).unwrap();
    for dir_in_root in ["proc", "dev", "sys"] {
        fs::create_dir(dir.path().join("rootfs").join(dir_in_root)).unwrap();
    }
    fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
    for applet in [
        "sh",
        "cat",
        "ip",
        "nc",
        "ping",
        "sha256sum",
        "sleep",
        "wget",
    ] {
        symlink("busybox", bin.join(applet)).unwrap();
    }
    let raw = serde_json::json!(["CAP_NET_RAW"]);
    let config = serde_json::json!({
        "ociVersion": "1.2.0",
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "cwd": "/",
            "env": ["PATH=/bin"],
            "args": ["sh", "-euc", script],
            "capabilities": { "bounding": raw, "effective": raw, "permitted": raw },
        },
        "root": { "path": "rootfs", "readonly": true },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs" },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"] },
        ],
        "linux": {
            "namespaces": [
                { "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" },
                { "type": "mount" },
            ],
        },
    });
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

fn vm_run(net: &Path, bundle: &TempDir) -> Command {
    let mut command = Command::new("vm-run");
    command
        .arg("bundle")
        .arg("--net")
        .arg(net)
        .arg(bundle.path());
    command.stdin(Stdio::null());
    command
}

/// Runs the container to its end and returns what it printed.
fn run(pod: &Namespace, script: &str) -> String {
    let output = vm_run(&pod.path(), &bundle(script)).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// What is of the pod rather than of the other end's state.
fn wiring(pod: &Namespace) -> String {
    pod.sh("ls /sys/class/net; tc qdisc; tc filter show dev eth0 ingress; ip address show scope global")
}

/// Something that runs beside the test and is killed with it.
struct Server(Child);

impl Server {
    fn start(namespace: &Namespace, script: &str) -> Self {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace.name(), "sh", "-euc", script]);
        // Its standard input stays open: nc goes when that ends.
        Self(command.stdin(Stdio::piped()).spawn().unwrap())
    }

    /// Waits until it has ended by itself.
    fn end(mut self) {
        let status = self.0.wait().unwrap();
        assert!(status.success(), "{status}");
    }

    /// The next line that it prints.
    fn line(&mut self) -> String {
        let mut line = String::new();
        let output = self.0.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut line).unwrap();
        line
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_guest_is_on_the_network_in_place_of_the_namespace() {
    let (pod, _outside) = wired();
    let before = wiring(&pod);
    let mac = pod.sh("cat /sys/class/net/eth0/address");
    let output = run(
        &pod,
        "ip address show eth0; ip route; ip -6 route; ping -c 2 10.7.0.1; ping -c 2 fd07::1",
    );
    for expected in [
        mac.trim(),
        " mtu 1400 ",
        " 10.7.0.2/24 ",
        " fd07::2/64 ",
        "default via 10.7.0.1 dev eth0",
        "default via fd07::1 dev eth0",
    ] {
        assert!(output.contains(expected), "{expected}: {output}");
    }
    assert_eq!(output.matches(" 0% packet loss").count(), 2, "{output}");
    assert_eq!(wiring(&pod), before);
}

#[test]
fn bytes_arrive_unchanged_by_vhost_net() {
    assert!(Path::new(VHOST_NET).exists(), "the test host has it");
    bytes_arrive_unchanged();
}

#[test]
fn bytes_arrive_unchanged_through_the_monitor() {
    let _hidden = Hidden::new(VHOST_NET);
    bytes_arrive_unchanged();
}

const VHOST_NET: &str = "/dev/vhost-net";

/// A file that is away until the test is over.
struct Hidden(&'static str);

impl Hidden {
    fn new(path: &'static str) -> Self {
        sh(&format!("mv {path} {path}.hidden"));
        Self(path)
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        sh(&format!("mv {0}.hidden {0}", self.0));
    }
}

/// 4 MiB into the guest, and out again.
fn bytes_arrive_unchanged() {
    let (pod, outside) = wired();
    let files = tempfile::tempdir().unwrap();
    let dir = files.path().display();
    sh(&format!("head -c 4194304 /dev/urandom > {dir}/data"));
    let expected = sh(&format!("sha256sum < {dir}/data"));
    let _sender = Server::start(
        &outside,
        &format!("exec busybox httpd -f -p 10.7.0.1:80 -h {dir}"),
    );
    let receiver = Server::start(
        &outside,
        &format!("exec busybox nc -l -p 81 > {dir}/received"),
    );
    let output = run(
        &pod,
        "wget -q -O - http://10.7.0.1/data | sha256sum
         wget -q -O - http://10.7.0.1/data | nc 10.7.0.1 81",
    );
    assert_eq!(output, expected, "into the guest");
    receiver.end();
    sh(&format!("cmp {dir}/data {dir}/received"));
}

#[test]
fn a_killed_front_door_leaves_a_namespace_that_the_next_pod_can_have() {
    let (pod, _outside) = wired();
    let before = wiring(&pod);
    let bundle = bundle("ping -c 1 10.7.0.1 > /dev/null; echo pinged; sleep 1000");
    let mut killed = vm_run(&pod.path(), &bundle);
    let mut killed = Server(killed.stdout(Stdio::piped()).spawn().unwrap());
    assert_eq!(killed.line(), "pinged\n");

    let second = vm_run(&pod.path(), &bundle).output().unwrap();
    let refusal = String::from_utf8_lossy(&second.stderr);
    assert!(
        refusal.contains("eth0 already belongs to a running pod"),
        "{refusal}"
    );

    drop(killed);
    pod.wait_until_taps_are_gone();
    let output = run(&pod, "ping -c 1 10.7.0.1");
    assert!(output.contains(" 0% packet loss"), "{output}");
    assert_eq!(wiring(&pod), before);
}
