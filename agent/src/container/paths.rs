//! Where the guest keeps what belongs to a container.

use std::path::PathBuf;

use super::id::Id;

/// Directory of all containers' state, on a tmpfs that only the agent sees.
const CONTAINERS: &str = "/run/nacre/containers";

/// File system of the cgroups.
pub(crate) const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// Cgroup below [`CGROUP_ROOT`] that holds the containers' cgroups.
pub(crate) const CGROUP_PARENT: &str = "nacre";

/// Directory of one container: its bundle, and the builder's state below.
pub(crate) fn bundle(id: &Id) -> PathBuf {
    PathBuf::from(CONTAINERS).join(id.as_str())
}

/// Socket on which the container's first process waits to be started.
pub(crate) fn start_socket(id: &Id) -> PathBuf {
    bundle(id).join(id.as_str()).join("notify.sock")
}

/// Cgroup of a container as a path below [`CGROUP_ROOT`].
pub(crate) fn cgroup(id: &Id) -> PathBuf {
    PathBuf::from("/").join(CGROUP_PARENT).join(id.as_str())
}
