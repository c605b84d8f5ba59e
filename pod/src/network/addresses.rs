//! The addresses of an interface.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressProtocol,
};

use super::describe::Link;

/// A network in CIDR form.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Network {
    pub(super) address: IpAddr,
    pub(super) prefix: u8,
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// An address and the length of its network's prefix.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Address {
    ip: IpAddr,
    prefix: u8,
    /// The kernel is not to make a route to the prefix.
    no_prefix_route: bool,
    /// The kernel has not yet asked whether another host has it.
    tentative: bool,
}

impl Address {
    /// Whether a kernel that is given this address makes that route by itself.
    pub(super) fn implies_route_to(&self, destination: Network) -> bool {
        !self.no_prefix_route && destination == self.network()
    }

    /// Keeps the kernel from making a route that the interface does not have.
    pub(super) fn without_route_unless(&mut self, has_route: impl FnOnce(Network) -> bool) {
        self.no_prefix_route |= !self.is_host() && !has_route(self.network());
    }

    /// The address as the agent is told.
    pub(super) fn message(&self) -> nacre_protocol::agent::Address {
        nacre_protocol::agent::Address {
            address: format!("{}/{}", self.ip, self.prefix),
            no_prefix_route: self.no_prefix_route,
            tentative: self.tentative,
            ..Default::default()
        }
    }

    /// Without a network beyond the address itself.
    fn is_host(&self) -> bool {
        self.prefix == host_prefix(self.ip)
    }

    fn network(&self) -> Network {
        let address = match self.ip {
            IpAddr::V4(ip) => {
                let host = u32::MAX.checked_shr(self.prefix.into()).unwrap_or(0);
                Ipv4Addr::from_bits(ip.to_bits() & !host).into()
            }
            IpAddr::V6(ip) => {
                let host = u128::MAX.checked_shr(self.prefix.into()).unwrap_or(0);
                Ipv6Addr::from_bits(ip.to_bits() & !host).into()
            }
        };
        Network {
            address,
            prefix: self.prefix,
        }
    }
}

fn host_prefix(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

/// The addresses that the guest must be given for `link`, in the kernel's order. Those
/// that it makes itself, by advertisements of a router, are not among them.
pub(super) fn of(link: &Link, messages: &[AddressMessage]) -> Vec<Address> {
    let accepts_ra = link.accepts_router_advertisements();
    messages
        .iter()
        .filter(|message| message.header.index == link.index)
        .filter(|message| !(accepts_ra && is_of_a_router(message, link.mac)))
        .filter_map(|message| address(message, &link.interface.name))
        .collect()
}

/// Whether the kernel has made the address from an advertised prefix.
fn is_of_a_router(message: &AddressMessage, mac: [u8; 6]) -> bool {
    if message.header.flags.contains(AddressHeaderFlags::Permanent) {
        return false;
    }
    message.attributes.iter().any(|attribute| match attribute {
        AddressAttribute::Protocol(AddressProtocol::RouterAnnouncement) => true,
        // A kernel before 5.18 does not say it.
        AddressAttribute::Address(IpAddr::V6(ip)) => {
            ip.octets()[8..] == link_local(mac).octets()[8..]
        }
        _ => false,
    })
}

fn address(message: &AddressMessage, interface: &str) -> Option<Address> {
    let mut local = None;
    let mut peer = None;
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => peer = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    // IPv6 without a peer has only the one attribute.
    let ip = local.or(peer)?;
    if flags.contains(AddressFlags::Dadfailed) {
        log::warn!("{interface}: {ip} is left out: another host has it");
        return None;
    }
    let is_peer = peer.is_some_and(|peer| peer != ip);
    let prefix = if is_peer {
        // The prefix is not one of this address, and the routes tell the rest.
        host_prefix(ip)
    } else {
        message.header.prefix_len.min(host_prefix(ip))
    };
    Some(Address {
        ip,
        prefix,
        no_prefix_route: flags.contains(AddressFlags::Noprefixroute),
        tentative: flags.contains(AddressFlags::Tentative),
    })
}

/// The address that the kernel derives from a MAC (RFC 4291, appendix A).
fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let bytes = [
        0xfe,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        a ^ 2,
        b,
        c,
        0xff,
        0xfe,
        d,
        e,
        f,
    ];
    Ipv6Addr::from(bytes)
}
