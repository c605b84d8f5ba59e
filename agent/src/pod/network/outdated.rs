//! What an earlier plan has made and the present one does not name.

use super::plan::{Link, LinkAddress};

/// Compares what was made with what is planned, for each interface that both name: of it
/// what goes, and nothing else. One that is not named any more stays as it is.
pub(super) fn between(made: &[Link], planned: &[Link]) -> Vec<Link> {
    made.iter()
        .filter_map(|old| {
            let new = planned.iter().find(|new| new.mac == old.mac)?;
            Some(Link {
                addresses: without(&old.addresses, &new.addresses, is_same_address),
                routes: without(&old.routes, &new.routes, PartialEq::eq),
                neighbours: without(&old.neighbours, &new.neighbours, PartialEq::eq),
                ..old.clone()
            })
        })
        .collect()
}

fn without<T: Clone>(old: &[T], new: &[T], is_same: fn(&T, &T) -> bool) -> Vec<T> {
    old.iter()
        .filter(|old| !new.iter().any(|new| is_same(old, new)))
        .cloned()
        .collect()
}

/// Whether nobody else has it, does not make it another address.
fn is_same_address(left: &LinkAddress, right: &LinkAddress) -> bool {
    (left.prefix, left.no_prefix_route) == (right.prefix, right.no_prefix_route)
}

#[cfg(test)]
mod tests {
    use nacre_protocol::agent::{Address, Interface, Neighbour, Route};

    use super::super::plan;
    use super::*;

    fn link(mac: u8, addresses: &[&str], gateway: &str) -> Link {
        let address = |address: &&str| Address {
            address: (*address).to_owned(),
            ..Address::default()
        };
        let interface = Interface {
            name: "eth0".to_owned(),
            mac: vec![2, 0, 0, 0, 0, mac],
            addresses: addresses.iter().map(address).collect(),
            routes: vec![Route {
                destination: "0.0.0.0/0".to_owned(),
                gateway: gateway.to_owned(),
                ..Route::default()
            }],
            neighbours: vec![Neighbour {
                address: gateway.to_owned(),
                mac: vec![2, 0, 0, 0, 0, 9],
                ..Neighbour::default()
            }],
            ..Interface::default()
        };
        plan::read(&[interface]).unwrap().remove(0)
    }

    #[test]
    fn what_both_plans_name_stays() {
        let made = link(1, &["10.0.0.2/24"], "10.0.0.1");
        let planned = link(1, &["10.0.0.2/24", "10.0.0.3/24"], "10.0.0.1");
        let outdated = &between(&[made], &[planned])[0];
        assert_eq!(outdated.addresses, []);
        assert_eq!(outdated.routes, []);
        assert_eq!(outdated.neighbours, []);
    }

    #[test]
    fn an_address_that_was_asked_for_in_the_meantime_stays() {
        let planned = link(1, &["10.0.0.2/24"], "10.0.0.1");
        let mut made = planned.clone();
        made.addresses[0].tentative = true;
        assert_eq!(between(&[made], &[planned])[0].addresses, []);
    }

    #[test]
    fn what_is_not_named_any_more_goes() {
        let made = link(1, &["10.0.0.2/24", "10.0.0.3/24"], "10.0.0.1");
        let planned = link(1, &["10.0.0.3/24"], "10.0.0.254");
        let outdated = &between(std::slice::from_ref(&made), &[planned])[0];
        assert_eq!(outdated.addresses, made.addresses[..1]);
        assert_eq!(outdated.routes, made.routes);
        assert_eq!(outdated.neighbours, made.neighbours);
    }

    #[test]
    fn an_interface_that_is_not_named_keeps_all() {
        let made = link(1, &["10.0.0.2/24"], "10.0.0.1");
        let planned = link(2, &[], "10.0.0.254");
        assert_eq!(between(&[made], &[planned]), []);
    }
}
