//! A runtime specification for a container of an image; see the image specification's
//! [conversion].
//!
//! [conversion]: https://github.com/opencontainers/image-spec/blob/v1.1.1/conversion.md

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{
    Capability, LinuxCapabilitiesBuilder, ProcessBuilder, RootBuilder, Spec, SpecBuilder,
    UserBuilder,
};

use crate::error::ImageError;
use crate::process::Process;
use crate::root::Root;

/// What other tools leave to a container of an image; an image is made for these.
const CAPABILITIES: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// Where the image specification puts the stop signal.
const STOP_SIGNAL: &str = "org.opencontainers.image.stopSignal";

/// What the caller wants otherwise than the image.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// In place of the image's Cmd.
    pub command: Vec<String>,
    /// In place of the image's Entrypoint, whose Cmd then does not count.
    pub entrypoint: Option<Vec<String>>,
    /// Variables as `NAME=VALUE`, beside or in place of the image's.
    pub env: Vec<String>,
    /// In place of the image's WorkingDir.
    pub workdir: Option<String>,
    /// In place of the image's User.
    pub user: Option<String>,
    /// Whether the process gets a terminal.
    pub terminal: bool,
    /// The container's host name.
    pub hostname: String,
}

/// Makes the specification of a container of `image` whose root is `root`, which is its own
/// and writable.
///
/// # Errors
/// What the image says of its process, and cannot be.
pub fn specification(
    image: &ImageConfiguration,
    settings: &Settings,
    root: &Path,
) -> Result<Spec, ImageError> {
    let inside = Root::open(root).map_err(ImageError::system(root.display()))?;
    let process = Process::choose(image, settings, &inside)?;
    build(image, settings, process, root)
        .map_err(|error| ImageError::invalid("the image's configuration", error))
}

fn build(
    image: &ImageConfiguration,
    settings: &Settings,
    process: Process,
    root: &Path,
) -> Result<Spec, OciSpecError> {
    let set: HashSet<_> = CAPABILITIES.into_iter().collect();
    let capabilities = LinuxCapabilitiesBuilder::default()
        .bounding(set.clone())
        .inheritable(HashSet::new())
        .ambient(HashSet::new())
        .permitted(set.clone())
        .effective(set)
        .build()?;
    let user = UserBuilder::default()
        .uid(process.user.uid)
        .gid(process.user.gid)
        .additional_gids(process.user.additional_gids)
        .build()?;
    let process = ProcessBuilder::default()
        .terminal(settings.terminal)
        .args(process.args)
        .env(process.env)
        .cwd(PathBuf::from(process.cwd))
        .user(user)
        .capabilities(capabilities)
        .no_new_privileges(false)
        .rlimits(Vec::new())
        .build()?;
    let stop_signal = image
        .config()
        .as_ref()
        .and_then(|c| c.stop_signal().clone());
    let annotations: HashMap<_, _> = stop_signal
        .map(|signal| (STOP_SIGNAL.to_owned(), signal))
        .into_iter()
        .collect();
    let default = Spec::default();
    SpecBuilder::default()
        .process(process)
        .root(RootBuilder::default().path(root).readonly(false).build()?)
        .hostname(settings.hostname.clone())
        .mounts(default.mounts().clone().unwrap_or_default())
        .annotations(annotations)
        .build()
}
