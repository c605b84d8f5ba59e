//! Nodes of `linux.devices` that are of no device.

use std::path::Path;

use nacre_protocol::GUEST_DEVICES;
use oci_spec::runtime::{LinuxDeviceType, Spec};

use super::report::Failure;

/// Where the kernel lists its character devices by their numbers.
const CHARACTER_DEVICES: &str = "/sys/dev/char";

/// Refuses a number that means nothing on the host, and another device in the guest. Of block
/// devices, only those that the host hands over have a number of the guest's.
pub(super) fn check(spec: &Spec) -> Result<(), Failure> {
    check_in(spec, Path::new(CHARACTER_DEVICES))
}

fn check_in(spec: &Spec, devices: &Path) -> Result<(), Failure> {
    let linux = spec.linux().as_ref();
    let wanted = linux.and_then(|linux| linux.devices().as_deref());
    for (index, device) in wanted.unwrap_or_default().iter().enumerate() {
        let (major, minor) = (device.major(), device.minor());
        let is_character = matches!(device.typ(), LinuxDeviceType::C | LinuxDeviceType::U);
        if is_character
            && !GUEST_DEVICES.contains(&(major, minor))
            && devices.join(format!("{major}:{minor}")).exists()
        {
            return Err(Failure::invalid(format!(
                "linux.devices[{index}]: {major}:{minor} is the number of a device of the \
                 guest's own"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_device_that_the_guest_alone_has_is_refused() {
        let devices = tempfile::tempdir().unwrap();
        for number in ["1:3", "10:121", "8:0"] {
            std::fs::write(devices.path().join(number), "").unwrap();
        }
        let checked = |kind: &str, major, minor| {
            let device = json!({ "path": "/dev/x", "type": kind, "major": major, "minor": minor });
            let mut spec = json!({ "ociVersion": "1.2.0", "linux": { "devices": [] } });
            spec["linux"]["devices"] = json!([device]);
            check_in(&serde_json::from_value(spec).unwrap(), devices.path())
        };
        checked("c", 1, 3).unwrap();
        checked("c", 10, 666).unwrap();
        checked("b", 8, 0).unwrap();
        checked("p", 10, 121).unwrap();
        let failure = checked("c", 10, 121).unwrap_err();
        assert!(failure.message.starts_with("linux.devices[0]: 10:121 "));
    }
}
