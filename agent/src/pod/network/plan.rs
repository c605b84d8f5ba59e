//! A request's interfaces, checked and in the order they can be made.

use std::net::IpAddr;

use nacre_protocol::agent::{Address, Interface, Ipv6, Neighbour, Route, RouteMetric};

use crate::error::Error;

/// Interfaces of one pod.
const MAX_INTERFACES: usize = 64;

/// Addresses, routes or neighbours of one interface.
const MAX_ENTRIES: usize = 1024;

/// Bytes of a name without the zero that ends it (`IFNAMSIZ`).
const MAX_NAME: usize = 15;

/// Least MTU of a link that carries IPv4.
const MIN_MTU: u32 = 68;

/// Kinds of metrics of a route, from `RTAX_LOCK` to `RTAX_FASTOPEN_NO_COOKIE`.
const METRICS: std::ops::RangeInclusive<u16> = 1..=17;

/// `RTAX_CC_ALGO`, a text.
const CONGESTION_CONTROL: u16 = 16;

/// Scope of a route whose destination is on the link.
const SCOPE_LINK: u8 = 253;

pub(super) type Mac = [u8; 6];

/// One network interface.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Link {
    pub(super) name: String,
    pub(super) mac: Mac,
    /// 0 keeps the device's.
    pub(super) mtu: u32,
    pub(super) addresses: Vec<LinkAddress>,
    /// Those on the link before those that need a gateway on it.
    pub(super) routes: Vec<LinkRoute>,
    pub(super) neighbours: Vec<(IpAddr, Mac)>,
    pub(super) ipv6: LinkIpv6,
}

/// One address.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct LinkAddress {
    pub(super) prefix: Prefix,
    pub(super) no_prefix_route: bool,
    /// The guest asks whether another host has it.
    pub(super) tentative: bool,
}

/// What the kernel does of IPv6 by itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct LinkIpv6 {
    pub(super) disabled: bool,
    pub(super) accept_ra: u8,
    pub(super) autoconf: bool,
}

/// An address with the length of its network's prefix.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Prefix {
    pub(super) address: IpAddr,
    pub(super) length: u8,
}

/// One route.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct LinkRoute {
    pub(super) destination: Prefix,
    pub(super) gateway: Option<IpAddr>,
    pub(super) source: Option<IpAddr>,
    pub(super) scope: u8,
    pub(super) metric: u32,
    pub(super) onlink: bool,
    /// 0 is the main one.
    pub(super) table: u32,
    pub(super) metrics: Vec<Metric>,
}

/// Kind (`RTAX_*`) and value.
pub(super) type Metric = (u16, u32);

/// Reads a request's interfaces.
pub(super) fn read(interfaces: &[Interface]) -> Result<Vec<Link>, Error> {
    if interfaces.len() > MAX_INTERFACES {
        return Err(invalid("interfaces", format!("more than {MAX_INTERFACES}")));
    }
    interfaces
        .iter()
        .enumerate()
        .map(|(index, interface)| read_link(interface, &format!("interfaces[{index}]")))
        .collect()
}

pub(super) fn invalid(field: &str, reason: impl std::fmt::Display) -> Error {
    Error::InvalidArgument(format!("{field}: {reason}"))
}

fn read_link(interface: &Interface, field: &str) -> Result<Link, Error> {
    if !is_name(&interface.name) {
        let reason = format!("{:?} is no name of an interface", interface.name);
        return Err(invalid(&format!("{field}.name"), reason));
    }
    if interface.mtu != 0 && interface.mtu < MIN_MTU {
        return Err(invalid(
            &format!("{field}.mtu"),
            format!("must be at least {MIN_MTU}"),
        ));
    }
    let addresses = read_each(
        &interface.addresses,
        &format!("{field}.addresses"),
        read_address,
    )?;
    let mut routes = read_each(&interface.routes, &format!("{field}.routes"), read_route)?;
    routes.sort_by_key(|route| (route.scope != SCOPE_LINK, route.gateway.is_some()));
    Ok(Link {
        name: interface.name.clone(),
        mac: mac(&interface.mac, &format!("{field}.mac"))?,
        mtu: interface.mtu,
        addresses,
        routes,
        neighbours: read_each(
            &interface.neighbours,
            &format!("{field}.neighbours"),
            read_neighbour,
        )?,
        ipv6: read_ipv6(interface.ipv6.as_ref(), &format!("{field}.ipv6"))?,
    })
}

pub(super) fn read_each<T, U>(
    items: &[T],
    field: &str,
    read: impl Fn(&T, &str) -> Result<U, Error>,
) -> Result<Vec<U>, Error> {
    if items.len() > MAX_ENTRIES {
        return Err(invalid(field, format!("more than {MAX_ENTRIES}")));
    }
    items
        .iter()
        .enumerate()
        .map(|(index, item)| read(item, &format!("{field}[{index}]")))
        .collect()
}

pub(super) fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':');
    !name.is_empty()
        && name.len() <= MAX_NAME
        && !matches!(name, "." | ".." | "lo")
        && name.chars().all(allowed)
}

fn mac(bytes: &[u8], field: &str) -> Result<Mac, Error> {
    bytes
        .try_into()
        .map_err(|_| invalid(field, format!("has {} bytes, not 6", bytes.len())))
}

fn address(text: &str, field: &str) -> Result<IpAddr, Error> {
    text.parse()
        .map_err(|_| invalid(field, format!("{text:?} is no IP address")))
}

pub(super) fn prefix(text: &str, field: &str) -> Result<Prefix, Error> {
    let wrong = || invalid(field, format!("{text:?} is not in CIDR form"));
    let (host, length) = text.split_once('/').ok_or_else(wrong)?;
    let address: IpAddr = host.parse().map_err(|_| wrong())?;
    let length: u8 = length.parse().map_err(|_| wrong())?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    if length > longest {
        return Err(wrong());
    }
    Ok(Prefix { address, length })
}

fn read_address(address: &Address, field: &str) -> Result<LinkAddress, Error> {
    Ok(LinkAddress {
        prefix: prefix(&address.address, &format!("{field}.address"))?,
        no_prefix_route: address.no_prefix_route,
        tentative: address.tentative,
    })
}

fn read_ipv6(ipv6: Option<&Ipv6>, field: &str) -> Result<LinkIpv6, Error> {
    let Some(ipv6) = ipv6 else {
        return Ok(LinkIpv6 {
            disabled: true,
            accept_ra: 0,
            autoconf: false,
        });
    };
    let accept_ra = u8::try_from(ipv6.accept_ra)
        .ok()
        .filter(|value| *value <= 2);
    Ok(LinkIpv6 {
        disabled: ipv6.disabled,
        accept_ra: accept_ra
            .ok_or_else(|| invalid(&format!("{field}.accept_ra"), "must be at most 2"))?,
        autoconf: ipv6.autoconf,
    })
}

fn read_metric(metric: &RouteMetric, field: &str) -> Result<Metric, Error> {
    match u16::try_from(metric.kind) {
        Ok(kind) if METRICS.contains(&kind) && kind != CONGESTION_CONTROL => {
            Ok((kind, metric.value))
        }
        _ => Err(invalid(&format!("{field}.kind"), "is none of a number")),
    }
}

fn read_route(route: &Route, field: &str) -> Result<LinkRoute, Error> {
    let destination = prefix(&route.destination, &format!("{field}.destination"))?;
    let family = destination.address.is_ipv4();
    let same_family = |text: &str, field: String| -> Result<Option<IpAddr>, Error> {
        if text.is_empty() {
            return Ok(None);
        }
        let found = address(text, &field)?;
        if found.is_ipv4() != family {
            return Err(invalid(&field, "is of another family than the destination"));
        }
        Ok(Some(found))
    };
    Ok(LinkRoute {
        destination,
        gateway: same_family(&route.gateway, format!("{field}.gateway"))?,
        source: same_family(&route.source, format!("{field}.source"))?,
        scope: u8::try_from(route.scope)
            .map_err(|_| invalid(&format!("{field}.scope"), "must be below 256"))?,
        metric: route.metric,
        onlink: route.onlink,
        table: route.table,
        metrics: read_each(&route.metrics, &format!("{field}.metrics"), read_metric)?,
    })
}

fn read_neighbour(neighbour: &Neighbour, field: &str) -> Result<(IpAddr, Mac), Error> {
    Ok((
        address(&neighbour.address, &format!("{field}.address"))?,
        mac(&neighbour.mac, &format!("{field}.mac"))?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        Address {
            address: text.to_owned(),
            ..Address::default()
        }
    }

    fn interface() -> Interface {
        Interface {
            name: "eth0".to_owned(),
            mac: vec![2, 0, 0, 0, 0, 1],
            mtu: 1450,
            addresses: vec![address("10.88.0.5/16"), address("fd00::5/64")],
            ..Interface::default()
        }
    }

    fn route(destination: &str, gateway: &str, scope: u32) -> Route {
        Route {
            destination: destination.to_owned(),
            gateway: gateway.to_owned(),
            scope,
            ..Route::default()
        }
    }

    fn refused(interface: Interface) -> String {
        read(&[interface]).unwrap_err().to_string()
    }

    #[test]
    fn an_interface_is_read_as_the_host_has_it() {
        let links = read(&[interface()]).unwrap();
        assert_eq!(links[0].name, "eth0");
        assert_eq!(links[0].addresses[1].prefix.length, 64);
        assert!(links[0].addresses[1].prefix.address.is_ipv6());
        assert!(links[0].ipv6.disabled, "nothing is said of it");
    }

    #[test]
    fn routes_on_the_link_come_before_those_through_a_gateway() {
        let mut interface = interface();
        interface.routes = vec![
            route("0.0.0.0/0", "169.254.1.1", 0),
            route("10.88.0.0/16", "", 0),
            route("169.254.1.1/32", "", 253),
        ];
        let links = read(&[interface]).unwrap();
        let order: Vec<_> = links[0]
            .routes
            .iter()
            .map(|route| route.destination.length)
            .collect();
        assert_eq!(order, [32, 16, 0]);
    }

    #[test]
    fn nonsense_is_refused_by_its_place() {
        for name in ["", "lo", "..", "a/b", "a b", "sixteen-letters-", "é"] {
            let mut interface = interface();
            name.clone_into(&mut interface.name);
            assert!(
                refused(interface).starts_with("interfaces[0].name: "),
                "{name}"
            );
        }
        let mut broken = interface();
        broken.mac.pop();
        assert!(refused(broken).starts_with("interfaces[0].mac: "));
        let mut broken = interface();
        broken.mtu = 5;
        assert!(refused(broken).starts_with("interfaces[0].mtu: "));
        for text in [
            "10.0.0.1",
            "10.0.0.1/33",
            "host/8",
            "::1/129",
            "/",
            "1.2.3.4/-1",
        ] {
            let mut broken = interface();
            broken.addresses[1] = address(text);
            assert!(
                refused(broken).starts_with("interfaces[0].addresses[1].address: "),
                "{text}"
            );
        }
        let mut broken = interface();
        broken.routes = vec![route("0.0.0.0/0", "fe80::1", 0)];
        assert!(refused(broken).starts_with("interfaces[0].routes[0].gateway: "));
        for kind in [0, 16, 18, 1 << 16] {
            let mut broken = interface();
            broken.routes = vec![Route {
                metrics: vec![RouteMetric {
                    kind,
                    ..RouteMetric::default()
                }],
                ..route("0.0.0.0/0", "10.88.0.1", 0)
            }];
            let refusal = refused(broken);
            assert!(
                refusal.starts_with("interfaces[0].routes[0].metrics[0].kind: "),
                "{refusal}"
            );
        }
        let mut broken = interface();
        broken.ipv6 = Some(Ipv6 {
            accept_ra: 3,
            ..Ipv6::default()
        })
        .into();
        assert!(refused(broken).starts_with("interfaces[0].ipv6.accept_ra: "));
    }

    #[test]
    fn the_number_of_everything_is_bounded() {
        read(&vec![interface(); MAX_INTERFACES + 1]).unwrap_err();
        let mut many = interface();
        many.addresses = vec![address("10.0.0.1/8"); MAX_ENTRIES + 1];
        assert!(refused(many).starts_with("interfaces[0].addresses: "));
    }
}
