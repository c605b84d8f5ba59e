//! A container in the place of a network namespace, with `vm-run --net`.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;

use nacre_tests::{Clean, TestBundle, VmRun, noise, proc, sh};

const NAMESPACE: &str = "nacre-test";
const LINK: &str = "nacre-test0";

/// A namespace as a CNI plugin leaves it, whose peer is on the host.
struct Network;

impl Network {
    fn new() -> Self {
        sh(&format!(
            "ip netns add {NAMESPACE}
             ip netns exec {NAMESPACE} sysctl -qw net.ipv6.conf.default.disable_ipv6=1
             ip link add {LINK} type veth peer name eth0 netns {NAMESPACE}
             ip address add 10.77.0.1/24 dev {LINK}
             ip link set {LINK} mtu 1400 up"
        ));
        Self::inside(
            "ip link set eth0 address 0a:58:0a:4d:00:02 mtu 1400 up
             ip address add 10.77.0.2/24 dev eth0
             ip route add default via 10.77.0.1
             until grep -q up /sys/class/net/eth0/operstate; do sleep 0.01; done",
        );
        Self
    }

    fn inside(script: &str) -> String {
        sh(&format!("ip netns exec {NAMESPACE} sh -euc '{script}'"))
    }

    /// All of it that a pod could change.
    fn state() -> String {
        Self::inside(
            "ip -details link; ip address; ip route; tc qdisc; tc filter show dev eth0 ingress",
        )
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        sh(&format!(
            "ip netns del {NAMESPACE}; ip link del {LINK} 2>/dev/null || true"
        ));
    }
}

/// On the same file system as all device nodes.
const HIDDEN: &str = "/dev/nacre-test-hidden";

/// Moves a device node out of the way, until it is dropped.
struct Hidden(&'static str);

impl Hidden {
    fn new(path: &'static str) -> Self {
        fs::rename(path, HIDDEN).unwrap();
        Self(path)
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        fs::rename(HIDDEN, self.0).unwrap();
    }
}

const SCRIPT: &str = r#"
    echo "link $(cat /sys/class/net/eth0/address) $(cat /sys/class/net/eth0/mtu)"
    ip -o -4 address show dev eth0 | sed "s/.*inet \([^ ]*\) .*/address \1/"
    ip route | sed -n "s/^default via \([^ ]*\) .*/default \1/p"
    ping -c 3 -s 1300 -W 20 10.77.0.1 >/dev/null && echo pinged
    nc 10.77.0.1 7700 </dev/null | sha256sum
    echo ready; cat"#;

/// Runs the script, checks what it says, and returns the monitor's descriptors.
fn run_in_network() -> Vec<String> {
    let _network = Network::new();
    let before = Network::state();
    let sent = noise(4 << 20);
    let sum = {
        let path = tempfile("sent", &sent);
        let line = sh(&format!("sha256sum <{path}"));
        fs::remove_file(&path).unwrap();
        line
    };
    let listener = TcpListener::bind("10.77.0.1:7700").unwrap();
    let server = std::thread::spawn(move || {
        let (mut connection, from) = listener.accept().unwrap();
        connection.write_all(&sent).unwrap();
        from
    });
    let bundle = TestBundle::sh(SCRIPT)
        .with_capabilities(&["CAP_NET_RAW"])
        .with(
            "/mounts/-",
            serde_json::json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs",
            "options": ["ro", "nosuid", "noexec", "nodev"] }),
        );
    let net = format!("/run/netns/{NAMESPACE}");
    let mut running = VmRun::start(&bundle, &["--net", &net]);
    running.wait_for("ready");
    let descriptors = proc::descriptors(running.monitor());
    let ended = running.wait().expect_code(0);
    for line in [
        "link 0a:58:0a:4d:00:02 1400",
        "address 10.77.0.2/24",
        "default 10.77.0.1",
        "pinged",
        sum.trim_end(),
    ] {
        ended.assert_line(line);
    }
    let from = server.join().unwrap();
    assert_eq!(from.ip().to_string(), "10.77.0.2");
    assert_eq!(Network::state(), before, "the namespace is not as it was");
    descriptors
        .into_iter()
        .map(|(_, target)| target.to_string_lossy().into_owned())
        .collect()
}

fn tempfile(name: &str, content: &[u8]) -> String {
    let path = format!("/tmp/nacre-test-{name}");
    fs::write(&path, content).unwrap();
    path
}

#[test]
fn the_guest_takes_the_place_of_a_network_namespace() {
    let _clean = Clean::slate();
    assert!(Path::new("/dev/vhost-net").exists(), "the test host has it");
    let descriptors = run_in_network();
    assert!(
        descriptors
            .iter()
            .any(|target| target.ends_with("vhost-net")),
        "{descriptors:?}"
    );
}

#[test]
fn a_host_without_vhost_net_moves_packets_in_the_monitor() {
    let _clean = Clean::slate();
    let _hidden = Hidden::new("/dev/vhost-net");
    let descriptors = run_in_network();
    assert!(
        !descriptors
            .iter()
            .any(|target| target.ends_with("vhost-net")),
        "{descriptors:?}"
    );
}

#[test]
fn without_a_network_there_is_only_lo() {
    let _clean = Clean::slate();
    let bundle = TestBundle::sh("ip -o link | sed 's/^[0-9]*: \\([^:]*\\):.*/\\1/'");
    let ended = VmRun::bundle(&bundle, &["--net", "none"]).expect_code(0);
    assert_eq!(ended.text(), "lo\n");
}
