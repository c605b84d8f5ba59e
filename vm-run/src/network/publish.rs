//! Ports of the host that lead into a pod, as people write them.

use std::net::IpAddr;
use std::str::FromStr;

use nacre_cni::{PortMapping, Protocol};

/// A published port: `[IP:]HOST:GUEST[/tcp|udp]`, an IPv6 address in brackets.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Published(pub(crate) PortMapping);

impl Published {
    /// Whether the host would not know which of both is meant.
    pub(crate) fn collides(&self, other: &Self) -> bool {
        let (one, other) = (&self.0, &other.0);
        one.host_port == other.host_port
            && one.protocol == other.protocol
            && (one.host_ip.is_none() || other.host_ip.is_none() || one.host_ip == other.host_ip)
    }
}

impl FromStr for Published {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (ports, protocol) = match text.split_once('/') {
            None => (text, Protocol::Tcp),
            Some((ports, "tcp")) => (ports, Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some((_, other)) => return Err(format!("{other:?} is neither tcp nor udp")),
        };
        let (rest, guest) = ports
            .rsplit_once(':')
            .ok_or("give [IP:]HOST:GUEST[/tcp|udp], such as 8080:80")?;
        let (ip, host) = match rest.rsplit_once(':') {
            None => (None, rest),
            Some((ip, host)) => (Some(address(ip)?), host),
        };
        Ok(Self(PortMapping {
            host_port: port(host)?,
            container_port: port(guest)?,
            protocol,
            host_ip: ip,
        }))
    }
}

fn address(text: &str) -> Result<IpAddr, String> {
    let wrong = || format!("{text:?} is no IP address (one of IPv6 goes into brackets)");
    let inner = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    match inner {
        Some(ip) => ip.parse().map(IpAddr::V6).map_err(|_| wrong()),
        None => text.parse().map(IpAddr::V4).map_err(|_| wrong()),
    }
}

fn port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(port @ 1..) => Ok(port),
        _ => Err(format!(
            "{text:?} is no port: give a number from 1 to 65535"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Published {
        text.parse().unwrap()
    }

    #[test]
    fn ports_are_read_as_people_write_them() {
        let ip = |text: &str| Some(text.parse().unwrap());
        for (text, host_ip, protocol) in [
            ("8080:80", None, Protocol::Tcp),
            ("8080:80/tcp", None, Protocol::Tcp),
            ("8080:80/udp", None, Protocol::Udp),
            ("127.0.0.1:8080:80", ip("127.0.0.1"), Protocol::Tcp),
            ("[::1]:8080:80/udp", ip("::1"), Protocol::Udp),
        ] {
            let expected = PortMapping {
                host_port: 8080,
                container_port: 80,
                protocol,
                host_ip,
            };
            assert_eq!(parse(text).0, expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_port_is_refused() {
        for text in [
            "",
            "80",
            ":80",
            "80:",
            "0:80",
            "80:0",
            "65536:80",
            "8080-8090:80",
            "::1:8080:80",
            "[127.0.0.1]:8080:80",
            "localhost:8080:80",
            "8080:80/sctp",
            "8080:80/",
        ] {
            assert!(text.parse::<Published>().is_err(), "{text}");
        }
    }

    #[test]
    fn one_port_of_the_host_leads_to_one_place() {
        for (one, other, collide) in [
            ("80:1", "80:2", true),
            ("80:1", "127.0.0.1:80:2", true),
            ("127.0.0.1:80:1", "127.0.0.2:80:1", false),
            ("80:1", "80:1/udp", false),
            ("80:1", "81:1", false),
        ] {
            assert_eq!(parse(one).collides(&parse(other)), collide, "{one} {other}");
        }
    }
}
