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

/// Streams of the two-CPU test, each way.
const STREAMS: usize = 4;

const TWO_CPUS_SCRIPT: &str = r#"
    echo queues $(ls /sys/class/net/eth0/queues)
    for n in 1 2 3 4; do nc 10.77.0.1 7701 </dev/null | sha256sum >/tmp/$n & done; wait
    cat /tmp/[1-4] | sort | uniq -c | sed "s/^ *//"
    for n in 1 2 3 4; do head -c 1048576 /dev/zero | nc 10.77.0.1 7702 & done; wait
    echo ready; cat"#;

/// A pod with two CPUs: that it has two pairs of queues, and that all arrives both ways.
fn run_on_two_cpus() -> Vec<String> {
    let _network = Network::new();
    let before = Network::state();
    let content = noise(1 << 20);
    let sum = sum_of("streams", &content);
    let (down, up) = (
        TcpListener::bind("10.77.0.1:7701").unwrap(),
        TcpListener::bind("10.77.0.1:7702").unwrap(),
    );
    let server = std::thread::spawn(move || {
        for connection in down.incoming().take(STREAMS) {
            let content = content.clone();
            std::thread::spawn(move || connection.unwrap().write_all(&content).unwrap());
        }
        let received = up.incoming().take(STREAMS).map(|connection| {
            std::thread::spawn(move || {
                std::io::copy(&mut connection.unwrap(), &mut std::io::sink())
            })
        });
        let received: Vec<_> = received.collect();
        let received = received.into_iter();
        received
            .map(|thread| thread.join().unwrap().unwrap())
            .collect::<Vec<_>>()
    });
    let bundle = in_namespace(TWO_CPUS_SCRIPT);
    let mut running = VmRun::start(&bundle, &["--cpus=2", "--net", &path_of_namespace()]);
    running.wait_for("ready");
    let queues = Network::inside("ls /sys/class/net/nacre*/queues");
    let descriptors = targets(running.monitor());
    let ended = running.wait().expect_code(0);
    ended.assert_line("queues rx-0 rx-1 tx-0 tx-1");
    ended.assert_line(&format!("{STREAMS} {}", sum.trim_end()));
    assert_eq!(server.join().unwrap(), [1 << 20; STREAMS]);
    assert_eq!(
        queues.split_whitespace().collect::<Vec<_>>(),
        ["rx-0", "rx-1", "tx-0", "tx-1"]
    );
    assert_eq!(Network::state(), before, "the namespace is not as it was");
    descriptors
}

/// Runs the script, checks what it says, and returns the monitor's descriptors.
fn run_in_network() -> Vec<String> {
    let _network = Network::new();
    let before = Network::state();
    let sent = noise(4 << 20);
    let sum = sum_of("sent", &sent);
    let listener = TcpListener::bind("10.77.0.1:7700").unwrap();
    let server = std::thread::spawn(move || {
        let (mut connection, from) = listener.accept().unwrap();
        connection.write_all(&sent).unwrap();
        from
    });
    let bundle = in_namespace(SCRIPT);
    let mut running = VmRun::start(&bundle, &["--net", &path_of_namespace()]);
    running.wait_for("ready");
    let descriptors = targets(running.monitor());
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
}

fn in_namespace(script: &str) -> TestBundle {
    TestBundle::sh(script)
        .with_capabilities(&["CAP_NET_RAW"])
        .with(
            "/mounts/-",
            serde_json::json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs",
            "options": ["ro", "nosuid", "noexec", "nodev"] }),
        )
}

fn path_of_namespace() -> String {
    format!("/run/netns/{NAMESPACE}")
}

/// What the descriptors of a process lead to.
fn targets(pid: u32) -> Vec<String> {
    proc::descriptors(pid)
        .into_iter()
        .map(|(_, target)| target.to_string_lossy().into_owned())
        .collect()
}

/// What `sha256sum` says of this content.
fn sum_of(name: &str, content: &[u8]) -> String {
    let path = format!("/tmp/nacre-test-{name}");
    fs::write(&path, content).unwrap();
    let line = sh(&format!("sha256sum <{path}"));
    fs::remove_file(&path).unwrap();
    line
}

fn count_of_vhost(descriptors: &[String]) -> usize {
    let ours = descriptors.iter();
    ours.filter(|target| target.ends_with("vhost-net")).count()
}

#[test]
fn the_guest_takes_the_place_of_a_network_namespace() {
    let _clean = Clean::slate();
    assert!(Path::new("/dev/vhost-net").exists(), "the test host has it");
    let descriptors = run_in_network();
    assert_eq!(count_of_vhost(&descriptors), 1, "{descriptors:?}");
}

#[test]
fn a_host_without_vhost_net_moves_packets_in_the_monitor() {
    let _clean = Clean::slate();
    let _hidden = Hidden::new("/dev/vhost-net");
    let descriptors = run_in_network();
    assert_eq!(count_of_vhost(&descriptors), 0, "{descriptors:?}");
}

#[test]
fn a_pod_with_two_cpus_has_two_pairs_of_queues_on_vhost_net() {
    let _clean = Clean::slate();
    let descriptors = run_on_two_cpus();
    assert_eq!(count_of_vhost(&descriptors), 2, "{descriptors:?}");
}

#[test]
fn a_pod_with_two_cpus_has_two_pairs_of_queues_in_the_monitor() {
    let _clean = Clean::slate();
    let _hidden = Hidden::new("/dev/vhost-net");
    let descriptors = run_on_two_cpus();
    assert_eq!(count_of_vhost(&descriptors), 0, "{descriptors:?}");
}

const FOLLOWING_SCRIPT: &str = r#"
    wait_for() { until eval "$2"; do sleep 0.2; done; echo "$1"; }
    addresses() { ip -o -4 address show dev eth0; }
    echo ready
    wait_for "larger" "grep -qx 1450 /sys/class/net/eth0/mtu"
    wait_for "address came" "addresses | grep -q 10.77.0.9/24"
    wait_for "route came" "ip route | grep -q '^10.99.0.0/16 via 10.77.0.1 '"
    ping -c 1 -W 20 -s 1300 10.77.0.1 >/dev/null && echo pinged
    wait_for "address went" "! addresses | grep -q 10.77.0.9/24"
    wait_for "route went" "! ip route | grep -q '^10.99.0.0/16 '"
    ip route | grep -q "^default via 10.77.0.1 " && echo "the rest stayed"
    wait_for "smaller" "grep -qx 1300 /sys/class/net/eth0/mtu"
    ip route | grep -q "^default via 10.77.0.1 " && echo "default route kept"
    ls /sys/class/net | grep -c net1
    cat"#;

#[test]
fn what_changes_in_the_namespace_reaches_the_guest() {
    let _clean = Clean::slate();
    let _network = Network::new();
    let bundle = in_namespace(FOLLOWING_SCRIPT);
    let mut running = VmRun::start(&bundle, &["--net", &path_of_namespace()]);
    running.wait_for("ready");
    Network::inside("ip link set eth0 mtu 1450");
    running.wait_for("larger");
    assert_eq!(Network::inside("cat /sys/class/net/nacre*/mtu"), "1450\n");
    Network::inside("ip address add 10.77.0.9/24 dev eth0");
    running.wait_for("address came");
    Network::inside("ip route add 10.99.0.0/16 via 10.77.0.1");
    running.wait_for("route came");
    running.wait_for("pinged");
    Network::inside("ip address del 10.77.0.9/24 dev eth0; ip route del 10.99.0.0/16");
    running.wait_for("route went");
    running.wait_for("the rest stayed");

    // The kernel takes the namespace's default route away with the interface.
    Network::inside("ip link set eth0 down; ip link set eth0 up");
    assert!(!Network::inside("ip route").contains("default"));
    Network::inside(
        "ip link add net1 type veth peer name net2; ip link set net1 up
         ip link set eth0 mtu 1300",
    );
    running.wait_for("default route kept");
    let ended = running.wait().expect_code(0);
    ended.assert_line("0");
    let expected = "network interface net1 is not given to the guest: it came after the pod";
    assert!(ended.stderr.contains(expected), "{ended}");
}

#[test]
fn without_a_network_there_is_only_lo() {
    let _clean = Clean::slate();
    let bundle = TestBundle::sh("ip -o link | sed 's/^[0-9]*: \\([^:]*\\):.*/\\1/'");
    let ended = VmRun::bundle(&bundle, &["--net", "none"]).expect_code(0);
    assert_eq!(ended.text(), "lo\n");
}
