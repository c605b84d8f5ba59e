//! `vm-run bundle --net` over IPv6, and after its front door was killed.

#![allow(clippy::unwrap_used)]

use std::process::{Child, Command, Stdio};

use nacre_tests::netns::{Namespace, add_veth};
use nacre_tests::{TestBundle, VmRun, noise};

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

fn bundle(script: &str) -> TestBundle {
    TestBundle::new(&["sh", "-euc", script]).with_capabilities(&["CAP_NET_RAW"])
}

fn option(pod: &Namespace) -> String {
    format!("--net={}", pod.path().display())
}

/// Runs the container to its end and returns what it printed.
fn run(pod: &Namespace, bundle: &TestBundle) -> String {
    VmRun::bundle(bundle, &[&option(pod)]).expect_code(0).text()
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
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn ipv6_works_and_what_the_guest_sends_arrives_unchanged() {
    let (pod, outside) = wired();
    let before = wiring(&pod);
    let files = tempfile::tempdir().unwrap();
    let received = files.path().join("received");
    let script = format!("exec busybox nc -l -p 81 > {}", received.display());
    let receiver = Server::start(&outside, &script);
    let bundle = bundle(
        "ip -6 address show eth0; ip -6 route; ping -c 2 fd07::1
         cat /data | nc fd07::1 81",
    );
    let sent = noise(4 << 20);
    std::fs::write(bundle.in_root("data"), &sent).unwrap();
    let output = run(&pod, &bundle);
    for expected in [
        " fd07::2/64 ",
        "default via fd07::1 dev eth0",
        " 0% packet loss",
    ] {
        assert!(output.contains(expected), "{expected}: {output}");
    }
    receiver.end();
    assert!(
        std::fs::read(received).unwrap() == sent,
        "not what was sent"
    );
    assert_eq!(wiring(&pod), before);
}

#[test]
fn a_killed_front_door_leaves_a_namespace_that_the_next_pod_can_have() {
    let (pod, _outside) = wired();
    let before = wiring(&pod);
    let bundle = bundle("ping -c 1 10.7.0.1 > /dev/null; echo pinged; sleep 1000");
    let mut killed = VmRun::start(&bundle, &[&option(&pod)]);
    killed.wait_for("pinged");

    let second = VmRun::bundle(&bundle, &[&option(&pod)]).expect_code(1);
    let refusal = "eth0 already belongs to a running pod";
    assert!(second.stderr.contains(refusal), "{second}");

    // With SIGKILL.
    drop(killed);
    pod.wait_until_taps_are_gone();
    let output = run(&pod, &self::bundle("ping -c 1 10.7.0.1"));
    assert!(output.contains(" 0% packet loss"), "{output}");
    assert_eq!(wiring(&pod), before);
}
