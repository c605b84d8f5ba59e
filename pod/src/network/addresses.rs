//! The addresses of an interface.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage,
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
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

impl Address {
    /// Whether a kernel that is given this address makes that route by itself.
    pub(super) fn implies_route_to(&self, destination: Network) -> bool {
        let network = match self.ip {
            IpAddr::V4(ip) => {
                let host = u32::MAX.checked_shr(self.prefix.into()).unwrap_or(0);
                Ipv4Addr::from_bits(ip.to_bits() & !host).into()
            }
            IpAddr::V6(ip) => {
                let host = u128::MAX.checked_shr(self.prefix.into()).unwrap_or(0);
                Ipv6Addr::from_bits(ip.to_bits() & !host).into()
            }
        };
        let network = Network {
            address: network,
            prefix: self.prefix,
        };
        destination == network
    }
}

/// The addresses that the guest must be given for `link`, in the kernel's order.
/// The link-local address that follows from the MAC is not among them: the
/// guest's kernel makes it.
pub(super) fn of(link: &Link, messages: &[AddressMessage]) -> Vec<Address> {
    let own_link_local = IpAddr::V6(link_local(link.mac));
    messages
        .iter()
        .filter(|message| message.header.index == link.index)
        .filter_map(|message| address(message, &link.interface.name))
        .filter(|address| address.ip != own_link_local)
        .collect()
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
    if message.header.flags.contains(AddressHeaderFlags::Dadfailed) {
        log::warn!("{interface}: {ip} is left out: another host has it");
        return None;
    }
    let is_peer = peer.is_some_and(|peer| peer != ip);
    let host_prefix = if ip.is_ipv4() { 32 } else { 128 };
    let prefix = if is_peer || flags.contains(AddressFlags::Noprefixroute) {
        // The prefix is not one of this address, and the routes tell the rest.
        host_prefix
    } else {
        message.header.prefix_len.min(host_prefix)
    };
    Some(Address { ip, prefix })
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
