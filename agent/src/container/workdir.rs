//! The working directory of a container's process.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use oci_spec::runtime::Spec;
use pathrs::Root;

/// Makes `process.cwd` in the root file system when it is missing, as users of
/// other runtimes expect. A root that cannot be written to is no failure here:
/// a mount may supply the directory, and what is missing then has its own error.
pub(super) fn make(spec: &Spec, rootfs: &Path) {
    let Some(process) = spec.process() else {
        return;
    };
    let cwd = process.cwd();
    if cwd.parent().is_none() {
        return;
    }
    let permissions = Permissions::from_mode(0o755);
    // Resolved inside the root: the image may have planted links.
    let made = Root::open(rootfs).and_then(|root| root.mkdir_all(cwd, &permissions));
    if let Err(error) = made {
        log::debug!("process.cwd {cwd:?} was not made: {error}");
    }
}
