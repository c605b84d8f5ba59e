//! A bundle: `config.json` read, checked and translated for the guest.
//!
//! See the OCI runtime specification, <https://github.com/opencontainers/runtime-spec>.
//! What cannot be honoured is refused by the name of its field, before anything
//! is started; see [`refuse`] for the list.

pub(crate) mod exec;
mod mounts;
pub mod refuse;
mod role;
mod translate;
mod version;

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nacre_protocol::agent::PidNamespace;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use serde_json::Value;
use thiserror::Error;

pub use self::role::Role;
use crate::host::{Source, SourceError};
use crate::stdio::TerminalSize;

/// Largest `config.json` in bytes: with its envelope it must fit into one ttrpc
/// message of 4 MiB.
pub const MAX_SPEC: u64 = 3 << 20;

/// Why a bundle cannot be run.
#[derive(Debug, Error)]
pub enum BundleError {
    /// `config.json` cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// `config.json` is larger than [`MAX_SPEC`].
    #[error("{}: larger than {} MiB", path.display(), MAX_SPEC >> 20)]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// `config.json` is no JSON, or no OCI specification.
    #[error("{}: not a valid OCI specification: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A field asks for what cannot be done.
    #[error("{}: {field}: {reason}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// Name of the field, such as `linux.namespaces[1].path`.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// A field that is refused.
#[derive(Debug, Eq, Error, PartialEq)]
#[error("{field}: {reason}")]
pub struct Refusal {
    /// Name of the field, such as `linux.namespaces[1].path`.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Refusal {
    pub(crate) fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            reason: reason.into(),
        }
    }

    fn source(field: String, error: &SourceError) -> Self {
        Self::new(field, error.to_string())
    }
}

/// A bundle that can be run.
#[derive(Debug)]
pub struct Bundle {
    role: Role,
    spec: Spec,
    rootfs: Source,
    binds: Vec<(usize, Source)>,
}

impl Bundle {
    /// Reads and checks the bundle in `dir`, of a container that is alone in its
    /// pod, as [`Bundle::load_as`].
    ///
    /// # Errors
    /// [`BundleError`], which names the field.
    pub fn load(dir: &Path) -> Result<Self, BundleError> {
        Self::load_as(dir, Role::Alone)
    }

    /// Reads and checks the bundle in `dir` and opens what its container is
    /// to see of the host. The thread must already be where its mounts are made
    /// (see [`enter_private_mounts`](crate::host::enter_private_mounts)).
    ///
    /// # Errors
    /// [`BundleError`], which names the field.
    pub fn load_as(dir: &Path, role: Role) -> Result<Self, BundleError> {
        let path = dir.join("config.json");
        let text = read(&path)?;
        let parse = |source| BundleError::Parse {
            path: path.clone(),
            source,
        };
        let value: Value = serde_json::from_slice(&text).map_err(parse)?;
        Self::check(dir, role, &value, parse).map_err(|error| match error {
            CheckError::Refused(Refusal { field, reason }) => BundleError::Field {
                path: path.clone(),
                field,
                reason,
            },
            CheckError::Parse(error) => error,
        })
    }

    fn check(
        dir: &Path,
        role: Role,
        value: &Value,
        parse: impl Fn(serde_json::Error) -> BundleError,
    ) -> Result<Self, CheckError> {
        version::check(value)?;
        refuse::check(value, role)?;
        // From the text's value, so that the same duplicate of a key counts.
        let spec: Spec = serde_json::from_value(value.clone())
            .map_err(|error| CheckError::Parse(parse(error)))?;
        let rootfs = mounts::open_rootfs(dir, &spec)?;
        let binds = mounts::open_binds(dir, &spec, role)?;
        Ok(Self {
            role,
            spec,
            rootfs,
            binds,
        })
    }

    /// The specification as the bundle has it.
    #[must_use]
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The container's root.
    #[must_use]
    pub fn rootfs(&self) -> &Source {
        &self.rootfs
    }

    /// Mounts the pod's resolv.conf, which comes with its network, over the container's.
    /// A mount that the bundle has in that place stays instead; says whether there is
    /// none.
    pub fn mount_resolv_conf(&mut self) -> bool {
        mounts::add_resolv_conf(&mut self.spec)
    }

    /// Sources of bind mounts with their number in `mounts`.
    #[must_use]
    pub fn binds(&self) -> &[(usize, Source)] {
        &self.binds
    }

    /// The specification for the guest, in which the container is `container`.
    ///
    /// # Errors
    /// Only if it could not be written as JSON.
    pub fn guest_spec(&self, container: &str) -> Result<Vec<u8>, serde_json::Error> {
        let binds = self.binds.iter().map(|(index, _)| *index);
        serde_json::to_vec(&translate::for_guest(
            &self.spec, self.role, container, binds,
        ))
    }

    /// The PID namespace that the container is in.
    pub(crate) fn pid_namespace(&self) -> PidNamespace {
        self.role.pid_namespace(self.spec.linux().as_ref())
    }

    /// Whether the process wants a terminal.
    #[must_use]
    pub fn terminal(&self) -> bool {
        let process = self.spec.process().as_ref();
        process
            .and_then(|process| process.terminal())
            .unwrap_or(false)
    }

    /// Size of the terminal, if the specification has one.
    #[must_use]
    pub fn terminal_size(&self) -> Option<TerminalSize> {
        let size = self.spec.process().as_ref()?.console_size()?;
        Some(TerminalSize {
            columns: u16::try_from(size.width()).ok()?,
            rows: u16::try_from(size.height()).ok()?,
        })
    }

    /// Path of the network namespace to join, if the specification names one.
    #[must_use]
    pub fn network_namespace(&self) -> Option<&Path> {
        let namespaces = self.spec.linux().as_ref()?.namespaces().as_ref()?;
        let network = namespaces
            .iter()
            .find(|namespace| namespace.typ() == LinuxNamespaceType::Network)?;
        let path = network.path().as_deref()?;
        (!path.as_os_str().is_empty()).then_some(path)
    }

    /// The cgroup of the host that the specification names, if any.
    #[must_use]
    pub fn cgroup(&self) -> Option<&Path> {
        let path = self.spec.linux().as_ref()?.cgroups_path().as_deref()?;
        (!path.as_os_str().is_empty()).then_some(path)
    }

    /// Memory limit of the container in bytes, if it has one.
    #[must_use]
    pub fn memory_limit(&self) -> Option<u64> {
        let memory = self.spec.linux().as_ref()?.resources().as_ref()?.memory();
        let limit = u64::try_from(memory.as_ref()?.limit()?).ok()?;
        (limit > 0).then_some(limit)
    }

    /// CPUs that the container's quota amounts to, rounded up, if it has one.
    #[must_use]
    pub fn cpu_limit(&self) -> Option<u64> {
        let cpu = self
            .spec
            .linux()
            .as_ref()?
            .resources()
            .as_ref()?
            .cpu()
            .as_ref()?;
        let quota = u64::try_from(cpu.quota()?).ok()?;
        let period = cpu.period().filter(|period| *period > 0).unwrap_or(100_000);
        (quota > 0).then(|| quota.div_ceil(period))
    }
}

enum CheckError {
    Refused(Refusal),
    Parse(BundleError),
}

impl From<Refusal> for CheckError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, BundleError> {
    let failed = |source| BundleError::Read {
        path: path.to_owned(),
        source,
    };
    // Room for a common one, so that it is read in one go.
    let mut text = Vec::with_capacity(32 << 10);
    // A FIFO would keep us waiting for somebody to write it.
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(failed)?;
    file.take(MAX_SPEC + 1)
        .read_to_end(&mut text)
        .map_err(failed)?;
    if text.len() as u64 > MAX_SPEC {
        return Err(BundleError::TooLarge {
            path: path.to_owned(),
        });
    }
    Ok(text)
}

#[cfg(test)]
#[path = "spec_test.rs"]
mod tests;
