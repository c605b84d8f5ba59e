//! Mount points that a read-only root lacks, and those that are not what they seem.
//!
//! Elsewhere they are made as they are needed. What the kernel says of a directory
//! that cannot be made helps nobody, so this looks first.

use std::path::Path;

use oci_spec::runtime::{Mount, Spec};
use pathrs::Root;
use rustix::fs::{StatVfsMountFlags, statvfs};

use super::report::Failure;

/// Refuses a specification with a mount whose place does not exist and cannot be
/// made, or with a file system of the kernel's on what is no directory.
pub(super) fn check(spec: &Spec, rootfs: &Path) -> Result<(), Failure> {
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    for (index, mount) in mounts.iter().enumerate() {
        check_kind(index, mount, rootfs)?;
    }
    let is_read_only =
        statvfs(rootfs).is_ok_and(|status| status.f_flag.contains(StatVfsMountFlags::RDONLY));
    let Some(root) = is_read_only.then(|| Root::open(rootfs).ok()).flatten() else {
        return Ok(());
    };
    for (index, mount) in mounts.iter().enumerate() {
        let place = mount.destination();
        if is_below(place, &mounts[..index]) || root.resolve(place).is_ok() {
            continue;
        }
        return Err(Failure::invalid(format!(
            "mounts[{index}].destination: {} does not exist, and cannot be made in a read-only \
             root file system: add it to the image",
            place.display()
        )));
    }
    Ok(())
}

/// A link in the image would put the container's `/proc` elsewhere, and what masks it.
fn check_kind(index: usize, mount: &Mount, rootfs: &Path) -> Result<(), Failure> {
    let Some(kind @ ("proc" | "sysfs")) = mount.typ().as_deref() else {
        return Ok(());
    };
    let place = mount.destination();
    let below = place.strip_prefix("/").unwrap_or(place);
    match std::fs::symlink_metadata(rootfs.join(below)) {
        Ok(found) if !found.is_dir() => Err(Failure::invalid(format!(
            "mounts[{index}].destination: {}: {kind} must be mounted on ordinary directory",
            place.display()
        ))),
        _ => Ok(()),
    }
}

/// Whether a place is in what was mounted before, which may be written to.
pub(super) fn is_below(place: &Path, mounts: &[Mount]) -> bool {
    mounts
        .iter()
        .map(Mount::destination)
        .any(|mounted| place != mounted && place.starts_with(mounted))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn proc_is_mounted_on_no_link() {
        let root = tempfile::tempdir().unwrap();
        let spec = |kind: &str| -> Spec {
            let mounts = json!([{ "destination": "/proc", "type": kind, "source": "x" }]);
            serde_json::from_value(json!({ "ociVersion": "1.2.0", "mounts": mounts })).unwrap()
        };
        check(&spec("proc"), root.path()).unwrap();
        let place = root.path().join("proc");
        std::os::unix::fs::symlink("/tmp", &place).unwrap();
        for kind in ["proc", "sysfs"] {
            let failure = check(&spec(kind), root.path()).unwrap_err();
            assert!(failure.message.contains("ordinary directory"));
        }
        check(&spec("tmpfs"), root.path()).unwrap();
        std::fs::remove_file(&place).unwrap();
        std::fs::create_dir(&place).unwrap();
        check(&spec("proc"), root.path()).unwrap();
    }
}
