//! What a runtime may say about one attachment beyond the network's configuration.
//!
//! The keys are those of the specification's `CONVENTIONS.md`. A plugin is given the
//! ones that its configuration declares under `capabilities`, as `runtimeConfig`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::{NetworkConfig, PluginConfig};
use crate::hardware_address::HardwareAddress;

/// The capability arguments of an attachment; empty ones are not passed on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Capabilities {
    /// Ports of the host that lead to ports of the container.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// Limits on the interface's traffic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// One address is taken out of each inner list of subnets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ip_ranges: Vec<Vec<IpRange>>,
    /// Addresses wanted for the interface.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<RequestedIp>,
    /// The interface's hardware address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<HardwareAddress>,
    /// Name servers wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<RequestedDns>,
    /// Names by which others on the network reach the container.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// The GUID of an InfiniBand interface: eight bytes.
    #[serde(rename = "infinibandGUID", skip_serializing_if = "Option::is_none")]
    pub infiniband_guid: Option<HardwareAddress>,
    /// Any other one, by its key, such as `deviceID` and `cgroupPath`.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

/// A port of the host and where it leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// On the host.
    pub host_port: u16,
    /// In the container.
    pub container_port: u16,
    /// Of both.
    pub protocol: Protocol,
    /// Only this address of the host, instead of all.
    #[serde(rename = "hostIP", skip_serializing_if = "Option::is_none", default)]
    pub host_ip: Option<IpAddr>,
}

/// A protocol that has ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// Limits on traffic; zero is none. Ingress is towards the container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Bandwidth {
    /// Bits per second.
    pub ingress_rate: u64,
    /// Bits.
    pub ingress_burst: u64,
    /// Bits per second.
    pub egress_rate: u64,
    /// Bits.
    pub egress_burst: u64,
}

/// A part of a subnet, as host-local takes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpRange {
    /// The whole of it.
    pub subnet: IpNet,
    /// First address to give away.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub range_start: Option<IpAddr>,
    /// Last address to give away.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub range_end: Option<IpAddr>,
    /// The subnet's gateway.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub gateway: Option<IpAddr>,
}

/// An address, with or without the length of its subnet's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RequestedIp {
    /// `10.10.0.1/24`
    Net(IpNet),
    /// `10.10.0.1`
    Address(IpAddr),
}

/// Name servers as the `dns` capability names them, which differs from a result.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RequestedDns {
    /// In order of preference.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<IpAddr>,
    /// Domains to look short names up in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub searches: Vec<String>,
    /// For the resolver.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Capabilities {
    /// The keys that are set but that no plugin of `network` declares: what they ask
    /// for would silently not happen.
    ///
    /// # Errors
    ///
    /// A value of [`Self::other`] cannot be written as JSON.
    pub fn undeclared_by(&self, network: &NetworkConfig) -> serde_json::Result<Vec<String>> {
        let keys = self.to_map()?.into_iter().map(|(key, _)| key);
        Ok(keys.filter(|key| !network.supports(key)).collect())
    }

    /// The part of it that `plugin` declares: its `runtimeConfig`.
    pub(crate) fn declared_by(
        &self,
        plugin: &PluginConfig,
    ) -> serde_json::Result<Map<String, Value>> {
        let declared = plugin.capabilities();
        let mut map = self.to_map()?;
        map.retain(|key, _| declared.get(key).copied().unwrap_or(false));
        Ok(map)
    }

    fn to_map(&self) -> serde_json::Result<Map<String, Value>> {
        serde_json::from_value(serde_json::to_value(self)?)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn everything() -> Capabilities {
        Capabilities {
            port_mappings: vec![PortMapping {
                host_port: 8080,
                container_port: 80,
                protocol: Protocol::Udp,
                host_ip: Some("127.0.0.1".parse().unwrap()),
            }],
            bandwidth: Some(Bandwidth {
                ingress_rate: 2048,
                ingress_burst: 1600,
                ..Bandwidth::default()
            }),
            ip_ranges: vec![vec![IpRange {
                subnet: "10.1.2.0/24".parse().unwrap(),
                range_start: Some("10.1.2.3".parse().unwrap()),
                range_end: None,
                gateway: None,
            }]],
            ips: vec![
                RequestedIp::Net("10.10.0.1/24".parse().unwrap()),
                RequestedIp::Address("3ffe:ffff:0:1ff::2".parse().unwrap()),
            ],
            mac: Some("c2:11:22:33:44:55".parse().unwrap()),
            dns: Some(RequestedDns {
                servers: vec!["8.8.8.8".parse().unwrap()],
                searches: vec!["corp.tyrell.net".into()],
                options: Vec::new(),
            }),
            aliases: vec!["primary-db".into()],
            infiniband_guid: Some("c2:11:22:33:44:55:66:77".parse().unwrap()),
            other: BTreeMap::from([("deviceID".into(), json!("0000:04:00.5"))]),
        }
    }

    #[test]
    fn the_keys_are_those_of_the_conventions() {
        assert_eq!(
            serde_json::to_value(everything()).unwrap(),
            json!({
                "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "udp",
                                  "hostIP": "127.0.0.1"}],
                "bandwidth": {"ingressRate": 2048, "ingressBurst": 1600,
                              "egressRate": 0, "egressBurst": 0},
                "ipRanges": [[{"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.3"}]],
                "ips": ["10.10.0.1/24", "3ffe:ffff:0:1ff::2"],
                "mac": "c2:11:22:33:44:55",
                "dns": {"servers": ["8.8.8.8"], "searches": ["corp.tyrell.net"]},
                "aliases": ["primary-db"],
                "infinibandGUID": "c2:11:22:33:44:55:66:77",
                "deviceID": "0000:04:00.5",
            })
        );
    }

    #[test]
    fn they_are_read_as_they_are_written() {
        let json = serde_json::to_string(&everything()).unwrap();
        assert_eq!(
            serde_json::from_str::<Capabilities>(&json).unwrap(),
            everything()
        );
        assert_eq!(
            serde_json::to_string(&Capabilities::default()).unwrap(),
            "{}"
        );
    }

    #[test]
    fn a_plugin_is_given_what_it_declares_and_nothing_else() {
        let network = NetworkConfig::from_json(
            br#"{"cniVersion": "1.0.0", "name": "n", "type": "t",
                 "capabilities": {"mac": true, "ips": false, "deviceID": true, "unset": true}}"#,
        )
        .unwrap();
        let given = everything().declared_by(&network.plugins[0]).unwrap();
        let keys: Vec<_> = given.keys().map(String::as_str).collect();
        assert_eq!(keys, ["deviceID", "mac"]);
        let undeclared = everything().undeclared_by(&network).unwrap();
        assert!(undeclared.contains(&"portMappings".to_owned()));
        assert!(undeclared.contains(&"ips".to_owned()));
        assert!(!undeclared.contains(&"mac".to_owned()));
    }
}
