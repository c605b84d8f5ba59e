//! What a bundle's container is to its pod.
//!
//! A container alone in its pod has all namespaces of its own. Where several
//! share one, containerd names the sandbox's namespaces by a path below
//! `/proc/PID/ns` of the sandbox's process on the host; inside the guest that is
//! the pod's namespace of that kind.

use std::ffi::OsStr;
use std::path::Path;

use nacre_protocol::agent::PidNamespace;
use oci_spec::runtime::{Linux, LinuxNamespaceType, Mount};

use super::mounts;

/// What a bundle's container is to its pod.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// The only one; it has namespaces of its own.
    Alone,
    /// The first one, whose namespaces are the pod's (CRI's pause container).
    Sandbox,
    /// A further one: where a namespace has a path, it is the pod's.
    Member,
}

impl Role {
    /// Whether the container may name an existing namespace of this kind.
    pub(super) fn may_join(self, kind: &str) -> bool {
        kind == "network" || self == Self::Member && matches!(kind, "ipc" | "uts" | "pid")
    }

    /// Leaves in `linux` only those namespaces that the container gets of its own.
    pub(super) fn keep_own_namespaces(self, linux: &mut Linux) {
        let Some(namespaces) = linux.namespaces_mut() else {
            return;
        };
        namespaces.retain(|namespace| match namespace.typ() {
            LinuxNamespaceType::Network => false,
            LinuxNamespaceType::Ipc | LinuxNamespaceType::Uts => match self {
                Self::Alone => true,
                Self::Sandbox => false,
                Self::Member => namespace.path().is_none(),
            },
            _ => true,
        });
        for namespace in namespaces {
            namespace.set_path(None);
        }
    }

    /// The PID namespace of a container with this `linux`.
    pub(super) fn pid_namespace(self, linux: Option<&Linux>) -> PidNamespace {
        let joins = linux
            .and_then(|linux| linux.namespaces().as_deref())
            .unwrap_or_default()
            .iter()
            .any(|namespace| {
                namespace.typ() == LinuxNamespaceType::Pid && namespace.path().is_some()
            });
        match self {
            Self::Alone => PidNamespace::OWN,
            Self::Sandbox => PidNamespace::POD_INIT,
            Self::Member if joins => PidNamespace::POD,
            Self::Member => PidNamespace::OWN,
        }
    }

    /// Whether a container with this `linux` is in the pod's IPC namespace by its
    /// own wish.
    pub(super) fn joins_ipc(self, linux: Option<&Linux>) -> bool {
        self == Self::Member
            && linux
                .and_then(|linux| linux.namespaces().as_deref())
                .unwrap_or_default()
                .iter()
                .any(|namespace| {
                    namespace.typ() == LinuxNamespaceType::Ipc && namespace.path().is_some()
                })
    }

    /// Whether a mount is the pod's shared memory: container engines make a tmpfs of the
    /// host for it, of which the guest has its own. A volume in that place is a volume.
    pub(super) fn is_shared_memory(self, mount: &Mount) -> bool {
        self != Self::Alone
            && mount.destination().as_os_str() == "/dev/shm"
            && (!mounts::is_bind(mount) || mount.source().as_deref().is_some_and(is_engines))
    }
}

/// Whether this is where an engine keeps a pod's `/dev/shm`: `…/sandboxes/ID/shm` (containerd) or
/// `…/userdata/shm` (podman, CRI-O).
fn is_engines(source: &Path) -> bool {
    let mut names = source.iter().rev();
    names.next() == Some(OsStr::new("shm"))
        && match names.next() {
            Some(dir) if dir == "userdata" => true,
            _ => names.next() == Some(OsStr::new("sandboxes")),
        }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn linux(namespaces: &Value) -> Linux {
        serde_json::from_value(json!({ "namespaces": namespaces })).unwrap()
    }

    fn own(role: Role, namespaces: &Value) -> Vec<String> {
        let mut linux = linux(namespaces);
        role.keep_own_namespaces(&mut linux);
        let kept = linux.namespaces().clone().unwrap();
        assert!(kept.iter().all(|namespace| namespace.path().is_none()));
        kept.iter()
            .map(|namespace| namespace.typ().to_string())
            .collect()
    }

    #[test]
    fn namespaces_with_a_path_are_the_pods() {
        let shared = json!([
            { "type": "pid", "path": "/proc/7/ns/pid" },
            { "type": "ipc", "path": "/proc/7/ns/ipc" },
            { "type": "uts", "path": "/proc/7/ns/uts" },
            { "type": "network", "path": "/run/netns/x" },
            { "type": "mount" },
        ]);
        assert_eq!(own(Role::Member, &shared), ["pid", "mnt"]);
        let linux = linux(&shared);
        assert_eq!(Role::Member.pid_namespace(Some(&linux)), PidNamespace::POD);
    }

    #[test]
    fn namespaces_without_a_path_are_the_containers() {
        let private = json!([
            { "type": "pid" }, { "type": "ipc" }, { "type": "uts" },
            { "type": "network" }, { "type": "mount" },
        ]);
        for role in [Role::Alone, Role::Member] {
            assert_eq!(own(role, &private), ["pid", "ipc", "uts", "mnt"]);
            let linux = linux(&private);
            assert_eq!(role.pid_namespace(Some(&linux)), PidNamespace::OWN);
        }
    }

    #[test]
    fn only_a_member_that_says_so_joins_the_pods_ipc() {
        let shared = linux(&json!([{ "type": "ipc", "path": "/proc/7/ns/ipc" }]));
        let private = linux(&json!([{ "type": "ipc" }]));
        assert!(Role::Member.joins_ipc(Some(&shared)));
        assert!(!Role::Member.joins_ipc(Some(&private)));
        assert!(!Role::Sandbox.joins_ipc(Some(&shared)));
    }

    #[test]
    fn a_volume_in_the_place_of_the_shared_memory_is_a_volume() {
        let mount = |source: &str| -> Mount {
            let mount = json!({ "destination": "/dev/shm", "type": "bind", "source": source,
                "options": ["rbind"] });
            serde_json::from_value(mount).unwrap()
        };
        for engines in [
            "/run/containerd/io.containerd.grpc.v1.cri/sandboxes/0123abc/shm",
            "/var/lib/containers/storage/overlay-containers/0123abc/userdata/shm",
        ] {
            assert!(Role::Member.is_shared_memory(&mount(engines)), "{engines}");
            assert!(!Role::Alone.is_shared_memory(&mount(engines)));
        }
        for volume in [
            "/var/lib/kubelet/pods/0123/volumes/kubernetes.io~empty-dir/shm",
            "/srv/shm",
            "/shm",
        ] {
            assert!(!Role::Member.is_shared_memory(&mount(volume)), "{volume}");
        }
        let tmpfs = json!({ "destination": "/dev/shm", "type": "tmpfs", "source": "shm" });
        let tmpfs = serde_json::from_value(tmpfs).unwrap();
        assert!(Role::Member.is_shared_memory(&tmpfs));
    }

    #[test]
    fn the_sandboxs_namespaces_are_the_pods() {
        let private =
            json!([{ "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }]);
        assert_eq!(own(Role::Sandbox, &private), ["pid", "mnt"]);
        assert_eq!(Role::Sandbox.pid_namespace(None), PidNamespace::POD_INIT);
    }
}
