//! What a plugin reads on its standard input: its configuration with a few keys of the
//! runtime's (section 3, "Deriving request configuration from plugin configuration").

use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use crate::attachment::{Attachment, AttachmentId};
use crate::config::{Fields, NetworkConfig, PluginConfig};
use crate::result::AddResult;
use crate::version::Version;

/// Keys of this prefix are the protocol's.
const RESERVED_PREFIX: &str = "cni.dev/";

/// For `ADD`, `DEL` and `CHECK`.
pub(crate) fn of_attachment(
    network: &NetworkConfig,
    plugin: &PluginConfig,
    attachment: &Attachment,
    previous: Option<&AddResult>,
) -> serde_json::Result<Vec<u8>> {
    let mut fields = base(network, plugin)?;
    let runtime_config = attachment.capabilities.declared_by(plugin)?;
    if !runtime_config.is_empty() {
        insert(&mut fields, "runtimeConfig", &runtime_config)?;
    }
    if let Some(previous) = previous {
        insert(
            &mut fields,
            "prevResult",
            &previous.to_version(network.version),
        )?;
    }
    serde_json::to_vec(&fields)
}

/// For `GC`.
pub(crate) fn of_gc(
    network: &NetworkConfig,
    plugin: &PluginConfig,
    valid: &[AttachmentId],
) -> serde_json::Result<Vec<u8>> {
    let mut fields = base(network, plugin)?;
    insert(&mut fields, "cni.dev/valid-attachments", &valid)?;
    // The key's name before the specification settled it. A plugin that knows only
    // this one would find no list, and remove everything.
    insert(&mut fields, "cni.dev/attachments", &valid)?;
    serde_json::to_vec(&fields)
}

/// For `STATUS`.
pub(crate) fn of_status(
    network: &NetworkConfig,
    plugin: &PluginConfig,
) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&base(network, plugin)?)
}

/// For `VERSION`.
pub(crate) fn of_version() -> serde_json::Result<Vec<u8>> {
    let mut fields = Fields::new();
    insert(&mut fields, "cniVersion", &Version::LATEST)?;
    serde_json::to_vec(&fields)
}

fn base(network: &NetworkConfig, plugin: &PluginConfig) -> serde_json::Result<Fields> {
    let mut fields = plugin.fields().clone();
    fields.retain(|key, _| {
        key != "capabilities" && key != "prevResult" && !key.starts_with(RESERVED_PREFIX)
    });
    insert(&mut fields, "name", &network.name)?;
    insert(&mut fields, "cniVersion", &network.version)?;
    Ok(fields)
}

fn insert<T: Serialize>(fields: &mut Fields, key: &str, value: &T) -> serde_json::Result<()> {
    let value: Box<RawValue> = to_raw_value(value)?;
    fields.insert(key.to_owned(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn network() -> NetworkConfig {
        let json = json!({
            "cniVersion": "0.4.0", "name": "n",
            "plugins": [{
                "type": "t", "name": "other", "cniVersion": "1.0.0", "keyA": ["a", "b"],
                "capabilities": {"mac": true}, "cni.dev/x": 1, "prevResult": {},
                "args": {"cni": {}},
            }],
        });
        NetworkConfig::from_json(json.to_string().as_bytes()).unwrap()
    }

    fn attachment() -> Attachment {
        let mut attachment = Attachment::new(AttachmentId::new("c", "eth0").unwrap(), None);
        attachment.capabilities.mac = Some("c2:11:22:33:44:55".parse().unwrap());
        attachment.capabilities.aliases = vec!["not declared".into()];
        attachment
    }

    fn value(request: serde_json::Result<Vec<u8>>) -> Value {
        serde_json::from_slice(&request.unwrap()).unwrap()
    }

    #[test]
    fn the_runtimes_keys_are_set_and_the_plugins_own_kept() {
        let network = network();
        assert_eq!(
            value(of_attachment(
                &network,
                &network.plugins[0],
                &attachment(),
                None
            )),
            json!({
                "type": "t", "name": "n", "cniVersion": "0.4.0", "keyA": ["a", "b"],
                "args": {"cni": {}}, "runtimeConfig": {"mac": "c2:11:22:33:44:55"},
            })
        );
    }

    #[test]
    fn the_previous_result_is_in_the_networks_version() {
        let network = network();
        let previous = AddResult::from_json(
            br#"{"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.2/24"}]}"#,
            Version::V1_1_0,
        )
        .unwrap();
        let plugin = &network.plugins[0];
        let request = value(of_attachment(
            &network,
            plugin,
            &attachment(),
            Some(&previous),
        ));
        assert_eq!(
            request["prevResult"],
            json!({"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.0.0.2/24"}]})
        );
    }

    #[test]
    fn garbage_collection_names_who_is_valid() {
        let network = network();
        let valid = [AttachmentId::new("c", "eth0").unwrap()];
        let request = value(of_gc(&network, &network.plugins[0], &valid));
        let expected = json!([{"containerID": "c", "ifname": "eth0"}]);
        assert_eq!(request["cni.dev/valid-attachments"], expected);
        assert_eq!(request["cni.dev/attachments"], expected);
        assert_eq!(request.get("runtimeConfig"), None);
    }
}
