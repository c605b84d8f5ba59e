//! Policy rules, by which a namespace chooses among tables of routes.
//!
//! A namespace that has the kernel's own rules and no others has none to tell of. Else
//! the guest gets all of an address family. What cannot be said to it is refused: it
//! would choose other ways.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use nacre_protocol::agent::{PolicyRule, PortRange, RuleAction};
use rtnetlink::packet_route::IpProtocol;
use rtnetlink::packet_route::rule::{
    RuleAction as KernelAction, RuleAttribute, RuleFlags, RuleMessage, RulePortRange,
};
use rtnetlink::{Handle, IpVersion};
use rustix::io::Errno;

use super::NetworkError;
use super::addresses::Network;
use super::netlink::{errno, failed};

/// The kernel's own: priority and table (`local`, `main` and `default`).
const KERNELS: &[(u32, u32)] = &[(0, 255), (32766, 254), (32767, 253)];

/// IPv6 has no table `default`.
const KERNELS_V6: &[(u32, u32)] = &[(0, 255), (32766, 254)];

/// The rules that the guest must be given, which has interfaces of these names.
pub(super) async fn of(
    netlink: &Handle,
    interfaces: &[String],
) -> Result<Vec<PolicyRule>, NetworkError> {
    let mut rules = Vec::new();
    for (version, kernels) in [(IpVersion::V4, KERNELS), (IpVersion::V6, KERNELS_V6)] {
        let everything = match version {
            IpVersion::V4 => Ipv4Addr::UNSPECIFIED.into(),
            IpVersion::V6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        let Some(messages) = list(netlink, version).await? else {
            continue;
        };
        if are(&messages, kernels) {
            continue;
        }
        if messages.is_empty() {
            return Err(NetworkError::Unsupported(
                "an address family has no policy rules at all, not even the kernel's own".into(),
            ));
        }
        for message in &messages {
            rules.push(rule(message, everything, interfaces).map_err(|why| {
                let priority = priority(message);
                NetworkError::Unsupported(format!("policy rule {priority} {why}"))
            })?);
        }
    }
    Ok(rules)
}

/// The rules that a guest is to have which had `before`, now that the namespace has `now`: a
/// family that has no others any more goes back to the kernel's own.
pub(super) fn instead_of(before: &[PolicyRule], mut now: Vec<PolicyRule>) -> Vec<PolicyRule> {
    let families: [(IpAddr, _); 2] = [
        (Ipv4Addr::UNSPECIFIED.into(), KERNELS),
        (Ipv6Addr::UNSPECIFIED.into(), KERNELS_V6),
    ];
    for (everything, kernels) in families {
        let is_of_family = |rule: &PolicyRule| rule.source.contains(':') == everything.is_ipv6();
        if before.iter().any(is_of_family) && !now.iter().any(is_of_family) {
            now.extend(kernels.iter().map(|kernels| plain(everything, *kernels)));
        }
    }
    now
}

/// The rule that sends all to a table.
fn plain(everything: IpAddr, (priority, table): (u32, u32)) -> PolicyRule {
    PolicyRule {
        priority,
        table,
        source: everything_of(everything).to_string(),
        destination: everything_of(everything).to_string(),
        ..PolicyRule::default()
    }
}

/// None on a kernel that does not know the family, or no rules for it.
async fn list(
    netlink: &Handle,
    version: IpVersion,
) -> Result<Option<Vec<RuleMessage>>, NetworkError> {
    let rules = netlink.rule().get(version).execute().try_collect().await;
    match rules {
        Err(error) if matches!(errno(&error), Some(Errno::AFNOSUPPORT | Errno::OPNOTSUPP)) => {
            Ok(None)
        }
        rules => rules.map(Some).map_err(failed("list policy rules")),
    }
}

/// Whether these are the rules that every namespace has, and nothing else.
fn are(messages: &[RuleMessage], kernels: &[(u32, u32)]) -> bool {
    let is = |message: &RuleMessage, kernels: (u32, u32)| {
        let everything = Ipv4Addr::UNSPECIFIED.into();
        rule(message, everything, &[]).is_ok_and(|rule| rule == plain(everything, kernels))
    };
    messages.len() == kernels.len()
        && messages
            .iter()
            .zip(kernels)
            .all(|(message, kernels)| is(message, *kernels))
}

fn everything_of(address: IpAddr) -> Network {
    Network { address, prefix: 0 }
}

fn rule(
    message: &RuleMessage,
    everything: IpAddr,
    interfaces: &[String],
) -> Result<PolicyRule, String> {
    let header = &message.header;
    let mut rule = PolicyRule {
        tos: header.tos.into(),
        inverted: header.flags.contains(RuleFlags::Invert),
        action: action(header.action)?.into(),
        table: header.table.into(),
        ..PolicyRule::default()
    };
    let (mut source, mut destination) = (everything, everything);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Source(address) => source = *address,
            RuleAttribute::Destination(address) => destination = *address,
            RuleAttribute::Iifname(name) => rule.input_interface = known(name, interfaces)?,
            RuleAttribute::Oifname(name) => rule.output_interface = known(name, interfaces)?,
            RuleAttribute::FwMark(mark) => rule.mark = *mark,
            RuleAttribute::FwMask(mask) => rule.mark_mask = *mask,
            RuleAttribute::IpProtocol(protocol) => rule.ip_protocol = number(*protocol),
            RuleAttribute::SourcePortRange(range) => rule.source_ports = ports(range),
            RuleAttribute::DestinationPortRange(range) => rule.destination_ports = ports(range),
            RuleAttribute::Table(table) => rule.table = *table,
            // All ones: none.
            RuleAttribute::SuppressPrefixLen(u32::MAX)
            | RuleAttribute::SuppressIfGroup(u32::MAX) => {}
            RuleAttribute::SuppressPrefixLen(length) => rule.suppress_prefix_length = Some(*length),
            // Who made it.
            RuleAttribute::Protocol(_) => {}
            other => return Err(unsupported(other)),
        }
    }
    let prefix = |address, prefix| Network { address, prefix }.to_string();
    rule.source = prefix(source, header.src_len);
    rule.destination = prefix(destination, header.dst_len);
    Ok(rule)
}

fn action(action: KernelAction) -> Result<RuleAction, String> {
    match action {
        KernelAction::ToTable => Ok(RuleAction::LOOK_UP),
        KernelAction::Blackhole => Ok(RuleAction::BLACKHOLE),
        KernelAction::Unreachable => Ok(RuleAction::UNREACHABLE),
        KernelAction::Prohibit => Ok(RuleAction::PROHIBIT),
        other => Err(format!(
            "has the action {}, which is not carried over",
            format!("{other:?}").to_lowercase()
        )),
    }
}

fn known(name: &str, interfaces: &[String]) -> Result<String, String> {
    if name == "lo" || interfaces.iter().any(|known| known == name) {
        return Ok(name.into());
    }
    Err(format!("is for interface {name}, which the guest lacks"))
}

fn number(protocol: IpProtocol) -> u32 {
    u8::from(protocol).into()
}

fn ports(range: &RulePortRange) -> protobuf::MessageField<PortRange> {
    Some(PortRange {
        first: range.start.into(),
        last: range.end.into(),
        ..PortRange::default()
    })
    .into()
}

fn unsupported(attribute: &RuleAttribute) -> String {
    let what = match attribute {
        RuleAttribute::UidRange(_) => "users, who are others in a guest",
        RuleAttribute::L3MDev(_) => "VRFs, which the guest lacks",
        RuleAttribute::TunId(_) => "tunnels",
        RuleAttribute::SuppressIfGroup(_) => "groups of interfaces",
        RuleAttribute::Realm(_) => "realms",
        RuleAttribute::Goto(_) => "other rules",
        _ => "something that Nacre does not know",
    };
    format!("depends on {what}")
}

fn priority(message: &RuleMessage) -> u32 {
    let mut attributes = message.attributes.iter();
    let priority = attributes.find_map(|attribute| match attribute {
        RuleAttribute::Priority(priority) => Some(*priority),
        _ => None,
    });
    priority.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::rule::RuleUidRange;

    use super::*;

    const EVERYTHING: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

    fn message(priority: u32, table: u8, attributes: Vec<RuleAttribute>) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.action = KernelAction::ToTable;
        message.header.table = table;
        message.attributes = vec![
            RuleAttribute::Table(table.into()),
            RuleAttribute::SuppressPrefixLen(u32::MAX),
        ];
        if priority != 0 {
            let priority = RuleAttribute::Priority(priority);
            message.attributes.push(priority);
        }
        message.attributes.extend(attributes);
        message
    }

    fn kernels() -> Vec<RuleMessage> {
        let message = |(priority, table): &(u32, u32)| {
            message(*priority, u8::try_from(*table).unwrap(), Vec::new())
        };
        KERNELS.iter().map(message).collect()
    }

    #[test]
    fn the_kernels_rules_are_told_from_others() {
        assert!(are(&kernels(), KERNELS));
        let mut more = kernels();
        more.insert(1, message(1000, 100, Vec::new()));
        assert!(!are(&more, KERNELS));
        for place in 0..KERNELS.len() {
            let mut fewer = kernels();
            fewer.remove(place);
            assert!(!are(&fewer, KERNELS));
            let mut other = kernels();
            other[place].attributes.push(RuleAttribute::FwMask(1));
            assert!(!are(&other, KERNELS));
        }
    }

    #[test]
    fn a_family_without_rules_any_more_goes_back_to_the_kernels() {
        let special = |everything| PolicyRule {
            priority: 7,
            ..plain(everything, (7, 100))
        };
        let v6 = Ipv6Addr::UNSPECIFIED.into();
        let now = instead_of(&[special(EVERYTHING), special(v6)], vec![special(v6)]);
        let mut expected = vec![special(v6)];
        expected.extend(KERNELS.iter().map(|kernels| plain(EVERYTHING, *kernels)));
        assert_eq!(now, expected);
        assert_eq!(instead_of(&now, vec![special(v6)]), now, "and stays there");
        assert_eq!(instead_of(&[], Vec::new()), []);
    }

    #[test]
    fn a_rule_is_told_exactly() {
        let mut message = message(
            7,
            100,
            vec![
                RuleAttribute::Source([10, 0, 0, 2].into()),
                RuleAttribute::Iifname("lo".into()),
                RuleAttribute::Oifname("eth0".into()),
                RuleAttribute::FwMark(1),
                RuleAttribute::FwMask(3),
                RuleAttribute::SuppressPrefixLen(0),
                RuleAttribute::DestinationPortRange(RulePortRange { start: 80, end: 90 }),
            ],
        );
        message.header.src_len = 32;
        message.header.flags = RuleFlags::Invert;
        let rule = rule(&message, EVERYTHING, &["eth0".into()]).unwrap();
        let expected = PolicyRule {
            priority: 7,
            source: "10.0.0.2/32".into(),
            destination: "0.0.0.0/0".into(),
            input_interface: "lo".into(),
            output_interface: "eth0".into(),
            mark: 1,
            mark_mask: 3,
            destination_ports: ports(&RulePortRange { start: 80, end: 90 }),
            inverted: true,
            table: 100,
            suppress_prefix_length: Some(0),
            ..PolicyRule::default()
        };
        assert_eq!(rule, expected);
    }

    #[test]
    fn what_would_be_another_rule_is_refused() {
        let users = RuleAttribute::UidRange(RuleUidRange { start: 0, end: 9 });
        for (attribute, why) in [
            (users, "depends on users, who are others in a guest"),
            (
                RuleAttribute::L3MDev(true),
                "depends on VRFs, which the guest lacks",
            ),
            (
                RuleAttribute::Iifname("tun0".into()),
                "is for interface tun0, which the guest lacks",
            ),
        ] {
            let refusal = rule(&message(7, 100, vec![attribute]), EVERYTHING, &[]).unwrap_err();
            assert_eq!(refusal, why);
        }
        let mut goto = message(7, 0, Vec::new());
        goto.header.action = KernelAction::Goto;
        let refusal = rule(&goto, EVERYTHING, &[]).unwrap_err();
        assert_eq!(refusal, "has the action goto, which is not carried over");
    }
}
