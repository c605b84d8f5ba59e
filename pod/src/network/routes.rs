//! The routes of an interface.
//!
//! A guest gets those of all tables. The routes that its kernel will make by itself, for
//! the addresses and by advertisements of a router, are left out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nacre_protocol::agent::{Route, RouteMetric};
use rtnetlink::packet_core::Nla;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric as Metric,
    RouteProtocol, RouteType,
};

use super::NetworkError;
use super::addresses::{Address, Network};
use super::describe::Link;

/// `RT_TABLE_LOCAL`: the namespace's own addresses.
const LOCAL_TABLE: u32 = 255;

/// Metrics of the routes that the kernel makes for addresses of IPv4 and IPv6.
const METRIC_V4: u32 = 0;
const METRIC_V6: u32 = 256;

/// Refuses routes that the guest would have to have and cannot be told of.
pub(super) fn refuse_unsupported(
    messages: &[RouteMessage],
    links: &[Link],
) -> Result<(), NetworkError> {
    for message in messages.iter().filter(|message| is_somebodys(message)) {
        let interface = interface(message);
        if interface.is_some_and(|index| links.iter().all(|link| link.index != index)) {
            // Of `lo`, or of an interface that is down.
            continue;
        }
        if let Some(why) = unsupported(message) {
            let destination = destination(message);
            return Err(NetworkError::Unsupported(format!(
                "route to {destination} {why}"
            )));
        }
    }
    Ok(())
}

/// The routes that the guest must be given for `link`, which has these
/// addresses; those that a gateway of others may need come first.
pub(super) fn of(link: &Link, messages: &[RouteMessage], addresses: &[Address]) -> Vec<Route> {
    let accepts_ra = link.accepts_router_advertisements();
    let mut routes: Vec<_> = messages
        .iter()
        .filter(|message| {
            interface(message) == Some(link.index)
                && table(message) != LOCAL_TABLE
                && message.header.kind == RouteType::Unicast
                && !message.header.flags.contains(RouteFlags::Cloned)
                && !(accepts_ra && message.header.protocol == RouteProtocol::Ra)
                && !is_implied(message, addresses)
        })
        .map(route)
        .collect();
    routes.sort_by_key(|route| !route.gateway.is_empty());
    routes
}

/// Whether the kernel has made a route to this network for an address of `link`.
pub(super) fn has_kernels(link: &Link, messages: &[RouteMessage], network: Network) -> bool {
    messages.iter().any(|message| {
        interface(message) == Some(link.index)
            && is_for_an_address(message)
            && destination(message) == network
    })
}

/// Whether a person or a program made the route, not the kernel for itself.
fn is_somebodys(message: &RouteMessage) -> bool {
    message.header.protocol != RouteProtocol::Kernel
        && table(message) != LOCAL_TABLE
        && !message.header.flags.contains(RouteFlags::Cloned)
}

fn is_implied(message: &RouteMessage, addresses: &[Address]) -> bool {
    let destination = destination(message);
    let link_local = match destination.address {
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
        IpAddr::V4(_) => false,
    };
    is_for_an_address(message)
        && (link_local
            || addresses
                .iter()
                .any(|address| address.implies_route_to(destination)))
}

/// Whether it is as the kernel makes them for addresses.
fn is_for_an_address(message: &RouteMessage) -> bool {
    let usual = match message.header.address_family {
        AddressFamily::Inet6 => METRIC_V6,
        _ => METRIC_V4,
    };
    let mut metric = METRIC_V4;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Gateway(_) => return false,
            _ => {}
        }
    }
    message.header.protocol == RouteProtocol::Kernel
        && table(message) == u32::from(RouteHeader::RT_TABLE_MAIN)
        && metric == usual
}

fn unsupported(message: &RouteMessage) -> Option<String> {
    let header = &message.header;
    if header.kind != RouteType::Unicast {
        let kind = format!("{:?}", header.kind).to_lowercase();
        return Some(format!("is of type {kind}"));
    }
    if header.tos != 0 {
        return Some("depends on the type of service".into());
    }
    if header.source_prefix_length != 0 {
        return Some("depends on the source address".into());
    }
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::MultiPath(_) => Some("has several next hops".into()),
            RouteAttribute::Encap(_) => Some("encapsulates packets".into()),
            RouteAttribute::Via(_) => Some("has a gateway of another address family".into()),
            RouteAttribute::Metrics(metrics) if metrics.iter().any(|it| number(it).is_none()) => {
                Some("chooses a congestion control algorithm".into())
            }
            _ => None,
        })
}

fn interface(message: &RouteMessage) -> Option<u32> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        })
}

fn table(message: &RouteMessage) -> u32 {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Table(table) => Some(*table),
            _ => None,
        })
        .unwrap_or(message.header.table.into())
}

fn destination(message: &RouteMessage) -> Network {
    let everything = match message.header.address_family {
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => Ipv4Addr::UNSPECIFIED.into(),
    };
    let address = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(address) => ip(address),
            _ => None,
        })
        .unwrap_or(everything);
    Network {
        address,
        prefix: message.header.destination_prefix_length,
    }
}

fn route(message: &RouteMessage) -> Route {
    let mut route = Route {
        destination: destination(message).to_string(),
        scope: u8::from(message.header.scope).into(),
        onlink: message.header.flags.contains(RouteFlags::Onlink),
        table: match table(message) {
            main if main == u32::from(RouteHeader::RT_TABLE_MAIN) => 0,
            other => other,
        },
        ..Route::default()
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Gateway(address) => route.gateway = text(address),
            RouteAttribute::PrefSource(address) => route.source = text(address),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Metrics(metrics) => {
                route.metrics = metrics.iter().filter_map(metric).collect();
            }
            _ => {}
        }
    }
    route
}

/// None for what is said to be 0, as IPv6 says of all that nobody has set.
fn metric(metric: &Metric) -> Option<RouteMetric> {
    let value = number(metric)?;
    let metric = RouteMetric {
        kind: metric.kind().into(),
        value,
        ..RouteMetric::default()
    };
    (value != 0).then_some(metric)
}

/// The value of a metric that is a number.
fn number(metric: &Metric) -> Option<u32> {
    let mut bytes = [0; 4];
    if metric.value_len() != bytes.len() {
        return None;
    }
    metric.emit_value(&mut bytes);
    Some(u32::from_ne_bytes(bytes))
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

fn text(address: &RouteAddress) -> String {
    ip(address).map(|ip| ip.to_string()).unwrap_or_default()
}
