//! `ADD`.

use super::Cni;
use crate::attachment::Attachment;
use crate::cache::CacheEntry;
use crate::config::NetworkConfig;
use crate::error::Error;
use crate::lock::Lock;
use crate::plugin::{Command, PluginError, invalid_result};
use crate::result::AddResult;

impl Cni {
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

    /// Undoes an `ADD` that failed with the plugin at `last`. What cannot be undone stays
    /// in the cache.
    fn undo(&self, entry: &CacheEntry, last: usize, error: Error) -> Error {
        let ran = match &error {
            Error::Plugin(error) if error.failure.is_before_start() => last,
            _ => last + 1,
        };
        match Error::of_all(self.remove(entry, ran)) {
            Ok(()) => error,
            Err(undo) => Error::NotUndone {
                add: Box::new(error),
                undo: Box::new(undo),
            },
        }
    }
}
