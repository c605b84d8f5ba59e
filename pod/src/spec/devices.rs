//! `linux.devices`: which of them a container is given, and as what.
//!
//! A node is one of a device that the guest has as the host does, or of a disk that the host
//! hands over ([`disks`]), or of no device at all: what would be a dead node on the host is one
//! in the guest. The devices that the host alone has are refused.

use std::path::Path;

use nacre_protocol::GUEST_DEVICES;
use serde_json::Value;

use super::refuse::{find, quote, says_something};
use super::{Refusal, disks};

const HOST_DEVICE: &str = "names a device of the host, which does not exist inside the guest";
const NO_RULE: &str = "no rule of linux.resources.devices with this type and number lets the \
                       container read it, so the host's block device is not handed over";
const GUEST_DISK: &str = "the host has no such block device, and the guest's own disks have \
                          numbers like this";
const NO_NUMBER: &str = "major must be from 1 to 4095, and minor from 0 to 1048575";

/// Numbers that the kernel gives to drivers of block devices that have none of their own, such
/// as that of the guest's disks (Documentation/admin-guide/devices.txt).
const DYNAMIC_BLOCK: std::ops::RangeInclusive<i64> = 240..=254;

/// Whether the kernel that this process runs on has a device, by the specification's type.
pub(super) fn is_of_the_host(kind: &str, major: i64, minor: i64) -> bool {
    let kind = if kind == "b" { "block" } else { "char" };
    Path::new(&format!("/sys/dev/{kind}/{major}:{minor}")).exists()
}

/// Why the guest can have no node of that number, if it cannot.
fn obstacle(
    kind: &str,
    major: i64,
    minor: i64,
    is_of_the_host: &dyn Fn(&str, i64, i64) -> bool,
) -> Option<&'static str> {
    let is_block = kind == "b";
    match kind {
        "p" => None,
        "c" | "u" if GUEST_DEVICES.contains(&(major, minor)) => None,
        "b" | "c" | "u" if !(1..1 << 12).contains(&major) || !(0..1 << 20).contains(&minor) => {
            Some(NO_NUMBER)
        }
        "b" | "c" | "u" if is_of_the_host(kind, major, minor) => {
            Some(if is_block { NO_RULE } else { HOST_DEVICE })
        }
        "b" if DYNAMIC_BLOCK.contains(&major) => Some(GUEST_DISK),
        "b" | "c" | "u" => None,
        _ => Some(HOST_DEVICE),
    }
}

/// Whether the guest can have a node of that number, disks aside.
pub(super) fn can_be_had(kind: &str, major: i64, minor: i64) -> bool {
    obstacle(kind, major, minor, &is_of_the_host).is_none()
}

/// Refuses what a guest cannot be given.
///
/// # Errors
/// The first such field.
pub(super) fn check(
    spec: &Value,
    is_of_the_host: &dyn Fn(&str, i64, i64) -> bool,
) -> Result<(), Refusal> {
    let privileged = is_privileged(spec);
    for (field, device) in find(spec, "linux.devices[*]") {
        let number = |key| device.get(key).and_then(Value::as_i64).unwrap_or(0);
        let kind = device.get("type").and_then(Value::as_str);
        let kind = kind.unwrap_or_default();
        let path = device.get("path").unwrap_or(&Value::Null);
        let (major, minor) = (number("major"), number("minor"));
        let is_disk = kind == "b" && disks::access(spec, major, minor).is_some();
        let obstacle = obstacle(kind, major, minor, is_of_the_host);
        if let Some(reason) = obstacle.filter(|_| !is_disk) {
            if privileged {
                log::debug!("{field}: {}left out: {reason}", quote(path));
                continue;
            }
            return Err(Refusal::new(field, format!("{}{reason}", quote(path))));
        }
        let text = path.as_str().unwrap_or_default();
        if !text.starts_with("/dev/") || text.split('/').any(|part| part == "..") {
            let reason = format!("{}must be below /dev", quote(path));
            return Err(Refusal::new(format!("{field}.path"), reason));
        }
    }
    Ok(())
}

/// Whether a container may use every device: `--privileged` of engines, which then name all
/// devices of the host.
fn is_privileged(spec: &Value) -> bool {
    find(spec, "linux.resources.devices[*]").any(|(_, rule)| {
        let says = |key| rule.get(key).is_some_and(says_something);
        let any_kind = rule
            .get("type")
            .is_none_or(|kind| kind == "a" || kind == "");
        rule.get("allow") == Some(&Value::Bool(true))
            && rule.get("access").and_then(Value::as_str) == Some("rwm")
            && any_kind
            && !says("major")
            && !says("minor")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// On a host that has a disk and /dev/kvm.
    fn checked(devices: &Value, rules: &Value) -> Result<(), Refusal> {
        let host = |kind: &str, major: i64, minor: i64| {
            matches!((kind, major, minor), ("b", 8, 0) | ("c" | "u", 10, 232))
        };
        let spec = json!({ "linux": {
            "devices": devices, "resources": { "devices": rules } } });
        check(&spec, &host)
    }

    fn device(kind: &str, major: i64, minor: i64) -> Value {
        json!([{ "path": "/dev/x", "type": kind, "major": major, "minor": minor }])
    }

    #[test]
    fn a_node_is_of_a_device_of_the_guest_or_of_none() {
        for (kind, major, minor) in [
            ("c", 1, 11),
            ("u", 10, 229),
            ("p", 0, 0),
            ("c", 10, 666),
            ("b", 8, 666),
            ("c", 8, 0),
        ] {
            let checked = checked(&device(kind, major, minor), &json!([]));
            assert_eq!(checked, Ok(()), "{kind} {major}:{minor}");
        }
    }

    #[test]
    fn devices_that_the_host_alone_has_and_numbers_of_none_are_refused() {
        for (kind, major, minor, reason) in [
            ("c", 10, 232, HOST_DEVICE),
            ("u", 10, 232, HOST_DEVICE),
            ("b", 8, 0, NO_RULE),
            ("b", 254, 16, GUEST_DISK),
            ("c", 0, 0, NO_NUMBER),
            ("b", 4096, 0, NO_NUMBER),
            ("c", 10, -1, NO_NUMBER),
            ("c", 10, 1 << 20, NO_NUMBER),
            ("moon", 1, 3, HOST_DEVICE),
        ] {
            let refusal = checked(&device(kind, major, minor), &json!([])).unwrap_err();
            assert_eq!(refusal.field, "linux.devices[0]");
            assert_eq!(refusal.reason, format!("\"/dev/x\": {reason}"));
        }
    }

    #[test]
    fn devices_of_the_host_are_left_out_of_a_container_that_may_use_all() {
        for (rule, is_privileged) in [
            (json!({ "allow": true, "access": "rwm" }), true),
            (json!({ "allow": true, "access": "rwm", "type": "a" }), true),
            (json!({ "allow": true, "access": "rw" }), false),
            (
                json!({ "allow": true, "access": "rwm", "type": "b" }),
                false,
            ),
            (json!({ "allow": true, "access": "rwm", "major": 8 }), false),
            (json!({ "allow": false, "access": "rwm" }), false),
        ] {
            let checked = checked(&device("b", 8, 0), &json!([rule]));
            assert_eq!(checked.is_ok(), is_privileged, "{rule}");
        }
    }

    #[test]
    fn a_rule_with_its_number_hands_a_disk_over() {
        let rule = json!({ "allow": true, "type": "b", "major": 8, "minor": 0, "access": "r" });
        assert_eq!(checked(&device("b", 8, 0), &json!([rule])), Ok(()));
    }
}
