//! What every process of a container has of its container, beside namespaces and
//! cgroup. Written to the bundle when the container is built.

use std::fs;
use std::io;
use std::path::Path;

use oci_spec::runtime::{LinuxPersonalityDomain, Spec};
use serde::{Deserialize, Serialize};

use super::filter;
use crate::container::spec::has_time;
use crate::container::user_namespace::Users;

/// Its name in a bundle.
const FILE: &str = "inherited.json";

/// See the module.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(in crate::container) struct Inherited {
    /// There is a filter of system calls, to be set with these flags.
    pub(super) filter_flags: Option<u64>,
    /// Whether the processes see a 32-bit machine.
    pub(super) personality: Option<LinuxPersonalityDomain>,
    /// Of the container's user namespace, if it has one.
    pub(super) users: Users,
    /// The container has a time namespace.
    pub(super) own_time: bool,
}

impl Inherited {
    /// Puts what the processes of a container inherit into its bundle.
    pub(in crate::container) fn save(spec: &Spec, bundle: &Path) -> io::Result<()> {
        let linux = spec.linux().as_ref();
        let profile = linux.and_then(|linux| linux.seccomp().as_ref());
        if let Some(profile) = profile {
            filter::save(profile, bundle)?;
        }
        let inherited = Self {
            filter_flags: profile.map(filter::flags),
            personality: linux
                .and_then(|linux| linux.personality().as_ref())
                .map(|personality| personality.domain()),
            users: Users::of(spec),
            own_time: linux.is_some_and(has_time),
        };
        fs::write(bundle.join(FILE), serde_json::to_vec(&inherited)?)
    }

    /// Reads it from a bundle.
    pub(super) fn load(bundle: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(bundle.join(FILE))?)?)
    }
}
