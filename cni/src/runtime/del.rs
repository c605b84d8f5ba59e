//! `DEL`, and how what is left of an attachment is removed.

use super::Cni;
use crate::attachment::Attachment;
use crate::cache::CacheEntry;
use crate::config::{NetworkConfig, PluginConfig};
use crate::error::Error;
use crate::lock::Lock;
use crate::plugin::Command;

/// A plugin's code for "unknown container": there is nothing to clean up.
const UNKNOWN_CONTAINER: u32 = 3;

impl Cni {
    /// Removes a container from a network: each plugin in reverse order. All of them
    /// get what `ADD` had and its result, from the cache; `network` and `attachment` are
    /// for what the cache does not know. It may be repeated.
    ///
    /// # Errors
    ///
    /// A plugin failed. The others are not asked, as the specification wants it, and the
    /// cache still has the attachment, so that it can be tried again.
    pub fn del(&self, network: &NetworkConfig, attachment: &Attachment) -> Result<(), Error> {
        let _lock = Lock::shared(self.cache.make_dir()?, self.patience)?;
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

    /// `DEL` of the first `count` plugins, last one first. Everything is tried, and the
    /// attachment is forgotten if nothing went wrong.
    pub(super) fn remove(&self, entry: &CacheEntry, count: usize) -> Vec<Error> {
        let mut errors: Vec<_> = entry.network.plugins[..count]
            .iter()
            .rev()
            .filter_map(|plugin| self.del_plugin_twice(entry, plugin).err())
            .collect();
        if errors.is_empty() {
            let forgotten = self.cache.remove(&entry.network.name, &entry.attachment.id);
            errors.extend(forgotten.err());
        }
        errors
    }

    /// `DEL`, a second time when the plugin complained: some miss on the first time what
    /// their failed `ADD` has not made, but remove the rest.
    fn del_plugin_twice(&self, entry: &CacheEntry, plugin: &PluginConfig) -> Result<(), Error> {
        match self.del_plugin(entry, plugin) {
            Err(Error::Plugin(error)) if error.failure.is_answer() => {
                self.del_plugin(entry, plugin)
            }
            other => other,
        }
    }
}
