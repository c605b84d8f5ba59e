//! What a runtime does with a network: `ADD`, `DEL`, `CHECK`, `GC`, `STATUS` and
//! `VERSION` (section 3 of the specification).

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::statfs;
use serde::Deserialize;

use crate::attachment::{Attachment, AttachmentId};
use crate::cache::{Cache, CacheEntry, CachedAttachment};
use crate::config::{NetworkConfig, PluginConfig};
use crate::error::Error;
use crate::lock::Lock;
use crate::names::{NetworkName, PluginType};
use crate::plugin::{Command, Failure, PluginError, Plugins, invalid_result};
use crate::request;
use crate::result::AddResult;
use crate::text::one_line;
use crate::version::Version;

/// Where plugins are when nobody says otherwise: the specification's place, and that
/// of some distributions.
pub const DEFAULT_PLUGIN_DIRS: [&str; 2] = ["/opt/cni/bin", "/usr/lib/cni"];

/// How long a plugin may take when nobody says otherwise.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(60);

/// A plugin's code for "unknown container": there is nothing to clean up.
const UNKNOWN_CONTAINER: u32 = 3;

/// Most versions that a plugin may say it speaks.
const MAX_VERSIONS: usize = 64;

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

/// A plugin's answer to `VERSION`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    supported_versions: Vec<String>,
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

    /// Sets how long a plugin may take. Another process's lock is waited for twice as
    /// long.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.plugins.set_deadline(deadline);
        self.patience = deadline.saturating_mul(2);
        self
    }

    /// Adds a container to a network: each plugin in turn, with the result of the one
    /// before. When one fails, those that ran are undone by `DEL`, last one first.
    ///
    /// # Errors
    ///
    /// A plugin failed, the cache could not be written, or the attachment was added
    /// before. After [`Error::NotUndone`] the cache keeps what is left for [`Self::del`]
    /// and [`Self::gc`].
    pub fn add(
        &self,
        network: &NetworkConfig,
        attachment: &Attachment,
    ) -> Result<AddResult, Error> {
        if network.plugins.is_empty() {
            return Err(Error::NoPlugins(network.name.clone()));
        }
        if attachment.netns.is_none() {
            return Err(Error::NoNamespace {
                command: Command::Add,
                id: attachment.id.clone(),
            });
        }
        let _lock = Lock::shared(self.cache.make_dir()?, self.patience)?;
        if self.cache.read(&network.name, &attachment.id)?.is_some() {
            return Err(Error::AlreadyAdded {
                id: attachment.id.clone(),
                network: network.name.clone(),
            });
        }
        let mut entry = CacheEntry::new(network, attachment);
        self.cache.write(&entry)?;
        for position in 0..network.plugins.len() {
            if let Err(error) = self.add_plugin(&mut entry, position) {
                return Err(self.undo(&entry, position, error));
            }
        }
        entry
            .result
            .ok_or_else(|| Error::NoPlugins(network.name.clone()))
    }

    /// Executes one plugin of a chain, and notes how far the chain has come.
    fn add_plugin(&self, entry: &mut CacheEntry, position: usize) -> Result<(), Error> {
        let network = &entry.network;
        let plugin = &network.plugins[position];
        let stdout = self.execute(Command::Add, entry, plugin, entry.result.as_ref())?;
        let result =
            AddResult::from_json(&stdout, network.version).map_err(|invalid| PluginError {
                plugin: plugin.plugin_type().clone(),
                command: Command::Add,
                failure: invalid_result(&invalid, &stdout),
            })?;
        entry.result = Some(result.to_version(network.version));
        entry.complete = position + 1 == entry.network.plugins.len();
        self.cache.write(entry)
    }

    /// Undoes an `ADD` that failed with the plugin at `last`. Everything is tried; what
    /// cannot be undone stays in the cache.
    fn undo(&self, entry: &CacheEntry, last: usize, error: Error) -> Error {
        let ran = match &error {
            Error::Plugin(error) if error.failure.is_before_start() => last,
            _ => last + 1,
        };
        let errors: Vec<_> = entry.network.plugins[..ran]
            .iter()
            .rev()
            .filter_map(|plugin| self.undo_plugin(entry, plugin).err())
            .collect();
        let undone = Error::of_all(errors)
            .and_then(|()| self.cache.remove(&entry.network.name, &entry.attachment.id));
        match undone {
            Ok(()) => error,
            Err(undo) => Error::NotUndone {
                add: Box::new(error),
                undo: Box::new(undo),
            },
        }
    }

    /// `DEL`, a second time when the plugin complained: some miss on the first time what
    /// their failed `ADD` has not made, but remove the rest.
    fn undo_plugin(&self, entry: &CacheEntry, plugin: &PluginConfig) -> Result<(), Error> {
        match self.del_plugin(entry, plugin) {
            Err(Error::Plugin(error)) if error.failure.is_answer() => {
                self.del_plugin(entry, plugin)
            }
            other => other,
        }
    }

    /// Removes a container from a network: each plugin in reverse order. All of them
    /// get what `ADD` had and its result, from the cache; `network` and `attachment` are
    /// for what the cache does not know. It may be repeated.
    ///
    /// # Errors
    ///
    /// A plugin failed. The others are not asked, and the cache still has the
    /// attachment, so that it can be tried again.
    pub fn del(&self, network: &NetworkConfig, attachment: &Attachment) -> Result<(), Error> {
        let _lock = Lock::shared(self.cache.make_dir()?, self.patience)?;
        self.del_locked(network, attachment)
    }

    fn del_locked(&self, network: &NetworkConfig, attachment: &Attachment) -> Result<(), Error> {
        let entry = match self.cache.read(&network.name, &attachment.id) {
            Ok(Some(entry)) => entry,
            Ok(None) | Err(Error::Damaged { .. }) => CacheEntry::new(network, attachment),
            Err(error) => return Err(error),
        };
        for plugin in entry.network.plugins.iter().rev() {
            self.del_plugin(&entry, plugin)?;
        }
        self.cache.remove(&network.name, &attachment.id)
    }

    fn del_plugin(&self, entry: &CacheEntry, plugin: &PluginConfig) -> Result<(), Error> {
        let known = entry.network.version.has_result_on_del();
        let previous = entry.result.as_ref().filter(|_| known);
        match self.execute(Command::Del, entry, plugin, previous) {
            Err(error) if error.code() == Some(UNKNOWN_CONTAINER) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Asks each plugin whether an attachment is as `ADD` left it. A network with
    /// `disableCheck` is not asked.
    ///
    /// # Errors
    ///
    /// A plugin found something wrong, the attachment was not added, or the network's
    /// version, 0.3.1, has no `CHECK`.
    pub fn check(&self, network: &NetworkConfig, id: &AttachmentId) -> Result<(), Error> {
        require(Command::Check, Version::V0_4_0, network)?;
        if network.disable_check {
            return Ok(());
        }
        let Some(entry) = self
            .cache
            .read(&network.name, id)?
            .filter(|entry| entry.complete)
        else {
            return Err(Error::NotAdded {
                id: id.clone(),
                network: network.name.clone(),
            });
        };
        for plugin in &entry.network.plugins {
            self.execute(Command::Check, &entry, plugin, entry.result.as_ref())?;
        }
        Ok(())
    }

    /// Removes what belongs to no attachment in `valid`: attachments that the cache
    /// knows by `DEL`, then, since 1.1.0, whatever the plugins know by `GC`. It waits for
    /// each `add` and `del` under way, and keeps others waiting; an attachment that is
    /// added after `valid` was put together must not be missing from it, so put it
    /// together from what is meant to be, not from what is. A network with `disableGC` is
    /// left alone.
    ///
    /// # Errors
    ///
    /// All that went wrong; everything is tried.
    pub fn gc(&self, network: &NetworkConfig, valid: &[AttachmentId]) -> Result<(), Error> {
        if network.disable_gc {
            return Ok(());
        }
        let _lock = Lock::exclusive(self.cache.make_dir()?, self.patience)?;
        let mut errors = Vec::new();
        for stale in self.cache.list()? {
            if stale.network == network.name && !valid.contains(&stale.id) {
                let attachment = Attachment::new(stale.id, None);
                errors.extend(self.del_locked(network, &attachment).err());
            }
        }
        if network.version >= Version::V1_1_0 {
            for plugin in &network.plugins {
                errors.extend(self.gc_plugin(network, plugin, valid).err());
            }
        }
        Error::of_all(errors)
    }

    fn gc_plugin(
        &self,
        network: &NetworkConfig,
        plugin: &PluginConfig,
        valid: &[AttachmentId],
    ) -> Result<(), Error> {
        let request = request::of_gc(network, plugin, valid)?;
        let plugin = plugin.plugin_type();
        self.plugins
            .execute(plugin, Command::Gc, Vec::new(), &request)?;
        Ok(())
    }

    /// Asks each plugin whether `ADD` can work. Before 1.1.0 there is no such question,
    /// and the answer is yes.
    ///
    /// # Errors
    ///
    /// The first plugin that is not ready; see [`Error::code`].
    pub fn status(&self, network: &NetworkConfig) -> Result<(), Error> {
        if network.version < Version::V1_1_0 {
            return Ok(());
        }
        for plugin in &network.plugins {
            let request = request::of_status(network, plugin)?;
            let plugin = plugin.plugin_type();
            self.plugins
                .execute(plugin, Command::Status, Vec::new(), &request)?;
        }
        Ok(())
    }

    /// The versions of the specification that a plugin says it speaks.
    ///
    /// # Errors
    ///
    /// The plugin failed, or its answer is not valid.
    pub fn versions(&self, plugin: &PluginType) -> Result<Vec<String>, Error> {
        let request = request::of_version()?;
        let stdout = self
            .plugins
            .execute(plugin, Command::Version, Vec::new(), &request)?;
        let invalid = |reason: &dyn std::fmt::Display| PluginError {
            plugin: plugin.clone(),
            command: Command::Version,
            failure: invalid_result(reason, &stdout),
        };
        let answer: Versions = serde_json::from_slice(&stdout).map_err(|error| invalid(&error))?;
        if answer.supported_versions.len() > MAX_VERSIONS {
            return Err(invalid(&"too many versions").into());
        }
        Ok(answer
            .supported_versions
            .iter()
            .map(|version| one_line(version))
            .collect())
    }

    /// Sees that each plugin is there, and chooses the highest version that the
    /// configuration and all of its plugins speak. Without it, plugins are spoken to in
    /// the configuration's highest version, and those that are older fail.
    ///
    /// # Errors
    ///
    /// A plugin is missing, or has no version in common with the others.
    pub fn negotiate(&self, mut network: NetworkConfig) -> Result<NetworkConfig, Error> {
        for plugin in &network.plugins {
            let plugin = plugin.plugin_type();
            let spoken = self.versions(plugin)?;
            network
                .versions
                .retain(|ours| spoken.iter().any(|theirs| theirs == ours.as_str()));
            match network.versions.last() {
                Some(&version) => network.version = version,
                None => {
                    return Err(Error::from(PluginError {
                        plugin: plugin.clone(),
                        command: Command::Version,
                        failure: Failure::NoCommonVersion(spoken),
                    }));
                }
            }
        }
        Ok(network)
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

fn require(command: Command, least: Version, network: &NetworkConfig) -> Result<(), Error> {
    if network.version >= least {
        return Ok(());
    }
    Err(Error::NotInVersion {
        command,
        version: network.version,
        network: network.name.clone(),
    })
}
