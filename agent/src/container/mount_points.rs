//! Mount points that a read-only root lacks.
//!
//! Elsewhere they are made as they are needed. What the kernel says of a directory
//! that cannot be made helps nobody, so this looks first.

use std::path::Path;

use oci_spec::runtime::{Mount, Spec};
use pathrs::Root;
use rustix::fs::{StatVfsMountFlags, statvfs};

use super::report::Failure;

/// Refuses a specification with a mount whose place does not exist and cannot be
/// made.
pub(super) fn check(spec: &Spec, rootfs: &Path) -> Result<(), Failure> {
    let is_read_only =
        statvfs(rootfs).is_ok_and(|status| status.f_flag.contains(StatVfsMountFlags::RDONLY));
    let Some(root) = is_read_only.then(|| Root::open(rootfs).ok()).flatten() else {
        return Ok(());
    };
    let mounts = spec.mounts().as_deref().unwrap_or_default();
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

/// Whether a place is in what was mounted before, which may be written to.
fn is_below(place: &Path, mounts: &[Mount]) -> bool {
    mounts
        .iter()
        .map(Mount::destination)
        .any(|mounted| place != mounted && place.starts_with(mounted))
}
