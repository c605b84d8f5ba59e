//! Network namespaces for tests, made with `ip`.

use std::fs::File;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::sh;

/// A network namespace that is deleted when the test is over.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Default for Namespace {
    fn default() -> Self {
        Self::new()
    }
}

impl Namespace {
    /// Makes one with nothing in it but `lo`.
    #[must_use]
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("nacre-test-{}-{number}", std::process::id());
        sh(&format!("ip netns add {name}"));
        Self { name }
    }

    /// Its name for `ip netns`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Runs a shell script, without single quotes, inside and returns what it prints.
    pub fn sh(&self, script: &str) -> String {
        assert!(!script.contains('\''), "{script}");
        sh(&format!("ip netns exec {} sh -euc '{script}'", self.name))
    }

    /// A socket of its stack that receives what comes to a port of UDP.
    ///
    /// # Panics
    /// When the port is taken.
    #[must_use]
    pub fn udp(&self, port: u16) -> UdpSocket {
        let file = File::open(self.path()).unwrap();
        // A thread of its own: it does not come back from there.
        let bind = move || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap()
        };
        let socket = thread::spawn(bind).join().unwrap();
        socket.set_read_timeout(Some(crate::patience())).unwrap();
        socket
    }

    /// All that `ip` and `tc` know of it.
    pub fn state(&self) -> String {
        self.sh(
            "ip -details link; ip address; ip route show table all; ip -6 route show table all
             ip neighbour; tc qdisc
             for path in /sys/class/net/*; do tc filter show dev ${path##*/} ingress; done",
        )
    }

    /// Waits until there is no tap of a pod in it. A process that was just
    /// forked by another test may have the descriptor of one a moment longer.
    pub fn wait_until_taps_are_gone(&self) {
        self.sh(r#"while ip -oneline link | grep -q ": nacre"; do sleep 0.01; done"#);
    }

    /// Waits until nobody has the tap `name` open any more.
    pub fn wait_until_no_carrier(&self, name: &str) {
        self.sh(&format!(
            "while ip -oneline link show dev {name} | grep -q LOWER_UP; do sleep 0.01; done"
        ));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        sh(&format!("ip netns del {}", self.name));
    }
}

/// A pod's namespace with `eth0`, and another one with its peer `out`; both are
/// up and neither has an IPv6 stack, which speaks unasked.
#[must_use]
pub fn veth_pair() -> (Namespace, Namespace) {
    let (pod, outside) = (Namespace::new(), Namespace::new());
    for namespace in [&pod, &outside] {
        namespace.sh("echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6");
    }
    add_veth(&pod, "eth0", &outside, "out");
    (pod, outside)
}

/// Connects both namespaces by a pair of interfaces that are up.
pub fn add_veth(pod: &Namespace, name: &str, outside: &Namespace, peer: &str) {
    outside.sh(&format!(
        "ip link add {peer} type veth peer name {name} netns {}
         ip link set {peer} up",
        pod.name
    ));
    // The kernel takes a moment to notice that the other end is up.
    pod.sh(&format!(
        "ip link set {name} up
         until grep -q up /sys/class/net/{name}/operstate; do sleep 0.01; done"
    ));
}
