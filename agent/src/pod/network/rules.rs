//! Policy rules: by which packets the kernel looks into which table of routes.

use std::net::IpAddr;

use futures::TryStreamExt;
use nacre_protocol::agent::{PolicyRule, PortRange, RuleAction};
use rtnetlink::packet_core::Nla;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::IpProtocol;
use rtnetlink::packet_route::route::RouteProtocol;
use rtnetlink::packet_route::rule::{
    RuleAction as KernelAction, RuleAttribute, RuleFlags, RuleMessage, RulePortRange,
};
use rtnetlink::{Handle, IpVersion};

use super::plan::{Prefix, invalid, is_name, prefix, read_each};
use crate::error::Error;

/// One rule, in the one form that says what it does, so that equal ones are equal.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Rule(RuleMessage);

impl Rule {
    fn new(mut message: RuleMessage) -> Self {
        // The attribute says more.
        message.header.table = 0;
        message.header.flags &= RuleFlags::Invert;
        let attributes = &mut message.attributes;
        attributes.retain(|attribute| {
            !matches!(
                attribute,
                // Who made it, and that it is without these.
                RuleAttribute::Protocol(_)
                    | RuleAttribute::SuppressPrefixLen(u32::MAX)
                    | RuleAttribute::SuppressIfGroup(u32::MAX)
                    | RuleAttribute::FwMark(0)
            )
        });
        // The kernel does not tell 0, and takes another one when it is not told.
        let is_priority =
            |attribute: &RuleAttribute| matches!(attribute, RuleAttribute::Priority(_));
        if !attributes.iter().any(is_priority) {
            attributes.push(RuleAttribute::Priority(0));
        }
        attributes.sort_by_key(Nla::kind);
        Self(message)
    }

    fn family(&self) -> AddressFamily {
        self.0.header.family
    }

    fn priority(&self) -> u32 {
        let mut attributes = self.0.attributes.iter();
        let priority = attributes.find_map(|attribute| match attribute {
            RuleAttribute::Priority(priority) => Some(*priority),
            _ => None,
        });
        priority.unwrap_or_default()
    }
}

/// Reads a request's rules.
pub(super) fn read(rules: &[PolicyRule]) -> Result<Vec<Rule>, Error> {
    read_each(rules, "policy_rules", read_rule)
}

fn read_rule(rule: &PolicyRule, field: &str) -> Result<Rule, Error> {
    let source = prefix(&rule.source, &format!("{field}.source"))?;
    let destination = prefix(&rule.destination, &format!("{field}.destination"))?;
    let family = family(source.address);
    if self::family(destination.address) != family {
        let reason = "is of another family than the source";
        return Err(invalid(&format!("{field}.destination"), reason));
    }
    let mut message = RuleMessage::default();
    message.header.family = family;
    message.header.src_len = source.length;
    message.header.dst_len = destination.length;
    message.header.tos = byte(rule.tos, &format!("{field}.tos"))?;
    message.header.action = action(rule, field)?;
    if rule.inverted {
        message.header.flags = RuleFlags::Invert;
    }
    message.attributes = attributes(rule, source, destination, field)?;
    Ok(Rule::new(message))
}

fn attributes(
    rule: &PolicyRule,
    source: Prefix,
    destination: Prefix,
    field: &str,
) -> Result<Vec<RuleAttribute>, Error> {
    let mut attributes = vec![
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Table(rule.table),
    ];
    if source.length != 0 {
        attributes.push(RuleAttribute::Source(source.address));
    }
    if destination.length != 0 {
        attributes.push(RuleAttribute::Destination(destination.address));
    }
    let name = interface(&rule.input_interface, &format!("{field}.input_interface"))?;
    attributes.extend(name.map(RuleAttribute::Iifname));
    let name = interface(&rule.output_interface, &format!("{field}.output_interface"))?;
    attributes.extend(name.map(RuleAttribute::Oifname));
    if rule.mark != 0 || rule.mark_mask != 0 {
        attributes.push(RuleAttribute::FwMark(rule.mark));
        attributes.push(RuleAttribute::FwMask(rule.mark_mask));
    }
    let protocol = byte(rule.ip_protocol, &format!("{field}.ip_protocol"))?;
    if protocol != 0 {
        attributes.push(RuleAttribute::IpProtocol(IpProtocol::from(protocol)));
    }
    let range = ports(rule.source_ports.as_ref(), &format!("{field}.source_ports"))?;
    attributes.extend(range.map(RuleAttribute::SourcePortRange));
    let range = ports(
        rule.destination_ports.as_ref(),
        &format!("{field}.destination_ports"),
    )?;
    attributes.extend(range.map(RuleAttribute::DestinationPortRange));
    let length = rule.suppress_prefix_length;
    attributes.extend(length.map(RuleAttribute::SuppressPrefixLen));
    Ok(attributes)
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn byte(number: u32, field: &str) -> Result<u8, Error> {
    u8::try_from(number).map_err(|_| invalid(field, "must be below 256"))
}

fn action(rule: &PolicyRule, field: &str) -> Result<KernelAction, Error> {
    match rule.action.enum_value() {
        Ok(RuleAction::LOOK_UP) => Ok(KernelAction::ToTable),
        Ok(RuleAction::BLACKHOLE) => Ok(KernelAction::Blackhole),
        Ok(RuleAction::UNREACHABLE) => Ok(KernelAction::Unreachable),
        Ok(RuleAction::PROHIBIT) => Ok(KernelAction::Prohibit),
        Err(number) => Err(invalid(
            &format!("{field}.action"),
            format!("{number} is none"),
        )),
    }
}

fn interface(name: &str, field: &str) -> Result<Option<String>, Error> {
    if name.is_empty() {
        return Ok(None);
    }
    if name != "lo" && !is_name(name) {
        let reason = format!("{name:?} is no name of an interface");
        return Err(invalid(field, reason));
    }
    Ok(Some(name.to_owned()))
}

fn ports(range: Option<&PortRange>, field: &str) -> Result<Option<RulePortRange>, Error> {
    let Some(range) = range else {
        return Ok(None);
    };
    match (u16::try_from(range.first), u16::try_from(range.last)) {
        (Ok(start), Ok(end)) if start <= end => Ok(Some(RulePortRange { start, end })),
        _ => Err(invalid(field, "is no range of ports")),
    }
}

/// Whether the kernel has made a rule by itself, for a new network namespace.
fn is_the_kernels(message: &RuleMessage) -> bool {
    let kernel = RuleAttribute::Protocol(RouteProtocol::Kernel);
    message.attributes.contains(&kernel)
}

/// Makes the rules of each family that has some; those that are there stay. What was made before
/// and is not planned any more goes, and so do the kernel's own, which a plan names too.
pub(super) async fn apply(handle: &Handle, made: &[Rule], rules: &[Rule]) -> Result<(), Error> {
    for (version, family) in [
        (IpVersion::V4, AddressFamily::Inet),
        (IpVersion::V6, AddressFamily::Inet6),
    ] {
        let planned: Vec<_> = rules
            .iter()
            .filter(|rule| rule.family() == family)
            .collect();
        if planned.is_empty() {
            continue;
        }
        let there: Vec<_> = handle
            .rule()
            .get(version)
            .execute()
            .map_ok(|message| (is_the_kernels(&message), Rule::new(message)))
            .try_collect()
            .await
            .map_err(|error| Error::internal("cannot list the policy rules", error))?;
        // First the new ones, so that there is always a way to somewhere.
        let is_there = |rule: &Rule| there.iter().any(|(_, other)| other == rule);
        for rule in planned.iter().filter(|rule| !is_there(rule)) {
            let mut request = handle.rule().add();
            *request.message_mut() = rule.0.clone();
            let added = request.execute().await;
            added.map_err(|error| failed("add", rule, error))?;
        }
        let outdated = there.iter().filter(|(kernels, rule)| {
            (*kernels || made.contains(rule)) && !planned.contains(&rule)
        });
        for (_, rule) in outdated {
            let removed = handle.rule().del(rule.0.clone()).execute().await;
            removed.map_err(|error| failed("remove", rule, error))?;
        }
    }
    Ok(())
}

fn failed(what: &str, rule: &Rule, error: rtnetlink::Error) -> Error {
    let rule = rule.priority();
    Error::internal(&format!("cannot {what} the policy rule {rule}"), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule() -> PolicyRule {
        PolicyRule {
            priority: 7,
            source: "10.0.0.2/32".to_owned(),
            destination: "0.0.0.0/0".to_owned(),
            table: 100,
            ..PolicyRule::default()
        }
    }

    fn refused(rule: PolicyRule) -> String {
        read(&[rule]).unwrap_err().to_string()
    }

    #[test]
    fn a_rule_is_known_again_as_the_kernel_tells_it() {
        let planned = &read(&[rule()]).unwrap()[0];
        let mut told = RuleMessage::default();
        told.header.family = AddressFamily::Inet;
        told.header.src_len = 32;
        told.header.table = 100;
        told.header.action = KernelAction::ToTable;
        told.attributes = vec![
            RuleAttribute::Table(100),
            RuleAttribute::SuppressPrefixLen(u32::MAX),
            RuleAttribute::Protocol(RouteProtocol::Boot),
            RuleAttribute::Priority(7),
            RuleAttribute::Source([10, 0, 0, 2].into()),
        ];
        assert_eq!(Rule::new(told.clone()), *planned);
        assert_eq!(planned.priority(), 7);
        told.attributes.push(RuleAttribute::FwMask(1));
        assert_ne!(Rule::new(told), *planned);
    }

    #[test]
    fn nonsense_is_refused_by_its_place() {
        read(&[rule()]).unwrap();
        let field = |name: &str| format!("policy_rules[0].{name}: ");
        let mut broken = rule();
        broken.source = "10.0.0.2".to_owned();
        assert!(refused(broken).starts_with(&field("source")));
        let mut broken = rule();
        broken.destination = "::/0".to_owned();
        assert!(refused(broken).starts_with(&field("destination")));
        let mut broken = rule();
        broken.input_interface = "a/b".to_owned();
        assert!(refused(broken).starts_with(&field("input_interface")));
        for (first, last) in [(2, 1), (0, 1 << 16)] {
            let mut broken = rule();
            broken.source_ports = Some(PortRange {
                first,
                last,
                ..PortRange::default()
            })
            .into();
            assert!(refused(broken).starts_with(&field("source_ports")));
        }
        for (name, mut broken) in [("tos", rule()), ("ip_protocol", rule())] {
            (broken.tos, broken.ip_protocol) = if name == "tos" { (256, 0) } else { (0, 256) };
            assert!(refused(broken).starts_with(&field(name)));
        }
        let mut broken = rule();
        broken.action = protobuf::EnumOrUnknown::from_i32(9);
        assert!(refused(broken).starts_with(&field("action")));
    }
}
