//! A bundle: `config.json` read, checked and translated for the guest.
//!
//! See the OCI runtime specification, <https://github.com/opencontainers/runtime-spec>.
//! What cannot be honoured is refused by the name of its field, before anything
//! is started; see [`refuse`] for the list.

mod allowance;
mod cpus;
mod devices;
pub(crate) mod disks;
pub(crate) mod exec;
mod features;
mod hook_programs;
mod id_maps;
mod labels;
mod mounts;
mod options;
pub mod refuse;
mod role;
mod translate;
mod typed;
mod version;

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nacre_protocol::agent::{PidNamespace, SharedDirectory};
use oci_spec::runtime::{Hooks, LinuxNamespaceType, Spec};
use protobuf::Message as _;
use serde_json::Value;
use thiserror::Error;

pub use self::allowance::Allowance;
pub use self::cpus::HostCpus;
pub use self::features::features;
pub use self::mounts::PodFile;
pub use self::options::mount_options;
pub use self::role::Role;
use crate::agent::GuestDisk;
use crate::host::{Source, SourceError};
use crate::stdio::TerminalSize;
use crate::text::one_line;

/// Largest `config.json` in bytes: with its envelope it must fit into one ttrpc
/// message of 4 MiB.
pub const MAX_SPEC: u64 = 3 << 20;

/// Bytes of mounts below sources that the guest is told of. It finds others once it comes to
/// them.
const MAX_SUBMOUNT_BYTES: u64 = 256 << 10;

/// Version of the specification that a container's state follows.
pub const OCI_VERSION: &str = "1.2.0";

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
    /// `config.json` is no JSON.
    #[error("{}: not JSON: {source}", path.display())]
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
            // The key of a map may be anything.
            field: one_line(&field.into()),
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
    hook_programs: Vec<(usize, Source)>,
    disks: Vec<disks::Disk>,
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
        Self::check(dir, role, value).map_err(|Refusal { field, reason }| BundleError::Field {
            path: path.clone(),
            field,
            reason,
        })
    }

    fn check(dir: &Path, role: Role, value: Value) -> Result<Self, Refusal> {
        let (spec, value) = understand(value, role)?;
        let rootfs = mounts::open_rootfs(dir, &spec)?;
        let binds = mounts::open_binds(dir, &spec, role)?;
        let hook_programs = hook_programs::open(&spec)?;
        let disks = disks::open(dir, &spec, &value)?;
        Ok(Self {
            role,
            spec,
            rootfs,
            binds,
            hook_programs,
            disks,
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

    /// Mounts files of the pod over the container's. A mount that the bundle has in the place
    /// of one stays instead.
    pub fn mount_pod_files(&mut self, files: &[PodFile]) {
        mounts::add_pod_files(&mut self.spec, files);
    }

    /// What the container's guest needs of the host besides its root, with its number in
    /// the share: sources of bind mounts, and programs of hooks.
    pub fn shared(&self) -> impl Iterator<Item = (usize, &Source)> {
        let all = self.binds.iter().chain(&self.hook_programs);
        all.map(|(number, source)| (*number, source))
    }

    /// What the guest is to mount of the share, once it is there.
    pub(crate) fn directories(&self) -> Vec<SharedDirectory> {
        let binds = self.binds.iter().map(|(_, source)| source);
        let sources = std::iter::once(&self.rootfs).chain(binds);
        let directories = sources.filter(|source| source.is_dir());
        let mut directories: Vec<_> = directories.map(Source::in_guest).collect();
        let mut left = MAX_SUBMOUNT_BYTES;
        for submounts in directories.iter_mut().map(|directory| &mut directory.below) {
            submounts.retain(|submount| {
                let rest = left.checked_sub(submount.compute_size());
                left = rest.unwrap_or(left);
                rest.is_some()
            });
        }
        directories
    }

    /// The bind mounts that are read-only: their number, the path that they are of, and what
    /// was found there.
    pub(crate) fn read_only_binds(&self) -> impl Iterator<Item = (usize, &Path, &Source)> {
        let mounts = self.spec.mounts().as_deref().unwrap_or_default();
        self.binds.iter().filter_map(move |(index, source)| {
            let mount = mounts.get(*index)?;
            let path = mount.source().as_deref()?;
            mounts::is_read_only(mount).then_some((*index, path, source))
        })
    }

    /// The hooks. Those of the host are the front door's to run.
    #[must_use]
    pub fn hooks(&self) -> Hooks {
        self.spec.hooks().clone().unwrap_or_default()
    }

    /// Block devices of the host that the container is handed.
    pub(crate) fn disks(&self) -> &[disks::Disk] {
        &self.disks
    }

    /// The specification for the guest, once what it is given is in the share. Its
    /// [`disks`](Self::disks) are, in the same order, those of `guest_disks`.
    ///
    /// # Errors
    /// Only if it could not be written as JSON.
    pub(crate) fn guest_spec(
        &self,
        guest_disks: &[GuestDisk],
    ) -> Result<Vec<u8>, serde_json::Error> {
        let shared = translate::Shared {
            rootfs: &self.rootfs,
            binds: &self.binds,
            hook_programs: &self.hook_programs,
        };
        serde_json::to_vec(&translate::for_guest(
            &self.spec,
            self.role,
            &shared,
            &disks::InGuest::new(&self.disks, guest_disks),
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

    /// What the container may use by its limits.
    #[must_use]
    pub fn allowance(&self) -> Allowance {
        let linux = self.spec.linux().as_ref();
        let resources = linux.and_then(|linux| linux.resources().as_ref());
        resources.map_or_else(Allowance::default, Allowance::of)
    }

    /// CPUs of the host that the container is confined to, if any.
    #[must_use]
    pub fn host_cpus(&self) -> Option<HostCpus> {
        let resources = self.spec.linux().as_ref()?.resources().as_ref()?;
        HostCpus::parse(resources.cpu().as_ref()?.cpus().as_deref()?)
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

/// All that can be said of a specification without a look at the host; it comes back as it was
/// read, too.
fn understand(value: Value, role: Role) -> Result<(Spec, Value), Refusal> {
    // What is refused is shown, and may be of any length.
    let bounded = |Refusal { field, reason }| Refusal::new(field, one_line(&reason));
    read_and_check(value, role).map_err(bounded)
}

fn read_and_check(mut value: Value, role: Role) -> Result<(Spec, Value), Refusal> {
    version::check(&value)?;
    refuse::check(&value, role)?;
    if let Some(process) = value.get_mut("process") {
        typed::fit_process(process);
    }
    // From the text's value, so that the same duplicate of a key counts.
    Ok((typed::read(&value, "")?, value))
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

#[cfg(test)]
#[path = "bad_input_test.rs"]
mod bad_input;
