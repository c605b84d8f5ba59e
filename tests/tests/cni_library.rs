//! The library of CNI by itself, with the plugins of the distribution: what it asks of them
//! that `vm-run` has no use for, and the wishes that it passes on.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use nacre_cni::{
    Attachment, AttachmentId, Bandwidth, Capabilities, Cni, IpRange, NetworkConfig, discovery,
};
use nacre_tests::cni::{Bridge, Networks, State, assert_as_before, slide_and_more};
use nacre_tests::netns::Namespace;
use nacre_tests::{Clean, count};
use serde_json::json;

const PLUGINS: &str = "/usr/lib/cni";

/// Networks and the library that was given them.
struct Runtime {
    networks: Networks,
    cni: Cni,
}

impl Runtime {
    fn of(networks: Networks) -> Self {
        let cni = Cni::new(vec![PLUGINS.into()], networks.path("cache")).unwrap();
        Self { networks, cni }
    }

    fn network(&self) -> NetworkConfig {
        let dir = self.networks.path("");
        let found = discovery::find(&dir, &"mynet".parse().unwrap()).unwrap();
        self.cni.negotiate(found).unwrap()
    }
}

fn attachment(container: &str, netns: &Path) -> Attachment {
    let id = AttachmentId::new(container, "eth0").unwrap();
    Attachment::new(id, Some(netns.into()))
}

#[test]
fn plugins_are_asked_whether_all_is_as_it_was_made() {
    let _clean = Clean::slate();
    let _bridge = Bridge::none_yet();
    let runtime = Runtime::of(Networks::new().with(&slide_and_more()));
    let (network, netns) = (runtime.network(), Namespace::new());
    let attachment = attachment("checked", &netns.path());
    // Such plugins have no STATUS yet, which is no reason not to try.
    runtime.cni.status(&network).unwrap();
    let missing = runtime.cni.check(&network, &attachment.id).unwrap_err();
    assert!(missing.to_string().contains("is not on"), "{missing}");

    runtime.cni.add(&network, &attachment).unwrap();
    runtime.cni.check(&network, &attachment.id).unwrap();
    let twice = runtime.cni.add(&network, &attachment).unwrap_err();
    assert!(twice.to_string().contains("DEL it first"), "{twice}");

    netns.sh("ip address flush dev eth0");
    let wrong = runtime.cni.check(&network, &attachment.id).unwrap_err();
    let said = wrong.to_string();
    assert!(said.contains("bridge") && !said.contains('\n'), "{said}");
    runtime.cni.del(&network, &attachment).unwrap();
    runtime.cni.del(&network, &attachment).unwrap();
    assert_eq!(netns.sh("ip -oneline link | wc -l").trim(), "1");
}

#[test]
fn what_belongs_to_no_valid_attachment_is_collected() {
    let _clean = Clean::slate();
    let _bridge = Bridge::none_yet();
    let runtime = Runtime::of(Networks::new().with(&slide_and_more()));
    let network = runtime.network();
    let (kept, stale) = (Namespace::new(), Namespace::new());
    let (keeps, gone) = (
        attachment("keeps", &kept.path()),
        attachment("gone", &stale.path()),
    );
    runtime.cni.add(&network, &keeps).unwrap();
    let with_one = State::now();
    runtime.cni.add(&network, &gone).unwrap();

    runtime.cni.gc(&network, || vec![keeps.id.clone()]).unwrap();
    let left = runtime.cni.attachments().unwrap();
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(left[0].id, keeps.id);
    runtime.cni.check(&network, &keeps.id).unwrap();
    assert_as_before(&with_one);
    runtime.cni.del(&network, &keeps).unwrap();
}

#[test]
fn wishes_reach_the_plugins_that_declare_them() {
    let _clean = Clean::slate();
    let _bridge = Bridge::none_yet();
    let runtime = Runtime::of(Networks::new().with(&json!({
        "cniVersion": "1.0.0", "name": "mynet", "plugins": [
            { "type": "bridge", "bridge": "mynet0", "capabilities": { "mac": true },
              "ipam": { "type": "host-local", "subnet": "10.10.0.0/16" } },
            { "type": "bandwidth", "capabilities": { "bandwidth": true } }
        ]
    })));
    let mut config = runtime.network();
    let (netns, ranges) = (Namespace::new(), ["10.30.0.0/24", "fd30::/64"]);
    let mut attachment = attachment("wishes", &netns.path());
    attachment.capabilities = Capabilities {
        mac: Some("c2:00:00:00:00:07".parse().unwrap()),
        bandwidth: Some(Bandwidth {
            egress_rate: 8_000_000,
            egress_burst: 800_000,
            ..Bandwidth::default()
        }),
        aliases: vec!["web".to_owned()],
        ip_ranges: ranges.map(|subnet| vec![range(subnet)]).to_vec(),
        ..Capabilities::default()
    };
    let undeclared = attachment.capabilities.undeclared_by(&config).unwrap();
    assert_eq!(undeclared, ["aliases", "ipRanges"]);

    let text = r#"{ "type": "bridge", "bridge": "mynet0",
        "capabilities": { "mac": true, "ipRanges": true },
        "ipam": { "type": "host-local" } }"#;
    config.plugins[0] = nacre_cni::PluginConfig::from_json(text.as_bytes()).unwrap();
    let result = runtime.cni.add(&config, &attachment).unwrap();
    let addresses: Vec<_> = result.ips.iter().map(|ip| ip.address.to_string()).collect();
    assert_eq!(addresses, ["10.30.0.2/24", "fd30::2/64"]);
    assert!(
        netns
            .sh("ip link show dev eth0")
            .contains("c2:00:00:00:00:07")
    );
    let limits = nacre_tests::sh("tc qdisc show");
    assert!(
        limits.contains("qdisc tbf") && limits.contains("rate 8Mbit"),
        "{limits}"
    );
    runtime.cni.del(&config, &attachment).unwrap();
}

fn range(subnet: &str) -> IpRange {
    IpRange {
        subnet: subnet.parse().unwrap(),
        range_start: None,
        range_end: None,
        gateway: None,
    }
}

#[test]
fn rounds_of_the_library_leave_the_host_as_it_was() {
    let _clean = Clean::slate();
    let _bridge = Bridge::none_yet();
    let runtime = Runtime::of(Networks::new().with(&slide_and_more()));
    let (network, netns) = (runtime.network(), Namespace::new());
    let attachment = attachment("rounds", &netns.path());
    let round = || {
        runtime.cni.add(&network, &attachment).unwrap();
        runtime.cni.del(&network, &attachment).unwrap();
    };
    // The first one makes what stays: the bridge, empty chains.
    round();
    let before = State::now();
    (0..count(5, 100)).for_each(|_| round());
    assert_as_before(&before);
    assert!(runtime.cni.attachments().unwrap().is_empty());
}
