//! Profiles and labels of security modules that the guest's kernel has not.
//!
//! One that somebody chose is refused. One that an engine gives to every container is left out,
//! with a warning: it keeps a container off the host's kernel and files, which are out of its
//! reach.

use serde_json::Value;

use super::Refusal;
use super::refuse::{find, quote, says_something};

/// Prefixes of the AppArmor profiles that engines give to every container.
const DEFAULT_PROFILES: &[&str] = &[
    "cri-containerd.apparmor.d",
    "containers-default-",
    "crio-default",
    "docker-default",
];

/// Types of the SELinux labels that engines give to every container and to its files
/// (container-selinux).
const DEFAULT_TYPES: &[&str] = &[
    "container_file_t",
    "container_init_t",
    "container_kvm_t",
    "container_ro_file_t",
    "container_t",
    "spc_t",
    "svirt_lxc_net_t",
    "svirt_sandbox_file_t",
];

/// A field with a profile or label.
struct Field {
    name: &'static str,
    module: &'static str,
    is_default: fn(&str) -> bool,
}

const FIELDS: &[Field] = &[
    Field {
        name: "process.apparmorProfile",
        module: "AppArmor",
        is_default: is_default_profile,
    },
    Field {
        name: "process.selinuxLabel",
        module: "SELinux",
        is_default: is_default_label,
    },
    Field {
        name: "linux.mountLabel",
        module: "SELinux",
        is_default: is_default_label,
    },
];

fn is_default_profile(profile: &str) -> bool {
    DEFAULT_PROFILES
        .iter()
        .any(|prefix| profile.starts_with(prefix))
}

/// Of the form `user:role:type:level`.
fn is_default_label(label: &str) -> bool {
    let kind = label.split(':').nth(2);
    kind.is_some_and(|kind| DEFAULT_TYPES.contains(&kind))
}

/// Refuses those that somebody chose, and says at `level` which others are left out.
///
/// # Errors
/// The first such field.
pub(super) fn check(spec: &Value, level: log::Level) -> Result<(), Refusal> {
    for field in FIELDS {
        for (name, value) in find(spec, field.name) {
            let label = value.as_str().unwrap_or_default();
            let module = field.module;
            if (field.is_default)(label) {
                log::log!(
                    level,
                    "{name}: {label:?} is left out: the guest's kernel has no {module}"
                );
            } else if says_something(value) && !(module == "AppArmor" && label == "unconfined") {
                let reason = format!(
                    "{}the guest's kernel has no {module}; it would not be enforced",
                    quote(value)
                );
                return Err(Refusal::new(name, reason));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn checked(pointer: &str, value: &str) -> Result<(), Refusal> {
        let mut spec = json!({ "process": {}, "linux": {} });
        let (object, field) = pointer.split_once('.').unwrap();
        spec[object][field] = json!(value);
        check(&spec, log::Level::Warn)
    }

    #[test]
    fn what_every_container_gets_is_left_out() {
        for (field, value) in [
            ("process.apparmorProfile", ""),
            ("process.apparmorProfile", "unconfined"),
            ("process.apparmorProfile", "crio-default"),
            ("process.apparmorProfile", "containers-default-0.50.1"),
            (
                "process.selinuxLabel",
                "system_u:system_r:container_t:s0:c1,c2",
            ),
            ("process.selinuxLabel", "system_u:system_r:container_kvm_t"),
            (
                "linux.mountLabel",
                "system_u:object_r:container_file_t:s0:c1,c2",
            ),
            ("linux.mountLabel", ""),
        ] {
            assert_eq!(checked(field, value), Ok(()), "{value}");
        }
    }

    #[test]
    fn what_somebody_chose_is_refused() {
        for (field, value) in [
            ("process.apparmorProfile", "strict"),
            ("process.selinuxLabel", "system_u:system_r:httpd_t:s0"),
            ("process.selinuxLabel", "container_t"),
            ("process.selinuxLabel", "unconfined"),
            (
                "linux.mountLabel",
                "system_u:object_r:container_file_t_x:s0",
            ),
        ] {
            assert_eq!(checked(field, value).unwrap_err().field, field, "{value}");
        }
    }
}
