//! The pod's network: what the host's CNI made, made again in the guest.

mod apply;
mod channels;
mod outdated;
mod plan;
mod rules;

pub use apply::loopback_up;

use nacre_protocol::agent::{Interface, PolicyRule};

use self::plan::Link;
use self::rules::Rule;
use crate::error::Error;

/// What was made so far. What somebody in the guest has made besides is not ours to remove.
#[derive(Default)]
pub(super) struct Network {
    made: Vec<Link>,
    rules: Vec<Rule>,
}

impl Network {
    /// Makes the network as the request says; what is so already stays, and what an earlier
    /// request has made and this one does not name goes.
    pub(super) async fn configure(
        &mut self,
        interfaces: &[Interface],
        policy_rules: &[PolicyRule],
    ) -> Result<(), Error> {
        let links = plan::read(interfaces)?;
        let rules = rules::read(policy_rules)?;
        let (made, made_rules) = (self.made.clone(), self.rules.clone());
        // Should this end half-way, the next request has all of it to compare with.
        add_new(&mut self.made, &links);
        add_new(&mut self.rules, &rules);
        apply::apply((&made, &made_rules), (&links, &rules)).await?;
        (self.made, self.rules) = (links, rules);
        Ok(())
    }
}

/// Adds what is not there yet: a request that fails again and again adds nothing.
fn add_new<T: Clone + PartialEq>(made: &mut Vec<T>, planned: &[T]) {
    for new in planned {
        if !made.contains(new) {
            made.push(new.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_planned_again_is_remembered_once() {
        let mut made = vec![1];
        for _ in 0..3 {
            add_new(&mut made, &[1, 2]);
        }
        assert_eq!(made, [1, 2]);
    }
}
