//! `vm-run bundle --net` over IPv6, and after its front door was killed.

#![allow(clippy::unwrap_used)]

use std::process::{Child, Command, Stdio};

use nacre_tests::netns::{Namespace, add_veth};
use nacre_tests::{Running, TestBundle, VmRun, noise};

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

#[test]
fn what_a_killed_front_door_leaves_in_a_namespace_is_collected() {
    let (pod, _outside) = wired();
    let before = wiring(&pod);
    let bundle = bundle("echo up; sleep 1000");
    let mut killed = VmRun::start(&bundle, &[&option(&pod)]);
    killed.wait_for("up");
    let collect = || {
        let mut command = Command::new("vm-run");
        command.arg("gc");
        Running::to_the_end(command).expect_code(0).text()
    };
    assert_eq!(collect(), "", "it runs");
    // With SIGKILL.
    drop(killed);
    pod.wait_until_taps_are_gone();
    assert!(collect().starts_with("removed what was left of "));
    assert_eq!(wiring(&pod), before);
    assert_eq!(collect(), "");
}

#[test]
fn interfaces_keep_their_mtus_neighbours_and_ways() {
    let (pod, outside) = wired();
    add_veth(&pod, "net1", &outside, "out1");
    outside.sh("ip address add 10.8.0.1/24 dev out1; ip link set out1 mtu 9000");
    pod.sh(
        "ip link set net1 mtu 9000; ip address add 10.8.0.2/24 dev net1
         ip neighbour add 10.8.0.9 lladdr 02:00:00:00:00:09 dev net1 nud permanent
         ip route add default via 10.8.0.1 table 100
         ip rule add to 192.0.2.0/24 lookup 100 priority 50",
    );
    outside.sh("ip address add 192.0.2.1/32 dev lo");
    let bundle = bundle(
        "ip -o link | sed -n 's/^[0-9]*: \\([a-z0-9]*\\): .* mtu \\([0-9]*\\) .*/\\1 mtu \\2/p'
         ip neigh; ip rule
         ping -c 1 -W 20 10.7.0.1 >/dev/null; ping -c 1 -W 20 -s 8900 10.8.0.1 >/dev/null
         ping -c 1 -W 20 192.0.2.1 >/dev/null; ip neigh",
    );
    let output = run(&pod, &bundle);
    let words = output.split_whitespace().collect::<Vec<_>>().join(" ");
    for expected in [
        "eth0 mtu 1400",
        "net1 mtu 9000",
        "10.8.0.9 dev net1 lladdr 02:00:00:00:00:09",
        "50: from all to 192.0.2.0/24 lookup 100",
        // By the table of the rule: no other way leads there by this gateway.
        "10.8.0.1 dev net1 lladdr",
    ] {
        assert!(words.contains(expected), "{expected}: {output}");
    }
}

#[test]
fn the_guest_asks_for_an_address_that_nobody_has_asked_for_yet() {
    let (pod, _outside) = wired();
    // So that the namespace is not done with it before the guest has it.
    pod.sh("echo 600 > /proc/sys/net/ipv6/conf/eth0/dad_transmits
         ip -6 address add fd07::9/64 dev eth0");
    let bundle = bundle(
        "until grep -q \"^fd07.*0009 .. 40 00 80 \" /proc/net/if_inet6; do sleep 0.2; done
         cat /proc/net/if_inet6",
    );
    let output = run(&pod, &bundle);
    // The other one was asked for, and is used without (IFA_F_NODAD).
    let asked = "fd070000000000000000000000000002 02 40 00 82 ";
    assert!(output.contains(asked), "{output}");
}

/// Advertises a prefix and itself as the router.
fn advertise(outside: &Namespace) -> Server {
    Server::start(
        outside,
        "exec dnsmasq --keep-in-foreground --conf-file=/dev/null --pid-file= --port=0 \
             --user=root --interface=out --bind-interfaces --enable-ra --ra-param=out,high,10 \
             --dhcp-leasefile=/dev/null --dhcp-range=fd42::,ra-only,64",
    )
}

#[test]
fn slaac_is_on_or_off_as_in_the_namespace() {
    let (pod, outside) = wired();
    outside.sh("ip -6 address add fd42::1/64 dev out nodad");
    let _router = advertise(&outside);
    let learned = "ip -6 address show dev eth0 | grep fd42:";
    let on = bundle(&format!(
        "for i in $(seq 100); do {learned} && break; sleep 0.5; done; ip -6 route"
    ));
    let output = run(&pod, &on);
    assert!(output.contains(" fd42:"), "{output}");
    assert!(output.contains("default via fe80::"), "{output}");

    pod.sh(
        "echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_ra; ip -6 address flush dev eth0
         ip -6 route flush proto ra; ip -6 address add fd07::2/64 dev eth0 nodad",
    );
    let off = bundle(&format!("sleep 15; {learned} || echo nothing; ip -6 route"));
    let output = run(&pod, &off);
    assert!(output.contains("nothing\n"), "{output}");
    assert!(!output.contains("default via fe80::"), "{output}");
}
