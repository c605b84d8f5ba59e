//! The host side of a pod's network, in namespaces made with `ip`. Needs root,
//! tun, veth and tc, but no virtual machine.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nacre_pod::network::{Network, NetworkError, Nic};
use nacre_protocol::agent::{Interface, Neighbour, Route};
use nacre_tests::netns::{Namespace, add_veth, veth_pair};
use nacre_tests::sh;

/// Length of the virtio-net header that precedes each frame of a tap.
const HEADER_LEN: usize = 12;

fn attach(namespace: &Namespace) -> Result<(Network, Vec<Nic>), NetworkError> {
    Network::attach(&namespace.path())
}

fn attach_one(namespace: &Namespace) -> (Network, Nic) {
    let (network, mut nics) = attach(namespace).unwrap();
    assert_eq!(nics.len(), 1);
    (network, nics.remove(0))
}

fn refusal(namespace: &Namespace) -> String {
    attach(namespace).unwrap_err().to_string()
}

/// A monitor's view of a tap.
struct Tap(File);

impl Tap {
    fn new(tap: OwnedFd) -> Self {
        Self(tap.into())
    }

    fn send(&mut self, frame: &[u8]) {
        let packet = [&[0; HEADER_LEN], frame].concat();
        assert_eq!(self.0.write(&packet).unwrap(), packet.len());
    }

    /// The next frame, if one comes soon.
    fn receive(&mut self) -> Option<Vec<u8>> {
        self.receive_within(Duration::from_secs(30))
    }

    fn receive_within(&mut self, patience: Duration) -> Option<Vec<u8>> {
        let mut packet = vec![0; 1 << 17];
        let start = Instant::now();
        loop {
            match self.0.read(&mut packet) {
                Ok(len) => {
                    assert!(len > HEADER_LEN, "a packet of {len} bytes");
                    return Some(packet[HEADER_LEN..len].to_vec());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if start.elapsed() > patience {
                        return None;
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}

fn frame(payload: &[u8]) -> Vec<u8> {
    let destination = [0xff; 6];
    let source = [2, 0, 0, 0, 0, 9];
    // An experimental protocol, IEEE 802 local use 1.
    [&destination[..], &source, &[0x88, 0xb5], payload].concat()
}

#[test]
fn the_guest_gets_addresses_routes_and_neighbours_exactly() {
    let (pod, outside) = (Namespace::new(), Namespace::new());
    add_veth(&pod, "eth0", &outside, "out");
    pod.sh("ip link set eth0 down
         ip link set eth0 address 0a:58:0a:0a:00:05 mtu 1450 up
         ip address add 10.10.0.5/16 dev eth0
         ip address add 10.10.0.6/16 dev eth0
         ip address add 192.0.2.1/32 dev eth0
         ip address add 198.51.100.1 peer 198.51.100.9/30 dev eth0
         ip address add 203.0.113.7/24 dev eth0 noprefixroute
         ip address add fd00:a::5/64 dev eth0 nodad
         ip address add fe80::5/64 dev eth0 nodad
         ip route add default via 10.10.0.1
         ip route add 169.254.1.1 dev eth0 scope link
         ip route add 172.16.0.0/12 via 169.254.1.1 dev eth0 onlink metric 50 src 10.10.0.6
         ip -6 route add default via fd00:a::1
         ip -6 route add 2001:db8::/32 via fe80::1 dev eth0 metric 7
         ip neighbour add 10.10.0.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent
         ip -6 neighbour add fd00:a::1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent
         ip neighbour add 10.10.0.2 lladdr 02:00:00:00:00:02 dev eth0 nud reachable");
    let (_network, nic) = attach_one(&pod);

    let mut interface = nic.interface;
    assert_eq!(nic.config.mac, [0x0a, 0x58, 0x0a, 0x0a, 0, 5]);
    assert_eq!(nic.config.mtu, 1450);
    let addresses = std::mem::take(&mut interface.addresses);
    let routes = std::mem::take(&mut interface.routes);
    let neighbours = std::mem::take(&mut interface.neighbours);
    let rest = Interface {
        name: "eth0".into(),
        mac: nic.config.mac.into(),
        mtu: 1450,
        ..Interface::default()
    };
    assert_eq!(interface, rest);
    assert_eq!(
        addresses,
        [
            "10.10.0.5/16",
            "192.0.2.1/32",
            // With a peer, and without a route to the prefix.
            "198.51.100.1/32",
            "203.0.113.7/32",
            "10.10.0.6/16",
            "fd00:a::5/64",
            "fe80::5/64",
        ]
    );
    let route = |destination: &str| Route {
        destination: destination.into(),
        ..Route::default()
    };
    let mut expected = vec![
        Route {
            scope: 253,
            ..route("169.254.1.1/32")
        },
        Route {
            scope: 253,
            source: "198.51.100.1".into(),
            ..route("198.51.100.8/30")
        },
        Route {
            gateway: "10.10.0.1".into(),
            ..route("0.0.0.0/0")
        },
        Route {
            gateway: "169.254.1.1".into(),
            source: "10.10.0.6".into(),
            metric: 50,
            onlink: true,
            ..route("172.16.0.0/12")
        },
        Route {
            gateway: "fe80::1".into(),
            metric: 7,
            ..route("2001:db8::/32")
        },
        Route {
            gateway: "fd00:a::1".into(),
            metric: 1024,
            ..route("::/0")
        },
    ];
    for (position, route) in routes.iter().enumerate() {
        assert!(
            expected.contains(route),
            "not expected at {position}: {route}"
        );
        expected.retain(|other| other != route);
    }
    assert_eq!(expected, []);
    let first_with_gateway = routes.iter().position(|route| !route.gateway.is_empty());
    assert_eq!(first_with_gateway, Some(2), "routes on the link come first");
    let gateway = |address: &str| Neighbour {
        address: address.into(),
        mac: vec![2, 0, 0, 0, 0, 1],
        ..Neighbour::default()
    };
    assert_eq!(neighbours, [gateway("10.10.0.1"), gateway("fd00:a::1")]);
}

#[test]
fn frames_pass_unchanged_both_ways() {
    let (left, right) = veth_pair();
    let (_left, left) = attach_one(&left);
    let (_right, right) = attach_one(&right);
    let (mut left, mut right) = (Tap::new(left.fds.tap), Tap::new(right.fds.tap));

    let vlan = [&[0xff; 6][..], &[2; 6], &[0x81, 0, 0, 42, 8, 0], &[7; 60]].concat();
    let frames = [
        frame(&[]),
        frame(&[1, 2]),
        frame(&[3; 46]),
        frame(&[4; 1500]),
        vlan,
    ];
    for frame in &frames {
        left.send(frame);
        assert_eq!(right.receive().as_ref(), Some(frame));
        right.send(frame);
        assert_eq!(left.receive().as_ref(), Some(frame));
    }
}

#[test]
fn the_namespaces_own_stack_neither_hears_nor_speaks() {
    let (pod, outside) = (Namespace::new(), Namespace::new());
    outside.sh("echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6");
    add_veth(&pod, "eth0", &outside, "out");
    pod.sh("ip address add 10.0.0.2/24 dev eth0");
    outside.sh("ip address add 10.0.0.1/24 dev out");
    let neighbour = "ip -oneline neighbour show 10.0.0.2";
    // A packet to the discard port: that its sender needs the MAC is enough.
    let ask = || {
        let name = &outside.name();
        sh(&format!(
            "ip netns exec {name} bash -c 'echo x > /dev/udp/10.0.0.2/9'"
        ));
    };
    ask();
    outside.sh(&format!(
        "until {neighbour} | grep -q lladdr; do sleep 0.01; done; ip neighbour flush all"
    ));

    let (network, nic) = attach_one(&pod);
    let mut tap = Tap::new(nic.fds.tap);
    let silence = tap.receive_within(Duration::from_secs(2));
    assert_eq!(silence, None, "nothing comes from the namespace itself");
    ask();
    let request = tap.receive().unwrap();
    assert_eq!(request[12..14], [8, 6], "an ARP request, for the guest");
    assert_eq!(tap.receive().as_ref(), Some(&request), "nobody answered it");

    // The guest's own answer counts.
    let mut reply = request.clone();
    let mac = nic.config.mac;
    reply[..6].copy_from_slice(&request[6..12]);
    reply[6..12].copy_from_slice(&mac);
    reply[21] = 2;
    reply[22..28].copy_from_slice(&mac);
    reply[28..32].copy_from_slice(&[10, 0, 0, 2]);
    reply[32..42].copy_from_slice(&request[22..32]);
    tap.send(&reply);
    let mut next = tap.receive().unwrap();
    while next == request {
        next = tap.receive().unwrap();
    }
    assert_eq!(next[12..14], [8, 0], "the packet that waited for it");
    assert!(outside.sh(neighbour).contains("lladdr"));
    network.close().unwrap();
}

#[test]
fn closing_leaves_the_namespace_as_it_was() {
    let (pod, _outside) = veth_pair();
    pod.sh("ip address add 10.0.0.2/24 dev eth0; ip route add default via 10.0.0.1");
    let before = pod.state();
    for _ in 0..2 {
        let (network, nic) = attach_one(&pod);
        assert_ne!(pod.state(), before);
        network.close().unwrap();
        assert_eq!(pod.state(), before, "though the monitor still has the tap");
        drop(nic);

        let (network, _nic) = attach_one(&pod);
        drop(network);
        assert_eq!(pod.state(), before);
    }
}

#[test]
fn what_a_killed_front_door_left_is_replaced_and_goes_with_the_next() {
    let (left, right) = veth_pair();
    let before = left.state();
    for _ in 0..2 {
        let (network, nic) = attach_one(&left);
        // As after SIGKILL: nobody closes the network, and the tap goes with its descriptor.
        std::mem::forget(network);
        drop(nic);
        left.wait_until_taps_are_gone();
        assert!(left.state().contains("mirred"), "{}", left.state());
    }
    let (network, nic) = attach_one(&left);
    let (_right, right) = attach_one(&right);
    let (mut tap, mut peer) = (Tap::new(nic.fds.tap), Tap::new(right.fds.tap));
    peer.send(&frame(&[1; 60]));
    assert_eq!(tap.receive(), Some(frame(&[1; 60])));
    network.close().unwrap();
    assert_eq!(left.state(), before);
}

#[test]
fn a_hook_of_somebody_else_is_shared_and_stays() {
    let (left, right) = veth_pair();
    // Their filter takes what comes from one sender, and comes first.
    left.sh("tc qdisc add dev eth0 clsact
         tc filter add dev eth0 ingress u32 match u8 0xee 0xff at -8 \
            action mirred egress redirect dev lo");
    let before = left.state();
    let (killed, nic) = attach_one(&left);
    std::mem::forget(killed);
    drop(nic);
    let (network, nic) = attach_one(&left);
    let (_right, right) = attach_one(&right);
    let (mut tap, mut peer) = (Tap::new(nic.fds.tap), Tap::new(right.fds.tap));
    let mut forbidden = frame(&[1; 60]);
    forbidden[6] = 0xee;
    peer.send(&forbidden);
    peer.send(&frame(&[2; 60]));
    assert_eq!(tap.receive(), Some(frame(&[2; 60])));
    network.close().unwrap();
    assert_eq!(left.state(), before);
}

#[test]
fn every_interface_gets_a_tap_of_its_own() {
    let (pod, outside) = veth_pair();
    add_veth(&pod, "net1", &outside, "out1");
    pod.sh("ip link add net2 type veth peer name unused
         ip address add 10.1.0.2/24 dev net1; ip link set net1 mtu 9000");
    let (_network, nics) = attach(&pod).unwrap();
    let names: Vec<_> = nics.iter().map(|nic| nic.interface.name.as_str()).collect();
    assert_eq!(names, ["eth0", "net1"], "and not those that are down");
    assert_eq!(nics[1].interface.addresses, ["10.1.0.2/24"]);
    assert_eq!(nics[1].config.mtu, 9000);

    let (_outside, outsides) = attach(&outside).unwrap();
    let mut taps: Vec<_> = nics.into_iter().map(|nic| Tap::new(nic.fds.tap)).collect();
    for (number, out) in (1..).zip(outsides) {
        Tap::new(out.fds.tap).send(&frame(&[number; 50]));
        let tap = &mut taps[usize::from(number) - 1];
        assert_eq!(tap.receive(), Some(frame(&[number; 50])));
    }
}

#[test]
fn ipv6_alone_is_enough() {
    let (pod, outside) = (Namespace::new(), Namespace::new());
    add_veth(&pod, "eth0", &outside, "out");
    pod.sh("ip address add 2001:db8::2/64 dev eth0; ip -6 route add default via 2001:db8::1");
    let (_network, nic) = attach_one(&pod);
    assert_eq!(nic.interface.addresses, ["2001:db8::2/64"]);
    let destinations = nic.interface.routes.iter().map(|route| &route.destination);
    assert_eq!(destinations.collect::<Vec<_>>(), ["::/0"]);
}

#[test]
fn an_interface_without_addresses_is_taken_as_it_is() {
    let (pod, _outside) = veth_pair();
    pod.sh("ip link set eth0 mtu 600");
    let (_network, nic) = attach_one(&pod);
    assert_eq!(nic.config.mtu, 600);
    assert_eq!(nic.interface.addresses, [""; 0]);
    assert_eq!(nic.interface.routes, []);
}

#[test]
fn a_namespace_serves_one_pod_at_a_time() {
    let (pod, _outside) = veth_pair();
    let (network, nics) = attach(&pod).unwrap();
    let wired = pod.state();
    assert_eq!(
        refusal(&pod),
        "network interface eth0 already belongs to a running pod"
    );
    assert_eq!(pod.state(), wired, "the running pod does not notice");
    drop((network, nics));
    attach(&pod).unwrap();
}

#[test]
fn a_namespace_without_an_interface_is_named() {
    let pod = Namespace::new();
    let expected = format!("no network interface in {}: ", pod.path().display());
    assert!(refusal(&pod).starts_with(&expected), "{}", refusal(&pod));
    pod.sh("ip link set lo up; ip link add eth0 type veth peer name eth1");
    assert!(refusal(&pod).starts_with(&expected), "{}", refusal(&pod));
}

#[test]
fn a_failure_half_way_undoes_the_first_half() {
    let (pod, outside) = veth_pair();
    add_veth(&pod, "net1", &outside, "out1");
    let index = pod.sh("cat /sys/class/net/net1/ifindex");
    // The second interface's tap cannot be made: its name is taken by another tap.
    pod.sh(&format!("ip tuntap add nacre{} mode tap", index.trim()));
    let before = pod.state();
    let refusal = refusal(&pod);
    assert!(refusal.contains("net1"), "{refusal}");
    assert_eq!(pod.state(), before);
}

#[test]
fn what_a_guest_cannot_have_is_refused_by_name() {
    let cases = [
        (
            "ip route add 10.9.0.0/16 dev eth0 table 100",
            "route to 10.9.0.0/16 is in table 100",
            "ip route flush table 100",
        ),
        (
            "ip route add blackhole 10.9.0.0/16",
            "route to 10.9.0.0/16 is of type blackhole",
            "ip route del 10.9.0.0/16",
        ),
        (
            "ip route add 10.9.0.0/16 nexthop via 10.0.0.1 nexthop via 10.0.0.3",
            "route to 10.9.0.0/16 has several next hops",
            "ip route del 10.9.0.0/16",
        ),
        (
            "ip tuntap add tap7 mode tap; ip link set tap7 up",
            "interface tap7 is a tap",
            "ip link del tap7",
        ),
        (
            "ip tuntap add tun7 mode tun; ip link set tun7 up",
            "interface tun7 is not Ethernet",
            "ip link del tun7",
        ),
        (
            "ip link add veth1 type veth peer name veth2; ip link set veth1 up
             ip link set veth2 up",
            "interface veth2 hangs on interface veth1",
            "ip link del veth1",
        ),
    ];
    let (pod, _outside) = veth_pair();
    pod.sh("ip address add 10.0.0.2/24 dev eth0");
    for (setting, expected, undo) in cases {
        pod.sh(setting);
        let refusal = refusal(&pod);
        assert!(refusal.contains(expected), "{setting}: {refusal}");
        pod.sh(undo);
    }
    attach(&pod).unwrap();
}

#[test]
fn two_interfaces_with_one_mac_are_refused() {
    let (pod, outside) = veth_pair();
    add_veth(&pod, "net1", &outside, "out1");
    pod.sh("ip link set net1 address $(cat /sys/class/net/eth0/address)");
    assert!(refusal(&pod).contains("eth0 and net1"), "{}", refusal(&pod));
}

#[test]
fn a_path_that_is_no_network_namespace_is_refused() {
    let refusal = |path: &str| Network::attach(path.as_ref()).unwrap_err().to_string();
    let missing = refusal("/run/netns/no-such-namespace");
    assert!(missing.contains("No such file"), "{missing}");
    for path in ["/etc/passwd", "/", "/dev/null", "/proc/self/ns/mnt"] {
        let expected = format!("{path} is not a network namespace");
        assert!(refusal(path).starts_with(&expected), "{}", refusal(path));
    }
}

#[test]
fn the_hosts_own_namespace_is_refused() {
    let refusal = Network::attach("/proc/self/ns/net".as_ref()).unwrap_err();
    assert!(
        matches!(refusal, NetworkError::HostNamespace(_)),
        "{refusal}"
    );
}

#[test]
fn the_rest_of_the_process_stays_where_it_is() {
    let (pod, _outside) = veth_pair();
    let here = || fs::read_link("/proc/thread-self/ns/net").unwrap();
    let (before, threads) = (here(), fs::read_dir("/proc/self/task").unwrap().count());
    let (network, _nic) = attach(&pod).unwrap();
    assert_eq!(here(), before);
    network.close().unwrap();
    // Other tests' threads come and go; the short-lived one must not pile up.
    assert!(fs::read_dir("/proc/self/task").unwrap().count() <= threads + 8);
}

#[test]
fn closing_after_the_interface_is_gone_is_fine() {
    let (pod, _outside) = veth_pair();
    let (network, nic) = attach(&pod).unwrap();
    pod.sh("ip link del eth0");
    network.close().unwrap();
    drop(nic);

    let (pod, _outside) = veth_pair();
    let (network, _nic) = attach(&pod).unwrap();
    sh(&format!("ip netns del {}", pod.name()));
    network.close().unwrap();
    sh(&format!("ip netns add {}", pod.name()));
}
