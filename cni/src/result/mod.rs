//! What `ADD` answers: the interfaces, addresses, routes and name servers of an
//! attachment (section 5 of the specification).
//!
//! One set of types holds the results of every version; [`AddResult::to_version`]
//! converts. They are read from plugins, so [`AddResult::from_json`] takes nothing on
//! trust: see [`wire`].

mod wire;

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Serialize, Serializer};
use thiserror::Error;

use crate::hardware_address::HardwareAddress;
use crate::names::InterfaceName;
use crate::version::Version;

/// Why a text is no result.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct InvalidResult(String);

/// The result of an `ADD`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddResult {
    /// The version it is written in.
    pub version: Version,
    /// All that the attachment made, those on the host included.
    pub interfaces: Vec<Interface>,
    /// Addresses assigned.
    pub ips: Vec<IpConfig>,
    /// Routes made.
    pub routes: Vec<Route>,
    /// For the container's resolver.
    pub dns: Dns,
}

/// One interface of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Inside the sandbox when there is one, else on the host.
    pub name: InterfaceName,
    /// Its hardware address, if it has one.
    pub mac: Option<HardwareAddress>,
    /// Bytes (since 1.1.0).
    pub mtu: Option<u32>,
    /// Where it is, usually the path of a network namespace; none is the host.
    pub sandbox: Option<String>,
    /// Absolute path of a socket in the interface's place (since 1.1.0).
    pub socket_path: Option<String>,
    /// The platform's name of the PCI device behind it (since 1.1.0).
    pub pci_id: Option<String>,
}

/// One address of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpConfig {
    /// The address with its subnet's prefix.
    pub address: IpNet,
    /// The subnet's default gateway.
    pub gateway: Option<IpAddr>,
    /// Index into [`AddResult::interfaces`].
    pub interface: Option<usize>,
}

/// One route of a result. All but the first two fields are since 1.1.0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The destination.
    pub dst: IpNet,
    /// The next hop; without one, a gateway of [`AddResult::ips`] may be meant.
    pub gw: Option<IpAddr>,
    /// Bytes.
    pub mtu: Option<u32>,
    /// Largest segment to announce to TCP peers, in bytes.
    pub advmss: Option<u32>,
    /// Lower is preferred.
    pub priority: Option<u32>,
    /// The routing table.
    pub table: Option<u32>,
    /// `rtm_scope`: 0 is global, 253 link, 254 host.
    pub scope: Option<u8>,
}

/// What a result says for the container's resolver.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    /// In order of preference.
    pub nameservers: Vec<IpAddr>,
    /// The local domain.
    pub domain: Option<String>,
    /// Domains to look short names up in.
    pub search: Vec<String>,
    /// For the resolver.
    pub options: Vec<String>,
}

impl AddResult {
    /// Reads and checks a result. `assumed` is its version when it does not say.
    ///
    /// # Errors
    ///
    /// The text is no JSON object, is in a version that is not ours, or has something
    /// that is not an address, a name, or a number in its place, or too much of it.
    pub fn from_json(json: &[u8], assumed: Version) -> Result<Self, InvalidResult> {
        wire::read(json, assumed)
    }

    /// The same in another version. What an older one cannot express is left out.
    #[must_use]
    pub fn to_version(&self, version: Version) -> Self {
        let mut result = Self {
            version,
            ..self.clone()
        };
        if !version.has_link_details() {
            for interface in &mut result.interfaces {
                interface.mtu = None;
                interface.socket_path = None;
                interface.pci_id = None;
            }
            for route in &mut result.routes {
                *route = Route::new(route.dst, route.gw);
            }
        }
        result
    }
}

/// As a plugin of the result's version writes it.
impl Serialize for AddResult {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        wire::of(&self.to_version(self.version)).serialize(serializer)
    }
}

impl Route {
    /// A route with a destination and a next hop, all else as the kernel has it.
    #[must_use]
    pub fn new(dst: IpNet, gw: Option<IpAddr>) -> Self {
        Self {
            dst,
            gw,
            mtu: None,
            advmss: None,
            priority: None,
            table: None,
            scope: None,
        }
    }
}

#[cfg(test)]
#[path = "result_test.rs"]
mod tests;
