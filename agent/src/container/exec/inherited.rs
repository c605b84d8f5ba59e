//! What every process of a container has of its container, beside namespaces and
//! cgroup. Written to the bundle when the container is built.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::Path;

use oci_spec::runtime::{LinuxPersonalityDomain, LinuxSeccomp, Spec};
use serde::{Deserialize, Serialize};

/// Its name in a bundle.
const FILE: &str = "inherited.json";

/// See the module.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(in crate::container) struct Inherited {
    /// The filter of system calls.
    pub(super) seccomp: Option<LinuxSeccomp>,
    /// Whether the processes see a 32-bit machine.
    pub(super) personality: Option<LinuxPersonalityDomain>,
}

impl Inherited {
    /// What the processes of a container with this specification inherit.
    pub(in crate::container) fn of(spec: &Spec) -> Self {
        let linux = spec.linux().as_ref();
        Self {
            seccomp: linux.and_then(|linux| linux.seccomp().clone()),
            personality: linux
                .and_then(|linux| linux.personality().as_ref())
                .map(|personality| personality.domain()),
        }
    }

    /// Puts it into a bundle.
    pub(in crate::container) fn save(&self, bundle: &Path) -> io::Result<()> {
        let file = BufWriter::new(File::create(bundle.join(FILE))?);
        Ok(serde_json::to_writer(file, self)?)
    }

    /// Reads it from a bundle.
    pub(super) fn load(bundle: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(bundle.join(FILE))?)?)
    }
}
