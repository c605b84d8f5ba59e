//! The resource limits that a specification sets.

use oci_spec::runtime::{PosixRlimit, PosixRlimitType};
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use super::report::Failure;

/// Sets the limits of a process, or of the calling one.
///
/// libcontainer would set them before it builds the container, and a low limit of files or
/// memory would end it there.
pub(super) fn set(pid: Option<Pid>, limits: Option<&[PosixRlimit]>) -> Result<(), Failure> {
    for (index, limit) in limits.unwrap_or_default().iter().enumerate() {
        let bounded = |value: u64| (value != u64::MAX).then_some(value);
        let wanted = Rlimit {
            current: bounded(limit.soft()),
            maximum: bounded(limit.hard()),
        };
        prlimit(pid, resource(limit.typ()), wanted)
            .map_err(|error| Failure::invalid(format!("process.rlimits[{index}]: {error}")))?;
    }
    Ok(())
}

fn resource(kind: PosixRlimitType) -> Resource {
    match kind {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::getrlimit;

    use super::*;

    fn limit(text: &str) -> PosixRlimit {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_limit_is_set_and_one_that_makes_no_sense_is_named() {
        let core = limit(r#"{"type": "RLIMIT_CORE", "soft": 1, "hard": 4096}"#);
        set(None, Some(std::slice::from_ref(&core))).unwrap();
        let now = getrlimit(Resource::Core);
        assert_eq!((now.current, now.maximum), (Some(1), Some(4096)));
        let upside_down = limit(r#"{"type": "RLIMIT_CORE", "soft": 2, "hard": 1}"#);
        let failure = set(None, Some(&[core, upside_down])).unwrap_err();
        assert!(failure.message.starts_with("process.rlimits[1]: "));
    }
}
