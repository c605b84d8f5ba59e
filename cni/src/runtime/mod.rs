//! What a runtime does with a network: `ADD`, `DEL`, `CHECK`, `GC`, `STATUS` and
//! `VERSION` (section 3 of the specification).

mod add;
mod check;
mod del;
mod gc;
mod version;

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::statfs;

use crate::attachment::{Attachment, AttachmentId};
use crate::cache::{Cache, CacheEntry, CachedAttachment};
use crate::config::PluginConfig;
use crate::error::Error;
use crate::names::NetworkName;
use crate::plugin::{Command, Plugins};
use crate::request;
use crate::result::AddResult;

/// Where plugins are when nobody says otherwise: the specification's place, and that
/// of some distributions.
pub const DEFAULT_PLUGIN_DIRS: [&str; 2] = ["/opt/cni/bin", "/usr/lib/cni"];

/// How long a plugin may take when nobody says otherwise.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(60);

/// Keeps the arithmetic of moments from overflowing.
const MAX_DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);

/// `NSFS_MAGIC` of linux/magic.h: the file system of namespaces' files.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// The plugins of this host and a result cache.
///
/// Calls block until the plugins have answered. Calls for different containers may run
/// beside one another, in any number of threads and processes; those for the same
/// container must not.
#[derive(Debug, Clone)]
pub struct Cni {
    plugins: Plugins,
    cache: Cache,
    patience: Duration,
}

/// The directories of `CNI_PATH`, or the [default ones](DEFAULT_PLUGIN_DIRS).
#[must_use]
pub fn plugin_dirs() -> Vec<PathBuf> {
    match env::var_os("CNI_PATH") {
        Some(path) if !path.is_empty() => env::split_paths(&path)
            .filter(|dir| !dir.as_os_str().is_empty())
            .collect(),
        _ => DEFAULT_PLUGIN_DIRS.iter().map(PathBuf::from).collect(),
    }
}

impl Cni {
    /// `plugin_dirs` are searched in their order; `cache_dir` is made when it is needed.
    ///
    /// # Errors
    ///
    /// A directory of plugins is not absolute, or cannot be written into `CNI_PATH`.
    pub fn new(plugin_dirs: Vec<PathBuf>, cache_dir: impl Into<PathBuf>) -> Result<Self, Error> {
        let cni = Self {
            plugins: Plugins::new(plugin_dirs, DEFAULT_DEADLINE)?,
            cache: Cache::new(cache_dir.into()),
            patience: Duration::ZERO,
        };
        Ok(cni.with_deadline(DEFAULT_DEADLINE))
    }

    /// Sets how long a plugin may take, at most a day. Another process's lock is waited
    /// for twice as long.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        let deadline = deadline.min(MAX_DEADLINE);
        self.plugins.set_deadline(deadline);
        self.patience = deadline.saturating_mul(2);
        self
    }

    /// All attachments that were added and not deleted, of all networks.
    ///
    /// # Errors
    ///
    /// The cache cannot be read.
    pub fn attachments(&self) -> Result<Vec<CachedAttachment>, Error> {
        self.cache.list()
    }

    /// What `ADD` was given and what it got.
    ///
    /// # Errors
    ///
    /// The cache cannot be read, or what it has of this attachment is damaged.
    pub fn attachment(
        &self,
        network: &NetworkName,
        id: &AttachmentId,
    ) -> Result<Option<CacheEntry>, Error> {
        self.cache.read(network, id)
    }

    /// Executes one plugin for an attachment.
    fn execute(
        &self,
        command: Command,
        entry: &CacheEntry,
        plugin: &PluginConfig,
        previous: Option<&AddResult>,
    ) -> Result<Vec<u8>, Error> {
        let CacheEntry {
            network,
            attachment,
            ..
        } = entry;
        let request = request::of_attachment(network, plugin, attachment, previous)?;
        let parameters = parameters(command, attachment);
        let stdout = self
            .plugins
            .execute(plugin.plugin_type(), command, parameters, &request)?;
        Ok(stdout)
    }
}

/// The variables of an attachment (section 2, "Parameters").
fn parameters(command: Command, attachment: &Attachment) -> Vec<(&'static str, OsString)> {
    let id = &attachment.id;
    let mut parameters = vec![
        ("CNI_CONTAINERID", id.container_id.as_str().into()),
        ("CNI_IFNAME", id.interface.as_str().into()),
    ];
    if let Some(netns) = &attachment.netns
        && (command != Command::Del || is_namespace(netns))
    {
        parameters.push(("CNI_NETNS", netns.into()));
    }
    if !attachment.args.is_empty() {
        parameters.push(("CNI_ARGS", attachment.args.to_string().into()));
    }
    parameters
}

/// Whether there still is a namespace at `path`. `DEL` goes without one that is gone:
/// plugins take a path that leads nowhere for an error more often than none.
fn is_namespace(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.f_type == NSFS_MAGIC)
}
