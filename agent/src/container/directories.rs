//! Directories of the root file system that a container cannot do without.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use oci_spec::runtime::Spec;
use pathrs::Root;
use rustix::fs::{FileType, fstat};

use super::mount_points::is_below;
use super::report::Failure;

/// Makes what is missing, as users of other runtimes expect: `/dev`, for the devices
/// that every container has, and `process.cwd`. A root that cannot be written to is no
/// failure here: a mount may supply the directory, and what is missing then has its own
/// error.
pub(super) fn make(spec: &Spec, rootfs: &Path) {
    let cwd = spec.process().as_ref().map(|process| process.cwd());
    let wanted = [Some(Path::new("/dev")), cwd.map(|cwd| &**cwd)];
    for dir in wanted.into_iter().flatten() {
        if dir.parent().is_some() {
            make_one(rootfs, dir);
        }
    }
}

/// Refuses a working directory that is something else.
pub(super) fn check(spec: &Spec, rootfs: &Path) -> Result<(), Failure> {
    let Some(process) = spec.process() else {
        return Ok(());
    };
    let cwd = process.cwd();
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let is_mounted = mounts.iter().any(|mount| mount.destination() == cwd);
    if is_mounted || is_below(cwd, mounts) {
        return Ok(());
    }
    let found = Root::open(rootfs).and_then(|root| root.resolve(cwd));
    let Some(status) = found.ok().and_then(|found| fstat(&found).ok()) else {
        return Ok(());
    };
    if FileType::from_raw_mode(status.st_mode) == FileType::Directory {
        return Ok(());
    }
    let reason = format!("process.cwd: {} is not a directory", cwd.display());
    Err(Failure::invalid(reason))
}

fn make_one(rootfs: &Path, dir: &Path) {
    let permissions = Permissions::from_mode(0o755);
    // Resolved inside the root: the image may have planted links.
    let made = Root::open(rootfs).and_then(|root| root.mkdir_all(dir, &permissions));
    if let Err(error) = made {
        log::debug!("{} was not made: {error}", dir.display());
    }
}
