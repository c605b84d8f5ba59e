//! Directories of the root file system that a container cannot do without.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use oci_spec::runtime::Spec;
use pathrs::Root;

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

fn make_one(rootfs: &Path, dir: &Path) {
    let permissions = Permissions::from_mode(0o755);
    // Resolved inside the root: the image may have planted links.
    let made = Root::open(rootfs).and_then(|root| root.mkdir_all(dir, &permissions));
    if let Err(error) = made {
        log::debug!("{} was not made: {error}", dir.display());
    }
}
