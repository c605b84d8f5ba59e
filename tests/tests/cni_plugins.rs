//! `vm-run --net cni` with each plugin of the distribution: what it does for a process on
//! the host, it does for a guest.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use nacre_tests::cni::{Bridge, Networks, OUTSIDE, Outside, State, ask, assert_as_before, slide};
use nacre_tests::{Clean, Ended, Running, TestBundle, noise, sh, wait_until};
use serde_json::{Value, json};

/// The host's end of the way to the outside.
const LINK: &str = "nacre-out0";

fn pod(script: &str) -> TestBundle {
    TestBundle::new(&["sh", "-euc", script]).with_capabilities(&["CAP_NET_RAW"])
}

fn network(plugins: &[Value]) -> Networks {
    Networks::new().with(&json!({
        "cniVersion": "1.0.0", "name": "mynet", "plugins": plugins
    }))
}

fn run(plugins: &[Value], script: &str) -> Ended {
    run_on(&network(plugins), script)
}

/// Runs a pod, after which the host must be as before.
fn run_on(networks: &Networks, script: &str) -> Ended {
    let run = |script| networks.run(&pod(script), &["--net=cni"]).expect_code(0);
    // The first one makes what stays: bridges, empty chains, the files of locks.
    let _ = run("true");
    let before = State::now();
    let ended = run(script);
    assert_as_before(&before);
    ended
}

fn ping(address: &str) -> String {
    format!("ping -c 2 -W 20 {address} >/dev/null; echo pinged {address}\n")
}

fn fixed(address: &str) -> Value {
    json!({ "type": "static", "addresses": [{ "address": address }] })
}

#[test]
fn ptp_with_both_families() {
    let _clean = Clean::slate();
    let outside = Outside::new();
    let ranges = json!([[{ "subnet": "10.20.0.0/24" }], [{ "subnet": "fd20::/64" }]]);
    let ptp = json!({
        "type": "ptp", "ipMasq": true, "mtu": 1400,
        "ipam": { "type": "host-local", "ranges": ranges,
                  "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }] },
        "dns": { "nameservers": ["10.20.0.53"], "search": ["example.org"] }
    });
    let script = format!(
        "cat /etc/resolv.conf; ip link show dev eth0; ip -6 route
         {}{} echo outside: $({})",
        ping("10.20.0.1"),
        ping("fd20::1"),
        ask(OUTSIDE, 9000)
    );
    let ended = run(&[ptp], &script);
    for line in [
        "nameserver 10.20.0.53",
        "search example.org",
        "pinged 10.20.0.1",
        "pinged fd20::1",
        "outside: asked by 192.0.2.1",
    ] {
        ended.assert_line(line);
    }
    assert!(ended.text().contains(" mtu 1400 "), "{ended}");
    drop(outside);
}

#[test]
fn macvlan_with_static_addresses_and_loopback() {
    let _clean = Clean::slate();
    let outside = Outside::new();
    let macvlan = json!({ "type": "macvlan", "master": LINK, "ipam": fixed("192.0.2.10/24") });
    let loopback = json!({ "type": "loopback" });
    let script = format!("{}{}", ping("127.0.0.1"), ping(OUTSIDE));
    let ended = run(&[macvlan, loopback], &script);
    ended.assert_line("pinged 127.0.0.1");
    ended.assert_line(&format!("pinged {OUTSIDE}"));
    drop(outside);
}

#[test]
fn ipvlan() {
    let _clean = Clean::slate();
    let outside = Outside::new();
    let ipvlan = json!({ "type": "ipvlan", "master": LINK, "ipam": fixed("192.0.2.11/24") });
    let script = format!("{} echo outside: $({})", ping(OUTSIDE), ask(OUTSIDE, 9000));
    let ended = run(&[ipvlan], &script);
    ended.assert_line("outside: asked by 192.0.2.11");
    drop(outside);
}

#[test]
fn vlan() {
    let _clean = Clean::slate();
    let outside = Outside::new();
    outside
        .namespace()
        .sh("ip link add link out name out.5 type vlan id 5
         ip address add 198.51.100.2/24 dev out.5; ip link set out.5 up");
    let vlan = json!({
        "type": "vlan", "master": LINK, "vlanId": 5, "ipam": fixed("198.51.100.10/24")
    });
    let script = format!(
        "{} echo outside: $({})",
        ping("198.51.100.2"),
        ask("198.51.100.2", 9000)
    );
    let ended = run(&[vlan], &script);
    ended.assert_line("outside: asked by 198.51.100.10");
    drop(outside);
}

/// A plugin that makes the pod's interface a tap, and wires it to the host.
const TAP: &str = r#"#!/bin/sh
set -e
request=$(cat)
inside() { nsenter --net="$CNI_NETNS" "$@"; }
case $CNI_COMMAND in
    ADD) ;;
    DEL) ip link del nacre-tap0 2>/dev/null || true; exit ;;
    *) exit ;;
esac
ip link add nacre-tap0 type veth peer name up0 netns "$CNI_NETNS"
ip address add 10.30.0.1/24 dev nacre-tap0
ip link set nacre-tap0 up
inside ip tuntap add "$CNI_IFNAME" mode tap
inside ip link set "$CNI_IFNAME" address 02:00:00:00:00:30 up
inside ip address add 10.30.0.2/24 dev "$CNI_IFNAME"
inside ip link set up0 up
for way in "up0 $CNI_IFNAME" "$CNI_IFNAME up0"; do
    set -- $way
    inside tc qdisc add dev "$1" ingress
    inside tc filter add dev "$1" ingress matchall action mirred egress redirect dev "$2"
done
echo '{ "cniVersion": "1.0.0",
    "interfaces": [{ "name": "'"$CNI_IFNAME"'", "mac": "02:00:00:00:00:30", "sandbox": "'"$CNI_NETNS"'" }],
    "ips": [{ "address": "10.30.0.2/24", "interface": 0 }] }'
"#;

#[test]
fn a_plugin_that_hands_over_a_tap() {
    let _clean = Clean::slate();
    let networks = network(&[json!({ "type": "tap-of-test" })]).with_plugin("tap-of-test", TAP);
    let script = format!("ip -o link; {}", ping("10.30.0.1"));
    let ended = run_on(&networks, &script);
    ended.assert_line("pinged 10.30.0.1");
    assert!(ended.text().contains(" 02:00:00:00:00:30 "), "{ended}");
    assert!(!ended.text().contains("up0"), "{ended}");
}

/// The plugin moves the routes of each address into a table of its own.
#[test]
fn sbr() {
    let _clean = Clean::slate();
    let outside = Outside::new();
    outside
        .namespace()
        .sh("ip address add 198.51.100.2/32 dev out");
    let macvlan = json!({
        "type": "macvlan", "master": LINK,
        "ipam": { "type": "static", "addresses": [
            { "address": "192.0.2.10/24", "gateway": OUTSIDE }
        ], "routes": [{ "dst": "0.0.0.0/0" }] }
    });
    let script = "ip rule; echo main:; ip route; echo table:; ip route show table 100
        ping -c 2 -W 20 -I 192.0.2.10 198.51.100.2 >/dev/null; echo bound: pinged
        ping -c 2 -W 20 198.51.100.2 2>/dev/null || echo unbound: no way";
    let ended = run(&[macvlan, json!({ "type": "sbr" })], script);
    let text = ended.text();
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for expected in [
        "from 192.0.2.10 lookup 100",
        "main: table:",
        "default via 192.0.2.2 dev eth0",
        "192.0.2.0/24 dev eth0",
        "bound: pinged",
        "unbound: no way",
    ] {
        assert!(words.contains(expected), "{expected}: {ended}");
    }
    drop(outside);
}

/// The daemon of the plugin dhcp.
struct Daemon(#[expect(dead_code, reason = "it is killed when it is dropped")] Running);

impl Daemon {
    const SOCKET: &str = "/run/cni/dhcp.sock";

    fn start() -> Self {
        let mut command = Command::new("/usr/lib/cni/dhcp");
        command.arg("daemon").stdin(Stdio::null());
        let daemon = Self(Running::start(command));
        wait_until("the daemon listens", || Path::new(Self::SOCKET).exists());
        daemon
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(Self::SOCKET);
    }
}

#[test]
fn dhcp() {
    let _clean = Clean::slate();
    let outside = Outside::new();
    let leases = tempfile::NamedTempFile::new().unwrap();
    let mut server = Command::new("ip");
    server.args(["netns", "exec", outside.namespace().name(), "dnsmasq"]);
    server.args([
        // In the foreground, without files or DNS of its own.
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--pid-file=",
        "--port=0",
        "--user=root",
        "--interface=out",
        "--bind-interfaces",
        "--no-ping",
        "--dhcp-authoritative",
        "--dhcp-range=192.0.2.100,192.0.2.101,255.255.255.0,1h",
        &format!("--dhcp-option=option:router,{OUTSIDE}"),
        &format!("--dhcp-leasefile={}", leases.path().display()),
    ]);
    server.stdin(Stdio::null());
    let _server = Running::start(server);
    let _daemon = Daemon::start();
    let macvlan = json!({ "type": "macvlan", "master": LINK, "ipam": { "type": "dhcp" } });
    let script = format!("ip address show dev eth0; ip route; {}", ping(OUTSIDE));
    let ended = run(&[macvlan], &script);
    ended.assert_line(&format!("pinged {OUTSIDE}"));
    let text = ended.text();
    // One of the two, which the server chooses by the MAC address.
    assert!(text.contains(" 192.0.2.10"), "{ended}");
    assert!(text.contains("default via 192.0.2.2 "), "{ended}");
    // DEL has given it back.
    let leases = std::fs::read_to_string(leases.path()).unwrap();
    assert!(!leases.contains("192.0.2.10"), "{leases}");
}

/// Lets the host forward nothing but what a rule allows.
struct Closed;

impl Closed {
    fn new() -> Self {
        sh("iptables -w -P FORWARD DROP");
        Self
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        sh("iptables -w -P FORWARD ACCEPT");
    }
}

/// Bits per second of [`the_bandwidth_is_limited_and_the_firewall_is_opened`].
const RATE: u32 = 4_000_000;

/// Bytes that are moved in either direction.
const BYTES: usize = 2_000_000;

fn assert_rate(what: &str, start: Instant) {
    let bits = f64::from(u32::try_from(BYTES).unwrap()) * 8.0;
    let rate = bits / start.elapsed().as_secs_f64();
    println!("{what}: {:.2} Mbit/s", rate / 1e6);
    let limit = f64::from(RATE);
    assert!(
        (limit * 0.8..limit * 1.2).contains(&rate),
        "{what}: {rate:.0} bit/s instead of {limit}"
    );
}

#[test]
fn the_bandwidth_is_limited_and_the_firewall_is_opened() {
    let _clean = Clean::slate();
    let _bridge = Bridge::none_yet();
    let outside = Outside::new();
    let _closed = Closed::new();
    let mut bridge = slide();
    bridge.as_object_mut().unwrap().remove("cniVersion");
    let bandwidth = json!({
        "type": "bandwidth", "ingressRate": RATE, "ingressBurst": 262_144,
        "egressRate": RATE, "egressBurst": 262_144
    });
    let firewall = json!({ "type": "firewall" });
    let from_pod = TcpListener::bind("0.0.0.0:7700").unwrap();
    let to_pod = TcpListener::bind("0.0.0.0:7701").unwrap();
    let server = thread::spawn(move || {
        let (mut connection, _) = from_pod.accept().unwrap();
        let mut first = [0];
        connection.read_exact(&mut first).unwrap();
        let start = Instant::now();
        let received = connection.read_to_end(&mut Vec::new()).unwrap();
        assert_eq!(received + 1, BYTES);
        assert_rate("from the pod", start);
        drop(connection);

        let (mut connection, _) = to_pod.accept().unwrap();
        let start = Instant::now();
        connection.write_all(&noise(BYTES)).unwrap();
        connection.shutdown(Shutdown::Write).unwrap();
        // The peer closes when it has all.
        connection.read_to_end(&mut Vec::new()).unwrap();
        assert_rate("to the pod", start);
    });
    let script = format!(
        "echo outside: $({})
         head -c {BYTES} /dev/zero | nc 10.10.0.1 7700
         nc 10.10.0.1 7701 </dev/null | wc -c",
        ask(OUTSIDE, 9000)
    );
    let ended = run(&[bridge, bandwidth, firewall], &script);
    ended.assert_line("outside: asked by 192.0.2.1");
    ended.assert_line(&BYTES.to_string());
    server.join().unwrap();
    drop(outside);
}
