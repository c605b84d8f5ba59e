//! The privilege of this process.

use rustix::process::geteuid;
use rustix::thread::{CapabilitySet, capabilities};

use super::Finding;

const WHAT: &str = "privilege";

pub(super) fn check() -> Finding {
    let held = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    judge(held, geteuid().as_raw())
}

fn judge(held: CapabilitySet, user: u32) -> Finding {
    let who = if user == 0 {
        "root".into()
    } else {
        format!("user {user}")
    };
    if !held.contains(CapabilitySet::SYS_ADMIN) {
        let advice = if user == 0 {
            "run it outside of this container, or give it that"
        } else {
            "run it with sudo"
        };
        return Finding::fail(WHAT, format!("{who}, without CAP_SYS_ADMIN"), advice);
    }
    if !held.contains(CapabilitySet::NET_ADMIN) {
        let advice = "pods get no network (--net) without it";
        return Finding::warn(WHAT, format!("{who}, without CAP_NET_ADMIN"), advice);
    }
    Finding::ok(WHAT, who)
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_person_is_sent_to_sudo_and_a_container_to_the_outside() {
        let person = judge(CapabilitySet::empty(), 1000);
        assert_eq!(
            person.to_string(),
            "FAIL  privilege: user 1000, without CAP_SYS_ADMIN — run it with sudo"
        );
        let container = judge(CapabilitySet::NET_ADMIN, 0);
        assert_eq!(container.verdict, Verdict::Fail);
        assert!(container.advice.contains("container"));
    }

    #[test]
    fn without_net_admin_only_the_network_is_missing() {
        assert_eq!(judge(CapabilitySet::SYS_ADMIN, 0).verdict, Verdict::Warn);
        assert_eq!(judge(CapabilitySet::all(), 0).verdict, Verdict::Ok);
    }
}
