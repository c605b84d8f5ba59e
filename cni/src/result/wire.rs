//! Results as JSON. Here, everything is text of somebody else until it is checked:
//! numbers of entries and lengths are bounded, addresses and names are parsed, and an
//! error says which entry is wrong.

use std::fmt::Display;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{AddResult, Dns, Interface, InvalidResult, IpConfig, Route};
use crate::text::one_line;
use crate::version::Version;

/// Most interfaces, and most addresses, of one attachment.
const MAX_INTERFACES: usize = 256;
/// Most routes of one attachment.
const MAX_ROUTES: usize = 4096;
/// Most name servers, search domains or options.
const MAX_DNS: usize = 64;
/// Longest domain or resolver option, in bytes (a domain's bound in RFC 1035).
const MAX_DOMAIN: usize = 255;
/// Longest path or device name, in bytes (`PATH_MAX`).
const MAX_PATH: usize = 4096;

type Checked<T> = Result<T, InvalidResult>;

/// A list that plugins written in Go print as `null` when it is empty.
type List<T> = Option<Vec<T>>;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WireResult {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cni_version: Option<String>,
    #[serde(default, skip_serializing_if = "is_empty")]
    interfaces: List<WireInterface>,
    #[serde(default, skip_serializing_if = "is_empty")]
    ips: List<WireIp>,
    #[serde(default, skip_serializing_if = "is_empty")]
    routes: List<WireRoute>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dns: Option<WireDns>,
    /// The form of 0.2.0 and older, which is not ours.
    #[serde(default, skip_serializing)]
    ip4: Option<serde::de::IgnoredAny>,
    #[serde(default, skip_serializing)]
    ip6: Option<serde::de::IgnoredAny>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireInterface {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mac: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sandbox: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    socket_path: Option<String>,
    #[serde(default, rename = "pciID", skip_serializing_if = "Option::is_none")]
    pci_id: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct WireIp {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    address: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gateway: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    interface: Option<usize>,
}

#[derive(Serialize, Deserialize)]
struct WireRoute {
    dst: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gw: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    advmss: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    priority: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    table: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scope: Option<u8>,
}

#[derive(Serialize, Deserialize)]
struct WireDns {
    #[serde(default, skip_serializing_if = "is_empty")]
    nameservers: List<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    domain: Option<String>,
    #[serde(default, skip_serializing_if = "is_empty")]
    search: List<String>,
    #[serde(default, skip_serializing_if = "is_empty")]
    options: List<String>,
}

pub(super) fn read(json: &[u8], assumed: Version) -> Checked<AddResult> {
    let wire: WireResult =
        serde_json::from_slice(json).map_err(|error| invalid(&error.to_string()))?;
    if wire.ip4.is_some() || wire.ip6.is_some() {
        return Err(invalid("is in the form of CNI 0.2.0 (\"ip4\", \"ip6\")"));
    }
    let version = match present(wire.cni_version) {
        Some(version) => parse("cniVersion", &version)?,
        None => assumed,
    };
    let interfaces = each("interfaces", MAX_INTERFACES, wire.interfaces, |at, wire| {
        interface(at, wire)
    })?;
    let ips = each("ips", MAX_INTERFACES, wire.ips, |at, wire| {
        ip(at, &wire, interfaces.len())
    })?;
    let routes = each("routes", MAX_ROUTES, wire.routes, |at, wire| {
        route(at, &wire)
    })?;
    let dns = wire.dns.map(dns).transpose()?.unwrap_or_default();
    Ok(AddResult {
        version,
        interfaces,
        ips,
        routes,
        dns,
    })
}

fn interface(at: &str, wire: WireInterface) -> Checked<Interface> {
    let mac = match present(wire.mac) {
        Some(mac) => Some(parse(at, &mac)?),
        None => None,
    };
    let path = |path: Option<String>| match present(path) {
        Some(path) => printable(at, path, MAX_PATH).map(Some),
        None => Ok(None),
    };
    Ok(Interface {
        name: parse(at, &wire.name)?,
        mac,
        mtu: wire.mtu.filter(|&mtu| mtu != 0),
        sandbox: path(wire.sandbox)?,
        socket_path: path(wire.socket_path)?,
        pci_id: path(wire.pci_id)?,
    })
}

fn ip(at: &str, wire: &WireIp, interfaces: usize) -> Checked<IpConfig> {
    let address = cidr(at, &wire.address)?;
    let family = family(address);
    if wire
        .version
        .as_deref()
        .is_some_and(|version| version != family)
    {
        return Err(invalid(&format!(
            "{at}: {address} is not of the family it is said to be"
        )));
    }
    if wire.interface.is_some_and(|index| index >= interfaces) {
        return Err(invalid(&format!(
            "{at}: its interface is not in the list of interfaces"
        )));
    }
    Ok(IpConfig {
        address,
        gateway: address_or_none(at, wire.gateway.as_deref())?,
        interface: wire.interface,
    })
}

fn route(at: &str, wire: &WireRoute) -> Checked<Route> {
    Ok(Route {
        dst: cidr(at, &wire.dst)?,
        gw: address_or_none(at, wire.gw.as_deref())?,
        mtu: wire.mtu.filter(|&mtu| mtu != 0),
        advmss: wire.advmss.filter(|&advmss| advmss != 0),
        priority: wire.priority.filter(|&priority| priority != 0),
        table: wire.table,
        scope: wire.scope,
    })
}

fn dns(wire: WireDns) -> Checked<Dns> {
    let words = |what, list| {
        each(what, MAX_DNS, list, |at, word: String| {
            if word.is_empty() || word.contains(char::is_whitespace) {
                return Err(invalid(&format!("{at} is empty or has a space")));
            }
            printable(at, word, MAX_DOMAIN)
        })
    };
    let domain = present(wire.domain).map(|domain| vec![domain]);
    Ok(Dns {
        nameservers: each(
            "dns.nameservers",
            MAX_DNS,
            wire.nameservers,
            |at, server| address(at, &server),
        )?,
        domain: words("dns.domain", domain)?.pop(),
        search: words("dns.search", wire.search)?,
        options: words("dns.options", wire.options)?,
    })
}

/// The opposite way; `result` has nothing that its version does not.
pub(super) fn of(result: &AddResult) -> WireResult {
    let ip_family = result.version.has_ip_family();
    WireResult {
        cni_version: Some(result.version.to_string()),
        interfaces: Some(result.interfaces.iter().map(of_interface).collect()),
        ips: Some(result.ips.iter().map(|ip| of_ip(ip, ip_family)).collect()),
        routes: Some(result.routes.iter().map(of_route).collect()),
        dns: (result.dns != Dns::default()).then(|| of_dns(&result.dns)),
        ip4: None,
        ip6: None,
    }
}

fn of_interface(interface: &Interface) -> WireInterface {
    WireInterface {
        name: interface.name.to_string(),
        mac: interface.mac.as_ref().map(ToString::to_string),
        mtu: interface.mtu,
        sandbox: interface.sandbox.clone(),
        socket_path: interface.socket_path.clone(),
        pci_id: interface.pci_id.clone(),
    }
}

fn of_ip(ip: &IpConfig, with_family: bool) -> WireIp {
    WireIp {
        version: with_family.then(|| family(ip.address).to_owned()),
        address: ip.address.to_string(),
        gateway: ip.gateway.map(|gateway| gateway.to_string()),
        interface: ip.interface,
    }
}

fn of_route(route: &Route) -> WireRoute {
    WireRoute {
        dst: route.dst.to_string(),
        gw: route.gw.map(|gw| gw.to_string()),
        mtu: route.mtu,
        advmss: route.advmss,
        priority: route.priority,
        table: route.table,
        scope: route.scope,
    }
}

fn of_dns(dns: &Dns) -> WireDns {
    WireDns {
        nameservers: Some(dns.nameservers.iter().map(ToString::to_string).collect()),
        domain: dns.domain.clone(),
        search: Some(dns.search.clone()),
        options: Some(dns.options.clone()),
    }
}

/// Checks a list's entries, and names the one that is wrong.
fn each<W, T>(
    what: &str,
    most: usize,
    list: List<W>,
    mut check: impl FnMut(&str, W) -> Checked<T>,
) -> Checked<Vec<T>> {
    let list = list.unwrap_or_default();
    if list.len() > most {
        return Err(invalid(&format!("{what} has more than {most} entries")));
    }
    list.into_iter()
        .enumerate()
        .map(|(position, entry)| check(&format!("{what}[{position}]"), entry))
        .collect()
}

fn parse<T: FromStr<Err: Display>>(at: &str, text: &str) -> Checked<T> {
    text.parse()
        .map_err(|error| invalid(&format!("{at}: {error}")))
}

fn cidr(at: &str, text: &str) -> Checked<IpNet> {
    text.parse().map_err(|_| {
        let shown = one_line(text);
        invalid(&format!(
            "{at}: \"{shown}\" is not an address with a prefix such as 10.1.0.5/16"
        ))
    })
}

fn address(at: &str, text: &str) -> Checked<IpAddr> {
    text.parse().map_err(|_| {
        let shown = one_line(text);
        invalid(&format!("{at}: \"{shown}\" is not an IP address"))
    })
}

fn address_or_none(at: &str, text: Option<&str>) -> Checked<Option<IpAddr>> {
    match text {
        None | Some("") => Ok(None),
        Some(text) => address(at, text).map(Some),
    }
}

fn printable(at: &str, text: String, most: usize) -> Checked<String> {
    if text.len() > most {
        return Err(invalid(&format!(
            "{at}: a text is longer than {most} bytes"
        )));
    }
    if text.contains(char::is_control) {
        let shown = one_line(&text);
        return Err(invalid(&format!(
            "{at}: \"{shown}\" has a control character"
        )));
    }
    Ok(text)
}

/// Plugins print an empty text where they have nothing to say.
fn present(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

fn family(address: IpNet) -> &'static str {
    match address {
        IpNet::V4(_) => "4",
        IpNet::V6(_) => "6",
    }
}

fn is_empty<T>(list: &List<T>) -> bool {
    list.as_ref().is_none_or(Vec::is_empty)
}

fn invalid(why: &str) -> InvalidResult {
    InvalidResult(one_line(why))
}
