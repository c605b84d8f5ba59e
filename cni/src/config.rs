//! Network configurations: a name, a version, and the plugins to execute in turn.
//!
//! What a plugin's configuration says beyond the few keys of the protocol is the
//! plugin's own business: it is kept as the text that the administrator wrote, and
//! passed on byte for byte.

use std::collections::BTreeMap;

use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use thiserror::Error;

use crate::names::{NetworkName, PluginType};
use crate::text::one_line;
use crate::version::Version;

/// Largest configuration that is read, in bytes.
pub(crate) const MAX_CONFIG: u64 = 1 << 20;

/// Most plugins of one network.
const MAX_PLUGINS: usize = 64;

/// A JSON object whose values are kept as they were written.
pub(crate) type Fields = BTreeMap<String, Box<RawValue>>;

/// Why a text is no network configuration.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct InvalidConfig(String);

impl InvalidConfig {
    fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }

    fn in_key(key: &str, error: &dyn std::error::Error) -> Self {
        Self(format!("\"{key}\": {}", one_line(&error.to_string())))
    }
}

/// A network: what the specification calls a network configuration (section 1).
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// Unique on this host.
    pub name: NetworkName,
    /// The version that plugins are spoken to in.
    pub version: Version,
    /// All versions that the configuration supports, oldest first.
    pub versions: Vec<Version>,
    /// `CHECK` is not to be called.
    pub disable_check: bool,
    /// `GC` is not to be called.
    pub disable_gc: bool,
    /// Plugins of the directory named after the network are left out.
    pub load_only_inlined_plugins: bool,
    /// In the order of `ADD`.
    pub plugins: Vec<PluginConfig>,
}

/// The configuration of one plugin of a network.
#[derive(Debug, Clone)]
pub struct PluginConfig {
    plugin_type: PluginType,
    capabilities: BTreeMap<String, bool>,
    fields: Fields,
}

/// The keys of a network configuration that are the runtime's.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListKeys {
    name: Option<String>,
    cni_version: Option<String>,
    cni_versions: Option<Vec<String>>,
    #[serde(default, deserialize_with = "flag")]
    disable_check: bool,
    #[serde(default, rename = "disableGC", deserialize_with = "flag")]
    disable_gc: bool,
    #[serde(default, deserialize_with = "flag")]
    load_only_inlined_plugins: bool,
    plugins: Option<Vec<Fields>>,
    #[serde(rename = "type")]
    plugin_type: Option<String>,
}

impl NetworkConfig {
    /// Reads a configuration list, or a single plugin's configuration (the form that
    /// 1.0.0 has dropped), which is taken for a list of one.
    ///
    /// A list without `plugins` is valid: the directory named after the network may
    /// have some (see [`crate::discovery`]).
    ///
    /// # Errors
    ///
    /// The text is no JSON object, lacks a key, or has one of a wrong kind.
    pub fn from_json(json: &[u8]) -> Result<Self, InvalidConfig> {
        let keys: ListKeys = serde_json::from_slice(json)
            .map_err(|error| InvalidConfig::new(one_line(&error.to_string())))?;
        let (version, versions) = select_version(&keys)?;
        let name = keys
            .name
            .ok_or_else(|| InvalidConfig::new("\"name\" is missing"))?;
        let plugins = match (keys.plugins, keys.plugin_type) {
            (Some(plugins), _) => inlined(plugins)?,
            (None, Some(_)) => vec![PluginConfig::from_json(json)?],
            (None, None) if keys.load_only_inlined_plugins => {
                return Err(InvalidConfig::new(
                    "\"loadOnlyInlinedPlugins\" is true, but \"plugins\" is missing",
                ));
            }
            (None, None) => Vec::new(),
        };
        Ok(Self {
            name: name
                .try_into()
                .map_err(|e| InvalidConfig::in_key("name", &e))?,
            version,
            versions,
            disable_check: keys.disable_check,
            disable_gc: keys.disable_gc,
            load_only_inlined_plugins: keys.load_only_inlined_plugins,
            plugins,
        })
    }

    /// Whether a plugin of this network takes the capability `name` (section 3,
    /// "Deriving `runtimeConfig`").
    #[must_use]
    pub fn supports(&self, name: &str) -> bool {
        self.plugins
            .iter()
            .any(|plugin| plugin.capabilities.get(name).copied().unwrap_or(false))
    }
}

/// As a configuration list, which [`NetworkConfig::from_json`] reads.
impl Serialize for NetworkConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let plugins: Vec<_> = self.plugins.iter().map(|plugin| &plugin.fields).collect();
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("name", &self.name)?;
        map.serialize_entry("cniVersion", &self.version)?;
        map.serialize_entry("disableCheck", &self.disable_check)?;
        map.serialize_entry("disableGC", &self.disable_gc)?;
        map.serialize_entry("plugins", &plugins)?;
        map.end()
    }
}

impl PluginConfig {
    /// Reads the configuration of one plugin.
    ///
    /// # Errors
    ///
    /// The text is no JSON object, or `type` or `capabilities` are not valid.
    pub fn from_json(json: &[u8]) -> Result<Self, InvalidConfig> {
        let fields = serde_json::from_slice(json)
            .map_err(|error| InvalidConfig::new(one_line(&error.to_string())))?;
        Self::from_fields(fields)
    }

    fn from_fields(fields: Fields) -> Result<Self, InvalidConfig> {
        let plugin_type = fields
            .get("type")
            .ok_or_else(|| InvalidConfig::new("\"type\" is missing"))?;
        let plugin_type = serde_json::from_str(plugin_type.get())
            .map_err(|error| InvalidConfig::in_key("type", &error))?;
        let capabilities: Option<BTreeMap<String, bool>> = match fields.get("capabilities") {
            Some(capabilities) => serde_json::from_str(capabilities.get())
                .map_err(|error| InvalidConfig::in_key("capabilities", &error))?,
            None => None,
        };
        Ok(Self {
            plugin_type,
            capabilities: capabilities.unwrap_or_default(),
            fields,
        })
    }

    /// The name of the plugin's executable file.
    #[must_use]
    pub fn plugin_type(&self) -> &PluginType {
        &self.plugin_type
    }

    /// Which parts of the runtime's configuration the plugin takes.
    #[must_use]
    pub fn capabilities(&self) -> &BTreeMap<String, bool> {
        &self.capabilities
    }

    /// All that was written, the keys above included.
    pub(crate) fn fields(&self) -> &Fields {
        &self.fields
    }
}

/// Refuses a network of more plugins than any has.
pub(crate) fn refuse_too_many(plugins: usize) -> Result<(), InvalidConfig> {
    if plugins > MAX_PLUGINS {
        return Err(InvalidConfig::new(format!(
            "\"plugins\" has more than {MAX_PLUGINS} entries"
        )));
    }
    Ok(())
}

fn inlined(plugins: Vec<Fields>) -> Result<Vec<PluginConfig>, InvalidConfig> {
    if plugins.is_empty() {
        return Err(InvalidConfig::new("\"plugins\" is empty"));
    }
    refuse_too_many(plugins.len())?;
    plugins
        .into_iter()
        .enumerate()
        .map(|(position, fields)| {
            PluginConfig::from_fields(fields)
                .map_err(|error| InvalidConfig::new(format!("\"plugins\"[{position}]: {error}")))
        })
        .collect()
}

/// The highest version of ours among all that the configuration supports (section 1,
/// "Version considerations").
fn select_version(keys: &ListKeys) -> Result<(Version, Vec<Version>), InvalidConfig> {
    let offered: Vec<&String> = keys
        .cni_version
        .iter()
        .chain(keys.cni_versions.iter().flatten())
        .collect();
    let mut versions: Vec<Version> = offered
        .iter()
        .filter_map(|text| text.parse().ok())
        .collect();
    versions.sort_unstable();
    versions.dedup();
    if let Some(&version) = versions.last() {
        return Ok((version, versions));
    }
    Err(
        match offered
            .iter()
            .find_map(|text| text.parse::<Version>().err())
        {
            Some(unknown) => InvalidConfig::in_key("cniVersion", &unknown),
            None => InvalidConfig::new("\"cniVersion\" is missing"),
        },
    )
}

/// `true` and `false`; up to 1.0.0 the specification called them strings.
fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected true or false")]
    enum Flag {
        Bool(bool),
        Text(String),
    }
    match Flag::deserialize(deserializer)? {
        Flag::Bool(flag) => Ok(flag),
        Flag::Text(text) if text.eq_ignore_ascii_case("true") => Ok(true),
        Flag::Text(text) if text.eq_ignore_ascii_case("false") => Ok(false),
        Flag::Text(_) => Err(serde::de::Error::custom("expected true or false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<NetworkConfig, String> {
        NetworkConfig::from_json(json.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_list_is_read() {
        let network = parse(
            r#"{"cniVersion": "1.0.0", "name": "dbnet", "disableCheck": true, "disableGC": "True",
                "plugins": [{"type": "bridge"},
                            {"type": "tuning", "capabilities": {"mac": true, "ips": false}}]}"#,
        )
        .unwrap();
        assert_eq!(network.name.as_str(), "dbnet");
        assert_eq!(network.version, Version::V1_0_0);
        assert!(network.disable_check && network.disable_gc);
        let types: Vec<_> = network
            .plugins
            .iter()
            .map(|p| p.plugin_type().as_str())
            .collect();
        assert_eq!(types, ["bridge", "tuning"]);
        assert!(network.supports("mac"));
        assert!(!network.supports("ips") && !network.supports("dns"));
    }

    #[test]
    fn a_single_configuration_is_a_list_of_one() {
        let network = parse(
            r#"{"cniVersion": "0.3.1", "name": "mynet", "type": "ptp", "ipam": {"type": "x"}}"#,
        )
        .unwrap();
        assert_eq!(network.plugins.len(), 1);
        assert_eq!(
            network.plugins[0].fields()["ipam"].get(),
            r#"{"type": "x"}"#
        );
    }

    #[test]
    fn the_highest_version_of_ours_is_chosen() {
        let chosen = |versions: &str| {
            parse(&format!(r#"{{{versions}, "name": "n", "type": "t"}}"#)).map(|n| n.version)
        };
        assert_eq!(
            chosen(r#""cniVersion": "0.4.0", "cniVersions": ["1.0.0", "0.3.1"]"#),
            Ok(Version::V1_0_0)
        );
        assert_eq!(
            chosen(r#""cniVersion": "1.0.0", "cniVersions": ["0.4.0", "7.0.0"]"#),
            Ok(Version::V1_0_0)
        );
        assert_eq!(chosen(r#""cniVersions": ["1.1.0"]"#), Ok(Version::V1_1_0));
        assert_eq!(
            chosen(r#""cniVersion": "0.2.0""#).unwrap_err(),
            "\"cniVersion\": CNI version \"0.2.0\" is none of 0.3.1, 0.4.0, 1.0.0 and 1.1.0"
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (json, words) in [
            ("{", "EOF"),
            ("[]", "invalid"),
            ("\u{1b}", "expected value"),
            (r#"{"name": "n", "type": "t"}"#, "\"cniVersion\" is missing"),
            (
                r#"{"cniVersion": "1.0.0", "type": "t"}"#,
                "\"name\" is missing",
            ),
            (
                r#"{"cniVersion": "1.0.0", "name": "../n", "type": "t"}"#,
                "network name \"../n\"",
            ),
            (
                r#"{"cniVersion": "1.0.0", "name": "n", "type": "../t"}"#,
                "plugin type \"../t\"",
            ),
            (
                r#"{"cniVersion": "1.0.0", "name": "n", "plugins": []}"#,
                "\"plugins\" is empty",
            ),
            (
                r#"{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "a"}, {}]}"#,
                "\"plugins\"[1]: \"type\" is missing",
            ),
            (
                r#"{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "a", "capabilities": {"x": 1}}]}"#,
                "\"plugins\"[0]: \"capabilities\"",
            ),
            (
                r#"{"cniVersion": "1.1.0", "name": "n", "loadOnlyInlinedPlugins": true}"#,
                "\"plugins\" is missing",
            ),
            (
                r#"{"cniVersion": "1.1.0", "name": "n", "type": "t", "disableGC": "perhaps"}"#,
                "expected true or false",
            ),
        ] {
            let error = parse(json).unwrap_err();
            assert!(error.contains(words), "{json}: {error}");
            assert!(!error.contains(char::is_control), "{error:?}");
        }
    }

    #[test]
    fn too_many_plugins_are_refused() {
        let plugins = vec![r#"{"type": "t"}"#; MAX_PLUGINS + 1].join(",");
        let json = format!(r#"{{"cniVersion": "1.0.0", "name": "n", "plugins": [{plugins}]}}"#);
        assert_eq!(
            parse(&json).unwrap_err(),
            "\"plugins\" has more than 64 entries"
        );
    }

    #[test]
    fn a_plugins_own_keys_survive_writing_and_reading_unchanged() {
        let network = parse(
            r#"{"cniVersion": "1.0.0", "name": "n", "disableCheck": true,
                "plugins": [{"type": "t", "big": 123456789012345678901234567890, "f": 0.10}]}"#,
        )
        .unwrap();
        let again = parse(&serde_json::to_string(&network).unwrap()).unwrap();
        assert_eq!(
            again.plugins[0].fields()["big"].get(),
            "123456789012345678901234567890"
        );
        assert_eq!(again.plugins[0].fields()["f"].get(), "0.10");
        assert!(again.disable_check && !again.disable_gc);
        assert_eq!(again.version, network.version);
    }
}
