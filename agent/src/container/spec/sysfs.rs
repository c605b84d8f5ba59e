//! sysfs for a container that has users of its own.
//!
//! Who mounts one must own the network namespace. That is the pod's, so such a
//! container gets the guest's instead, without the guest's cgroups.

use oci_spec::runtime::{Mount, MountBuilder};

const GUESTS: &str = "/sys";

/// Has the guest's sysfs bound where one is to be mounted.
pub(super) fn bind(mounts: Vec<Mount>) -> Vec<Mount> {
    mounts.into_iter().flat_map(replace).collect()
}

fn replace(mut mount: Mount) -> Vec<Mount> {
    if mount.typ().as_deref() != Some("sysfs") {
        return vec![mount];
    }
    mount.set_typ(Some("bind".to_owned()));
    mount.set_source(Some(GUESTS.into()));
    // What is below it is locked to it in a namespace of these users.
    mount
        .options_mut()
        .get_or_insert_default()
        .push("rbind".to_owned());
    let cover = cover(&mount);
    std::iter::once(mount).chain(cover).collect()
}

/// An empty directory in the place of the guest's cgroups.
fn cover(sysfs: &Mount) -> Option<Mount> {
    let options = ["ro", "nosuid", "nodev", "noexec", "mode=755"].map(str::to_owned);
    MountBuilder::default()
        .destination(sysfs.destination().join("fs/cgroup"))
        .typ("tmpfs")
        .source("tmpfs")
        .options(options)
        .build()
        .ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_guests_is_bound_and_its_cgroups_are_covered() {
        let mounts = json!([
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "ro"] },
            { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup" },
        ]);
        let bound = bind(serde_json::from_value(mounts).unwrap());
        let bound = serde_json::to_value(bound).unwrap();
        assert_eq!(bound.as_array().unwrap().len(), 4);
        assert_eq!(bound[0]["type"], "proc");
        assert_eq!(
            bound[1],
            json!({ "destination": "/sys", "type": "bind", "source": "/sys",
                "options": ["nosuid", "ro", "rbind"] })
        );
        assert_eq!(bound[2]["destination"], "/sys/fs/cgroup");
        assert_eq!(bound[2]["type"], "tmpfs");
        assert_eq!(bound[3]["type"], "cgroup");
    }
}
