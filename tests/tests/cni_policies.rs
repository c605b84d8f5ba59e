//! What somebody says about a pod's packets holds for a guest, or is refused by name.

#![allow(clippy::unwrap_used)]

use std::process::{Command, Stdio};

use nacre_pod::network::Network;
use nacre_tests::netns::{Namespace, veth_pair};
use nacre_tests::{Clean, Running, TestBundle, VmRun};

fn refusal(namespace: &Namespace) -> String {
    Network::attach(&namespace.path(), 1)
        .unwrap_err()
        .to_string()
}

/// A namespace cannot be emptied of the legacy tables again.
#[test]
fn rules_inside_of_the_namespace_are_refused() {
    let (pod, _outside) = veth_pair();
    pod.sh("ip address add 10.0.0.2/24 dev eth0");
    let chain = |family: &str, name: &str, hook: &str| {
        format!(
            "nft add table {family} {name}
             nft add chain {family} {name} c \"{{ type filter hook {hook} priority 0; }}\"
             nft add rule {family} {name} c counter drop"
        )
    };
    let device = |hook: &str| format!("{hook} device eth0");
    for (setting, expected) in [
        (
            chain("inet", "input", "input"),
            "rules of nftables (table input, chain c)",
        ),
        (
            chain("ip", "output", "output"),
            "rules of nftables (table output, chain c)",
        ),
        (
            chain("netdev", "first", &device("ingress")),
            "rules of nftables (table first, chain c)",
        ),
        (
            chain("netdev", "last", &device("egress")),
            "rules of nftables (table last, chain c)",
        ),
        (
            "nft add table ip closed
             nft add chain ip closed c \"{ type filter hook output priority 0; policy drop; }\""
                .into(),
            "rules of nftables (table closed, chain c)",
        ),
        (
            "iptables -A INPUT -p tcp --dport 80 -j DROP".into(),
            "rules of nftables (table filter, chain INPUT)",
        ),
    ] {
        pod.sh(&setting);
        let refusal = refusal(&pod);
        assert!(refusal.contains(expected), "{setting}: {refusal}");
        pod.sh("nft flush ruleset");
    }
    // A chain that lets everything pass keeps nothing out.
    pod.sh("nft add table ip open
         nft add chain ip open c \"{ type filter hook output priority 0; policy accept; }\"");
    Network::attach(&pod.path(), 1).unwrap();

    pod.sh("iptables-legacy -A INPUT -p tcp --dport 80 -j DROP");
    let refusal = refusal(&pod);
    let expected = "rules of the legacy iptables (table filter)";
    assert!(refusal.contains(expected), "{refusal}");
}

/// What rules inside would silently do is shown, too: that is why they are refused.
#[test]
fn rules_inside_of_the_namespace_would_not_hold() {
    let _clean = Clean::slate();
    let (pod, _outside) = served();
    let bundle = asking(&[9001, 9002, 9004]);
    let net = format!("--net={}", pod.path().display());
    let mut running = VmRun::start(&bundle, &[&net]);
    running.wait_for("started");
    pod.sh("nft add table netdev t
         nft add chain netdev t in \"{ type filter hook ingress device eth0 priority 0; }\"
         nft add rule netdev t in tcp sport 9001 drop
         nft add chain netdev t out \"{ type filter hook egress device eth0 priority 0; }\"
         nft add rule netdev t out tcp dport 9002 drop");
    let ended = running.wait().expect_code(0);
    let expected = "started\n9001 open\n9002 open\n9004 open\n";
    assert_eq!(ended.text(), expected, "{ended}");
}

#[test]
fn rules_on_the_hosts_side_hold() {
    let _clean = Clean::slate();
    let (pod, outside) = served();
    outside.namespace.sh("nft add table netdev t
         nft add chain netdev t in \"{ type filter hook ingress device out priority 0; }\"
         nft add rule netdev t in tcp dport 9001 drop
         nft add chain netdev t out \"{ type filter hook egress device out priority 0; }\"
         nft add rule netdev t out tcp sport 9002 drop
         nft add table inet t
         nft add chain inet t in \"{ type filter hook input priority 0; }\"
         nft add rule inet t in tcp dport 9003 drop");
    let bundle = asking(&PORTS);
    let net = format!("--net={}", pod.path().display());
    let mut running = VmRun::start(&bundle, &[&net]);
    running.wait_for("started");
    let ended = running.wait().expect_code(0);
    let expected = "started\n9001 closed\n9002 closed\n9003 closed\n9004 open\n";
    assert_eq!(ended.text(), expected, "{ended}");
}

/// The servers' ports.
const PORTS: [u16; 4] = [9001, 9002, 9003, 9004];

/// A namespace with a server on each of [`PORTS`].
struct Outside {
    _servers: Vec<Running>,
    namespace: Namespace,
}

/// A pod's namespace, and the one that it talks to.
fn served() -> (Namespace, Outside) {
    let (pod, namespace) = veth_pair();
    pod.sh("ip address add 10.0.0.2/24 dev eth0");
    namespace.sh("ip address add 10.0.0.1/24 dev out");
    let serve = |port: u16| {
        let mut server = Command::new("ip");
        server.args(["netns", "exec", namespace.name(), "socat"]);
        server.arg(format!("TCP-LISTEN:{port},fork,reuseaddr"));
        server.arg("SYSTEM:echo open").stdin(Stdio::null());
        Running::start(server)
    };
    let outside = Outside {
        _servers: PORTS.into_iter().map(serve).collect(),
        namespace,
    };
    (pod, outside)
}

/// A container that waits for the end of its input, and says which ports answer.
fn asking(ports: &[u16]) -> TestBundle {
    let ports = ports
        .iter()
        .map(u16::to_string)
        .collect::<Vec<_>>()
        .join(" ");
    TestBundle::sh(&format!(
        "echo started; cat >/dev/null
         for port in {ports}; do
           said=$(timeout 10 nc 10.0.0.1 $port </dev/null) || said=closed
           echo $port $said
         done"
    ))
}
