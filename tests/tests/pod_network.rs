//! The host side of a pod's network, in namespaces made with `ip`. Needs root,
//! tun, veth and tc, but no virtual machine.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use nacre_pod::network::{Network, NetworkError, Nic};
use nacre_protocol::agent::{
    Address, Interface, Neighbour, PolicyRule, PortRange, Route, RuleAction,
};
use nacre_tests::netns::{Namespace, add_veth, veth_pair};
use nacre_tests::sh;
use nacre_vmm::client::QueuePairFds;

/// Length of the virtio-net header that precedes each frame of a tap.
const HEADER_LEN: usize = 12;

fn attach(namespace: &Namespace) -> Result<(Network, Vec<Nic>), NetworkError> {
    Network::attach(&namespace.path(), 1)
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
    /// The one of a device with one pair of queues.
    fn new(mut pairs: Vec<QueuePairFds>) -> Self {
        assert_eq!(pairs.len(), 1);
        Self(pairs.remove(0).tap.into())
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

fn address(text: &str) -> Address {
    Address {
        address: text.into(),
        ..Address::default()
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
    let mut addresses = std::mem::take(&mut interface.addresses);
    // That of the MAC address.
    addresses.retain(|address| !address.address.contains("ff:fe"));
    assert!(interface.ipv6.take().is_some());
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
            address("10.10.0.5/16"),
            address("192.0.2.1/32"),
            // With a peer.
            address("198.51.100.1/32"),
            Address {
                no_prefix_route: true,
                ..address("203.0.113.7/24")
            },
            address("10.10.0.6/16"),
            address("fd00:a::5/64"),
            address("fe80::5/64"),
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
    let (mut left, mut right) = (Tap::new(left.fds), Tap::new(right.fds));

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
    // Else the namespace's stack looks after a neighbour of its own, whose answer the tap gets.
    pod.sh("ip neighbour flush all");

    let (network, nic) = attach_one(&pod);
    let mut tap = Tap::new(nic.fds);
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

/// Whoever got the interface's address by DHCP renews its lease from there.
#[test]
fn the_namespace_has_a_copy_of_what_comes_for_a_dhcp_client_and_of_nothing_else() {
    let (pod, outside) = veth_pair();
    pod.sh("ip address add 10.0.0.2/24 dev eth0");
    outside.sh("ip address add 10.0.0.1/24 dev out");
    let before = pod.state();
    let (client, other) = (pod.udp(68), pod.udp(9));
    let (network, nic) = attach_one(&pod);
    let mac: Vec<_> = nic.config.mac.map(|byte| format!("{byte:02x}")).into();
    let mac = mac.join(":");
    outside.sh(&format!("ip neighbour add 10.0.0.2 lladdr {mac} dev out"));
    let mut tap = Tap::new(nic.fds);
    let server = outside.udp(67);
    for port in [9, 68] {
        server.send_to(b"word", ("10.0.0.2", port)).unwrap();
        let packet = tap.receive().unwrap();
        assert!(packet.ends_with(b"word"), "{packet:?}");
    }
    let mut word = [0; 8];
    assert_eq!(client.recv(&mut word).unwrap(), 4);
    other.set_nonblocking(true).unwrap();
    let error = other.recv(&mut word).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    drop((client, other));
    network.close().unwrap();
    assert_eq!(pod.state(), before);
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
    let (mut tap, mut peer) = (Tap::new(nic.fds), Tap::new(right.fds));
    peer.send(&frame(&[1; 60]));
    assert_eq!(tap.receive(), Some(frame(&[1; 60])));
    network.close().unwrap();
    assert_eq!(left.state(), before);
}

#[test]
fn what_a_killed_front_door_left_can_be_cleared_and_what_is_in_use_cannot() {
    let (left, right) = veth_pair();
    let before = left.state();
    let (killed, nic) = attach_one(&left);
    assert!(!Network::clear(&left.path()).unwrap(), "it is in use");
    std::mem::forget(killed);
    drop(nic);
    left.wait_until_taps_are_gone();
    assert!(Network::clear(&left.path()).unwrap());
    assert_eq!(left.state(), before);
    assert!(!Network::clear(&left.path()).unwrap());
    assert!(!Network::clear(Path::new("/run/netns/nobody")).unwrap());
    drop(right);
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
    let (mut tap, mut peer) = (Tap::new(nic.fds), Tap::new(right.fds));
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
    assert_eq!(nics[1].interface.addresses, [address("10.1.0.2/24")]);
    assert_eq!(nics[1].interface.mtu, 9000);

    let (_outside, outsides) = attach(&outside).unwrap();
    let mut taps: Vec<_> = nics.into_iter().map(|nic| Tap::new(nic.fds)).collect();
    for (number, out) in (1..).zip(outsides) {
        Tap::new(out.fds).send(&frame(&[number; 50]));
        let tap = &mut taps[usize::from(number) - 1];
        assert_eq!(tap.receive(), Some(frame(&[number; 50])));
    }
}

/// A namespace of which the interface `eth0` is a tap, wired to `up0`, and the one beyond.
fn handed_over_tap() -> (Namespace, Namespace) {
    let (pod, outside) = (Namespace::new(), Namespace::new());
    for namespace in [&pod, &outside] {
        namespace.sh("echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6");
    }
    add_veth(&pod, "up0", &outside, "out");
    pod.sh("ip tuntap add eth0 mode tap vnet_hdr
         ip link set eth0 address 02:00:00:00:00:07 mtu 1400 up
         ip address add 10.0.0.2/24 dev eth0
         for way in \"up0 eth0\" \"eth0 up0\"; do
           set -- $way; tc qdisc add dev $1 ingress
           tc filter add dev $1 ingress matchall action mirred egress redirect dev $2
         done");
    (pod, outside)
}

#[test]
fn a_tap_that_was_handed_over_is_the_guests_as_it_is() {
    let (pod, outside) = handed_over_tap();
    let before = pod.state();
    let (network, nic) = attach_one(&pod);
    assert_eq!(nic.interface.name, "eth0");
    assert_eq!(nic.config.mac, [2, 0, 0, 0, 0, 7]);
    assert_eq!(nic.interface.mtu, 1400);
    assert_eq!(nic.interface.addresses, [address("10.0.0.2/24")]);
    let in_use = "network interface eth0 already belongs to a running pod";
    assert_eq!(refusal(&pod), in_use);

    let (_outside, peer) = attach_one(&outside);
    let (mut tap, mut peer) = (Tap::new(nic.fds), Tap::new(peer.fds));
    tap.send(&frame(&[1; 60]));
    assert_eq!(peer.receive(), Some(frame(&[1; 60])));
    peer.send(&frame(&[2; 60]));
    assert_eq!(tap.receive(), Some(frame(&[2; 60])));

    network.close().unwrap();
    drop(tap);
    pod.wait_until_no_carrier("eth0");
    assert_eq!(pod.state(), before);
    attach(&pod).unwrap();
}

/// Numbers of the queues that a namespace's tap sends to.
fn attached_queues(namespace: &Namespace, tap: &str) -> usize {
    let queues = namespace.sh(&format!("ls -d /sys/class/net/{tap}/queues/tx-*"));
    queues.lines().count()
}

#[test]
fn a_pod_has_a_pair_of_queues_for_each_cpu_as_far_as_there_can_be() {
    let (pod, _outside) = veth_pair();
    for (cpus, pairs) in [(1, 1), (2, 2), (8, 8), (32, 8)] {
        let before = pod.state();
        let (network, mut nics) = Network::attach(&pod.path(), cpus).unwrap();
        let nic = nics.remove(0);
        assert_eq!(usize::from(nic.config.queue_pairs), pairs);
        assert_eq!(nic.fds.len(), pairs);
        // The guest takes the others into use.
        assert_eq!(attached_queues(&pod, "nacre*"), 1);
        let kept = pod.sh("cat /sys/class/net/nacre*/tx_queue_len");
        assert_eq!(kept.trim(), (1000 / pairs).to_string());
        network.close().unwrap();
        assert_eq!(pod.state(), before);
    }
}

#[test]
fn a_tap_of_several_queues_can_be_handed_over() {
    let pod = Namespace::new();
    pod.sh("ip tuntap add eth0 mode tap multi_queue; ip link set eth0 up");
    for cpus in [1, 4] {
        let (_network, nics) = Network::attach(&pod.path(), cpus).unwrap();
        assert_eq!(nics[0].fds.len(), usize::from(cpus));
        assert_eq!(attached_queues(&pod, "eth0"), 1);
        assert!(
            refusal(&pod).contains("eth0 already belongs"),
            "{}",
            refusal(&pod)
        );
        drop(nics);
        pod.wait_until_no_carrier("eth0");
    }
}

#[test]
fn a_tap_of_one_queue_that_was_handed_over_stays_that() {
    let (pod, _outside) = handed_over_tap();
    let (_network, nics) = Network::attach(&pod.path(), 4).unwrap();
    assert_eq!(nics[0].config.queue_pairs, 1);
    assert_eq!(nics[0].fds.len(), 1);
}

#[test]
fn routes_of_all_tables_and_the_rules_that_choose_among_them_are_told() {
    let (pod, _outside) = veth_pair();
    pod.sh("ip address add 10.0.0.2/24 dev eth0
         ip route add default via 10.0.0.1
         ip route add default via 10.0.0.9 table 1000
         ip route add 10.9.0.0/16 via 10.0.0.9 mtu 1300 advmss 1200
         ip rule add from 10.0.0.2/32 to 10.9.0.0/16 lookup 1000 priority 100
         ip rule add not fwmark 0x1/0x3 lookup main suppress_prefixlength 0 priority 101
         ip rule add iif lo ipproto tcp dport 80-90 tos 0x10 oif eth0 lookup 7 priority 102
         ip rule add from 10.66.0.0/16 prohibit priority 103
         ip rule del priority 0; ip rule add lookup local priority 50");
    let (_network, nic) = attach_one(&pod);
    let routes = nic.interface.routes;
    let of_table: Vec<_> = routes.iter().filter(|route| route.table == 1000).collect();
    assert_eq!(of_table.len(), 1, "{routes:?}");
    assert_eq!(of_table[0].gateway, "10.0.0.9");
    let with_metrics = routes
        .iter()
        .find(|route| !route.metrics.is_empty())
        .unwrap();
    let metrics = with_metrics
        .metrics
        .iter()
        .map(|metric| (metric.kind, metric.value));
    // RTAX_MTU and RTAX_ADVMSS.
    assert_eq!(metrics.collect::<Vec<_>>(), [(2, 1300), (8, 1200)]);

    let rule = |priority, table| PolicyRule {
        priority,
        source: "0.0.0.0/0".into(),
        destination: "0.0.0.0/0".into(),
        table,
        ..PolicyRule::default()
    };
    let expected = [
        rule(50, 255),
        PolicyRule {
            source: "10.0.0.2/32".into(),
            destination: "10.9.0.0/16".into(),
            ..rule(100, 1000)
        },
        PolicyRule {
            inverted: true,
            mark: 1,
            mark_mask: 3,
            suppress_prefix_length: Some(0),
            ..rule(101, 254)
        },
        PolicyRule {
            input_interface: "lo".into(),
            output_interface: "eth0".into(),
            ip_protocol: 6,
            tos: 0x10,
            destination_ports: Some(PortRange {
                first: 80,
                last: 90,
                ..PortRange::default()
            })
            .into(),
            ..rule(102, 7)
        },
        PolicyRule {
            source: "10.66.0.0/16".into(),
            action: RuleAction::PROHIBIT.into(),
            ..rule(103, 0)
        },
        rule(32766, 254),
        rule(32767, 253),
    ];
    assert_eq!(nic.policy_rules, expected);
}

#[test]
fn a_namespace_with_the_kernels_rules_has_none_to_tell_of() {
    let (pod, _outside) = veth_pair();
    let (_network, nic) = attach_one(&pod);
    assert_eq!(nic.policy_rules, []);
}

/// Waits until the only address of `eth0` is there to stay.
fn wait_for_dad(namespace: &Namespace, interface: &str) {
    namespace.sh(&format!(
        "while ip -6 address show dev {interface} | grep -q tentative; do sleep 0.05; done"
    ));
}

#[test]
fn what_ipv6_does_by_itself_is_told() {
    let (pod, outside) = (Namespace::new(), Namespace::new());
    add_veth(&pod, "eth0", &outside, "out");
    wait_for_dad(&pod, "eth0");
    let told = || attach_one(&pod).1.interface;
    let link_local = |interface: &Interface| {
        let mut addresses = interface.addresses.iter();
        addresses.any(|address| address.address.starts_with("fe80:"))
    };
    let usual = told();
    assert!(link_local(&usual), "{usual}");
    let ipv6 = usual.ipv6.unwrap();
    assert!(
        !ipv6.disabled && ipv6.accept_ra == 1 && ipv6.autoconf,
        "{ipv6}"
    );

    pod.sh("echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_ra
         echo 0 > /proc/sys/net/ipv6/conf/eth0/autoconf");
    let ipv6 = told().ipv6.unwrap();
    assert!(
        !ipv6.disabled && ipv6.accept_ra == 0 && !ipv6.autoconf,
        "{ipv6}"
    );

    pod.sh("echo 1 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6");
    let without = told();
    assert!(!link_local(&without), "{without}");
    assert!(without.ipv6.unwrap().disabled);

    // Too small an MTU for IPv6.
    pod.sh("ip link set eth0 mtu 600");
    assert!(told().ipv6.is_none());
}

#[test]
fn an_address_that_nobody_has_asked_for_yet_is_told_as_that() {
    let (pod, outside) = (Namespace::new(), Namespace::new());
    add_veth(&pod, "eth0", &outside, "out");
    wait_for_dad(&pod, "eth0");
    pod.sh("ip address add fd00::2/64 dev eth0; ip address add fd00::3/64 dev eth0 nodad");
    let (_network, nic) = attach_one(&pod);
    let tentative = |ip: &str| {
        let mut addresses = nic.interface.addresses.iter();
        let address = addresses.find(|address| address.address == ip);
        address.unwrap().tentative
    };
    assert!(tentative("fd00::2/64"));
    assert!(!tentative("fd00::3/64"));
}

#[test]
fn an_address_without_its_route_is_told_as_that() {
    let (pod, _outside) = veth_pair();
    pod.sh(
        "ip address add 10.0.0.2/24 dev eth0; ip route del 10.0.0.0/24
         ip route add 10.0.0.0/24 dev eth0 table 100",
    );
    let (_network, nic) = attach_one(&pod);
    let expected = Address {
        no_prefix_route: true,
        ..address("10.0.0.2/24")
    };
    assert_eq!(nic.interface.addresses, [expected]);
    let tables = nic.interface.routes.iter().map(|route| route.table);
    assert_eq!(tables.collect::<Vec<_>>(), [100]);
}

#[test]
fn ipv6_alone_is_enough() {
    let (pod, outside) = (Namespace::new(), Namespace::new());
    add_veth(&pod, "eth0", &outside, "out");
    pod.sh("ip address add 2001:db8::2/64 dev eth0; ip -6 route add default via 2001:db8::1");
    let (_network, nic) = attach_one(&pod);
    let mut addresses = nic.interface.addresses.iter();
    assert!(addresses.any(|address| address.address == "2001:db8::2/64"));
    let destinations = nic.interface.routes.iter().map(|route| &route.destination);
    assert_eq!(destinations.collect::<Vec<_>>(), ["::/0"]);
}

#[test]
fn an_interface_without_addresses_is_taken_as_it_is() {
    let (pod, _outside) = veth_pair();
    pod.sh("ip link set eth0 mtu 600");
    let (_network, nic) = attach_one(&pod);
    assert_eq!(nic.interface.mtu, 600);
    assert_eq!(nic.interface.addresses, []);
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
            "ip rule add uidrange 0-99 lookup main priority 1000",
            "policy rule 1000 depends on users",
            "ip rule del priority 1000",
        ),
        (
            "ip rule add iif tun9 lookup main priority 1001",
            "policy rule 1001 is for interface tun9, which the guest lacks",
            "ip rule del priority 1001",
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
    let refusal = |path: &str| Network::attach(path.as_ref(), 1).unwrap_err().to_string();
    let missing = refusal("/run/netns/no-such-namespace");
    assert!(missing.contains("No such file"), "{missing}");
    for path in ["/etc/passwd", "/", "/dev/null", "/proc/self/ns/mnt"] {
        let expected = format!("{path} is not a network namespace");
        assert!(refusal(path).starts_with(&expected), "{}", refusal(path));
    }
}

#[test]
fn the_hosts_own_namespace_is_refused() {
    let refusal = Network::attach("/proc/self/ns/net".as_ref(), 1).unwrap_err();
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
