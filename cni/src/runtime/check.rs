//! `CHECK` and `STATUS`.

use super::Cni;
use crate::attachment::AttachmentId;
use crate::config::NetworkConfig;
use crate::error::Error;
use crate::plugin::Command;
use crate::request;
use crate::version::Version;

impl Cni {
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
