//! `VERSION`, and the choice of one.

use serde::Deserialize;

use super::Cni;
use crate::config::NetworkConfig;
use crate::error::Error;
use crate::names::PluginType;
use crate::plugin::{Command, Failure, PluginError, invalid_result};
use crate::request;
use crate::text::one_line;

/// Most versions that a plugin may say it speaks.
const MAX_VERSIONS: usize = 64;

/// A plugin's answer to `VERSION`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    supported_versions: Vec<String>,
}

impl Cni {
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
}
