//! `GC`.

use super::Cni;
use crate::attachment::{Attachment, AttachmentId};
use crate::cache::CacheEntry;
use crate::config::{NetworkConfig, PluginConfig};
use crate::error::Error;
use crate::lock::Lock;
use crate::plugin::Command;
use crate::request;
use crate::version::Version;

impl Cni {
    /// Removes what belongs to no valid attachment: those that the cache knows by `DEL`,
    /// then, since 1.1.0, whatever else the plugins know by `GC`. A network with
    /// `disableGC` is left alone.
    ///
    /// It waits for each `add` and `del` under way, keeps others waiting, and then asks
    /// `valid`: its answer can be neither too old nor half of an `add`. It must name every
    /// attachment to this network, also those of other runtimes.
    ///
    /// # Errors
    ///
    /// All that went wrong; everything is tried.
    pub fn gc(
        &self,
        network: &NetworkConfig,
        valid: impl FnOnce() -> Vec<AttachmentId>,
    ) -> Result<(), Error> {
        if network.disable_gc {
            return Ok(());
        }
        let _lock = Lock::exclusive(self.cache.make_dir()?, self.patience)?;
        let valid = valid();
        let mut errors = Vec::new();
        for known in self.cache.list()? {
            if known.network == network.name && !valid.contains(&known.id) {
                let entry = known
                    .entry
                    .unwrap_or_else(|| CacheEntry::new(network, &Attachment::new(known.id, None)));
                errors.extend(self.remove(&entry, entry.network.plugins.len()));
            }
        }
        if network.version >= Version::V1_1_0 {
            for plugin in &network.plugins {
                errors.extend(self.gc_plugin(network, plugin, &valid).err());
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
}
