//! What an interface does of IPv6 by itself.

use nacre_protocol::agent::Ipv6;
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, Inet6DevConf, LinkAttribute, LinkMessage,
};

/// The kernel parameters that the guest must have for this interface; none where it has
/// no IPv6, since the host has not or for its small MTU.
pub(super) fn of(link: &LinkMessage) -> Option<Ipv6> {
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::AfSpecUnspec(families) => families.iter().find_map(parameters),
            _ => None,
        })
        .map(parse)
}

fn parameters(family: &AfSpecUnspec) -> Option<&Inet6DevConf> {
    let AfSpecUnspec::Inet6(inet6) = family else {
        return None;
    };
    inet6.iter().find_map(|part| match part {
        AfSpecInet6::DevConf(parameters) => Some(parameters),
        _ => None,
    })
}

fn parse(parameters: &Inet6DevConf) -> Ipv6 {
    let accept_ra = match parameters.accept_ra {
        // Routers do not accept advertisements; a guest is none.
        1 if parameters.forwarding != 0 => 0,
        other => u32::try_from(other).unwrap_or_default(),
    };
    Ipv6 {
        disabled: parameters.disable_ipv6 != 0,
        accept_ra,
        autoconf: parameters.autoconf != 0,
        ..Ipv6::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_router_accepts_advertisements_only_when_told_so() {
        for (accept_ra, forwarding, expected) in [
            (0, 0, 0),
            (1, 0, 1),
            (1, 1, 0),
            (2, 0, 2),
            (2, 1, 2),
            (-1, 0, 0),
        ] {
            let mut parameters = Inet6DevConf::default();
            parameters.accept_ra = accept_ra;
            parameters.forwarding = forwarding;
            assert_eq!(parse(&parameters).accept_ra, expected);
        }
    }
}
