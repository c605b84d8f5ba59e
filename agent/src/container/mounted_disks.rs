//! Disks that a container mounts.
//!
//! It must be allowed to open them while its mounts are made, and no longer: who can write to
//! a disk below the file system on it attacks the guest's kernel.

use std::path::Path;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, Mount, Spec};
use rustix::fs::{FileType, major, minor, stat};

use super::report::Failure;
use super::spec::is_disk;

/// Rules by which the disks of a specification may be opened. Their sources were checked to be
/// in the agent's `/dev`.
pub(super) fn rules(spec: &Spec) -> Result<Vec<LinuxDeviceCgroup>, Failure> {
    let mounts = spec.mounts().iter().flatten().enumerate();
    let disks = mounts.filter(|(_, mount)| is_disk(mount));
    disks.map(|(index, mount)| rule(index, mount)).collect()
}

fn rule(index: usize, mount: &Mount) -> Result<LinuxDeviceCgroup, Failure> {
    let source = mount.source().as_deref().unwrap_or(Path::new(""));
    let refused = |why: &dyn std::fmt::Display| {
        Failure::invalid(format!(
            "mounts[{index}].source: {}: {why}",
            source.display()
        ))
    };
    let stat = stat(source).map_err(|error| refused(&error))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::BlockDevice {
        return Err(refused(&"not a block device"));
    }
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(true);
    rule.set_typ(Some(LinuxDeviceType::B));
    rule.set_major(Some(major(stat.st_rdev).into()));
    rule.set_minor(Some(minor(stat.st_rdev).into()));
    rule.set_access(Some("rw".to_owned()));
    Ok(rule)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn with_mount(kind: &str, source: &str) -> Spec {
        let mount = json!({"destination": "/data", "type": kind, "source": source});
        let spec = json!({"ociVersion": "1.2.0", "mounts": [mount]});
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn only_mounts_of_disks_open_them() {
        assert!(rules(&with_mount("tmpfs", "tmpfs")).unwrap().is_empty());
        for source in ["/dev/null", "/dev/nosuch", "/dev"] {
            rules(&with_mount("ext4", source)).unwrap_err();
        }
    }
}
