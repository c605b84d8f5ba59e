//! What a network namespace holds, told as the guest is to have it.

use std::fmt::Display;

use futures::TryStreamExt;
use nacre_protocol::agent::{Interface, Neighbour};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::{Handle, RouteMessageBuilder};

use super::NetworkError;
use super::addresses::Address;
use super::netlink::failed;
use super::{addresses, ipv6, redirect, routes, tap};

/// An Ethernet interface that a guest can take over.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) mac: [u8; 6],
    pub(super) mtu: u16,
    /// Somebody has made it a tap, the other end of which is the guest's.
    pub(super) is_tap: bool,
    /// All of it for the guest.
    pub(super) interface: Interface,
}

impl Link {
    /// Whether the guest will make addresses and routes of its own.
    pub(super) fn accepts_router_advertisements(&self) -> bool {
        let ipv6 = self.interface.ipv6.as_ref();
        ipv6.is_some_and(|ipv6| !ipv6.disabled && ipv6.accept_ra != 0)
    }
}

/// Describes the namespace's interfaces, in the kernel's order. One that is down
/// is left out, and so are `lo` and the ports of a bridge or bond.
///
/// # Errors
/// [`NetworkError::Unsupported`] and [`NetworkError::InUse`] rather than a
/// description that lacks something.
pub(super) async fn links(netlink: &Handle) -> Result<Vec<Link>, NetworkError> {
    let messages = used(netlink).await?;
    let messages: Vec<_> = messages.iter().collect();
    refuse_stacked(&messages)?;
    for message in &messages {
        refuse_tap_in_use(message, &messages)?;
    }
    let links = messages.into_iter().map(link);
    let mut links = links.collect::<Result<Vec<_>, _>>()?;
    leave_out_wiring(netlink, &mut links).await?;
    refuse_equal_macs(&links)?;
    fill(netlink, &mut links).await?;
    Ok(links)
}

/// Describes those of a guest's interfaces, by index, that are there and up; and tells
/// index and name of all other interfaces of the namespace.
///
/// # Errors
/// [`NetworkError::Unsupported`] rather than a description that lacks something.
pub(super) async fn again(
    netlink: &Handle,
    indices: &[u32],
) -> Result<(Vec<Link>, Vec<(u32, String)>), NetworkError> {
    let messages = used(netlink).await?;
    let (ours, others): (Vec<_>, Vec<_>) = messages
        .iter()
        .partition(|message| indices.contains(&message.header.index));
    let mut links = ours.into_iter().map(link).collect::<Result<Vec<_>, _>>()?;
    fill(netlink, &mut links).await?;
    let others = others
        .into_iter()
        .map(|message| (message.header.index, name(message).to_owned()));
    Ok((links, others.collect()))
}

/// The namespace's interfaces that its processes talk through.
async fn used(netlink: &Handle) -> Result<Vec<LinkMessage>, NetworkError> {
    let mut messages: Vec<LinkMessage> = netlink
        .link()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(failed("list network interfaces"))?;
    messages.retain(is_used);
    Ok(messages)
}

/// Fills in addresses, routes and neighbours.
async fn fill(netlink: &Handle, links: &mut [Link]) -> Result<(), NetworkError> {
    if links.is_empty() {
        return Ok(());
    }
    let addresses: Vec<_> = netlink
        .address()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(failed("list addresses"))?;
    let routes = routes(netlink).await?;
    let neighbours: Vec<_> = netlink
        .neighbours()
        .get()
        .execute()
        .try_collect()
        .await
        .map_err(failed("list neighbours"))?;
    routes::refuse_unsupported(&routes, links)?;
    for link in links {
        let mut addresses = addresses::of(link, &addresses);
        for address in &mut addresses {
            address.without_route_unless(|network| routes::has_kernels(link, &routes, network));
        }
        link.interface.routes = routes::of(link, &routes, &addresses);
        link.interface.addresses = addresses.iter().map(Address::message).collect();
        link.interface.neighbours = permanent_neighbours(link.index, &neighbours);
    }
    Ok(())
}

async fn routes(netlink: &Handle) -> Result<Vec<RouteMessage>, NetworkError> {
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessageBuilder::<std::net::IpAddr>::new().build();
        request.header.address_family = family;
        let family: Vec<_> = netlink
            .route()
            .get(request)
            .execute()
            .try_collect()
            .await
            .map_err(failed("list routes"))?;
        routes.extend(family);
    }
    Ok(routes)
}

/// Whether the interface is one that the namespace's processes talk through.
fn is_used(link: &LinkMessage) -> bool {
    let flags = link.header.flags;
    let is_port = link
        .attributes
        .iter()
        .any(|attribute| matches!(attribute, LinkAttribute::Controller(_)));
    flags.contains(LinkFlags::Up) && !flags.contains(LinkFlags::Loopback) && !is_port
}

/// Refuses an interface (VLAN, macvlan) on top of another of the pod's: what it
/// is to receive goes to the guest by the lower one.
fn refuse_stacked(links: &[&LinkMessage]) -> Result<(), NetworkError> {
    for upper in links {
        let mut other_namespace = false;
        let mut lower = None;
        for attribute in &upper.attributes {
            match attribute {
                LinkAttribute::Link(index) => lower = Some(*index),
                LinkAttribute::LinkNetNsId(_) => other_namespace = true,
                _ => {}
            }
        }
        let lower = links
            .iter()
            .find(|link| !other_namespace && Some(link.header.index) == lower);
        if let Some(lower) = lower {
            return Err(NetworkError::Unsupported(format!(
                "interface {} hangs on interface {} of the same namespace",
                name(upper),
                name(lower)
            )));
        }
    }
    Ok(())
}

/// Leaves out what leads to a tap that the guest takes over: an interface of which all
/// that arrives goes there.
async fn leave_out_wiring(netlink: &Handle, links: &mut Vec<Link>) -> Result<(), NetworkError> {
    let taps: Vec<_> = links
        .iter()
        .filter(|link| link.is_tap)
        .map(|link| link.index)
        .collect();
    if taps.is_empty() {
        return Ok(());
    }
    let mut wiring = Vec::new();
    for link in links.iter().filter(|link| !link.is_tap) {
        let targets = redirect::targets(netlink, link.index).await?;
        if targets.iter().any(|target| taps.contains(target)) {
            wiring.push(link.index);
        }
    }
    links.retain(|link| !wiring.contains(&link.index));
    Ok(())
}

fn refuse_equal_macs(links: &[Link]) -> Result<(), NetworkError> {
    for (position, link) in links.iter().enumerate() {
        if let Some(other) = links[..position].iter().find(|other| other.mac == link.mac) {
            return Err(NetworkError::Unsupported(format!(
                "interfaces {} and {} have the same MAC address, by which the guest tells \
                 interfaces apart",
                other.interface.name, link.interface.name
            )));
        }
    }
    Ok(())
}

/// Refuses a tap that a pod, or somebody else, has open.
fn refuse_tap_in_use(message: &LinkMessage, all: &[&LinkMessage]) -> Result<(), NetworkError> {
    if !is_tap(message) || message.header.link_layer_type != LinkLayerType::Ether {
        return Ok(());
    }
    let name = name(message);
    if let Some(interface) = pod_of_tap(name, all) {
        return Err(NetworkError::InUse(interface));
    }
    // It has a carrier as long as somebody has it open.
    if message.header.flags.contains(LinkFlags::LowerUp) {
        return Err(NetworkError::InUse(name.into()));
    }
    Ok(())
}

/// The interface without addresses, routes and neighbours.
fn link(message: &LinkMessage) -> Result<Link, NetworkError> {
    let name = name(message);
    let unsupported = |what: &dyn Display| {
        Err(NetworkError::Unsupported(format!(
            "interface {name} {what}"
        )))
    };
    if message.header.link_layer_type != LinkLayerType::Ether {
        return unsupported(&"is not Ethernet");
    }
    let mut mac = None;
    let mut mtu = None;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(bytes) => mac = <[u8; 6]>::try_from(bytes.as_slice()).ok(),
            LinkAttribute::Mtu(bytes) => mtu = u16::try_from(*bytes).ok(),
            _ => {}
        }
    }
    let (mac, mtu) = match (mac, mtu) {
        (None | Some([0, 0, 0, 0, 0, 0]), _) => return unsupported(&"has no MAC address"),
        (_, None) => return unsupported(&"has an MTU above 65535"),
        (Some(mac), Some(mtu)) => (mac, mtu),
    };
    Ok(Link {
        index: message.header.index,
        mac,
        mtu,
        is_tap: is_tap(message),
        interface: Interface {
            name: name.into(),
            mac: mac.into(),
            mtu: mtu.into(),
            ipv6: ipv6::of(message).into(),
            ..Interface::default()
        },
    })
}

fn name(link: &LinkMessage) -> &str {
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.as_str()),
            _ => None,
        })
        .unwrap_or_default()
}

fn is_tap(link: &LinkMessage) -> bool {
    link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.contains(&LinkInfo::Kind(InfoKind::Tun)),
        _ => false,
    })
}

/// The interface that the tap of a running pod belongs to.
fn pod_of_tap(tap: &str, links: &[&LinkMessage]) -> Option<String> {
    let index: u32 = tap.strip_prefix(tap::NAME_PREFIX)?.parse().ok()?;
    let link = links.iter().find(|link| link.header.index == index)?;
    Some(name(link).into())
}

fn permanent_neighbours(index: u32, messages: &[NeighbourMessage]) -> Vec<Neighbour> {
    messages
        .iter()
        .filter(|message| {
            message.header.ifindex == index && message.header.state == NeighbourState::Permanent
        })
        .filter_map(neighbour)
        .collect()
}

fn neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    let mut neighbour = Neighbour::default();
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                neighbour.address = ip.to_string();
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                neighbour.address = ip.to_string();
            }
            NeighbourAttribute::LinkLayerAddress(mac) => neighbour.mac.clone_from(mac),
            _ => {}
        }
    }
    (!neighbour.address.is_empty() && neighbour.mac.len() == 6).then_some(neighbour)
}
