//! Options that containerd's configuration of the runtime carries.
//!
//! For runtimes other than runc that is `runtimeoptions.v1.Options`: a path
//! (`ConfigPath`, or `ctr run --runtime-config-path`), or the configuration
//! itself as TOML. runc's options mean nothing here.

use std::path::Path;

use protobuf::well_known_types::any::Any;

use crate::config::{Config, ConfigError};
use crate::wire::Fields;

/// containerd's options for runtimes that have none of their own.
const RUNTIME_OPTIONS: &str = "runtimeoptions.v1.Options";
/// Its field `config_path`.
const CONFIG_PATH: u32 = 2;
/// Its field `config_body`.
const CONFIG_BODY: u32 = 3;

/// What containerd calls that configuration, for messages.
const BODY_PLACE: &str = "runtime options in containerd's configuration";

/// The configuration that the options name or hold, else the usual one.
pub(crate) fn config(options: &[Any]) -> Result<Config, ConfigError> {
    let ours = options
        .iter()
        .find_map(|options| Fields::of(options, RUNTIME_OPTIONS));
    let Some(ours) = ours else {
        return Config::load(None);
    };
    match (ours.text(CONFIG_PATH), ours.text(CONFIG_BODY)) {
        ("", "") => Config::load(None),
        ("", body) => Config::parse(body, BODY_PLACE),
        (path, _) => Config::load(Some(Path::new(path))),
    }
}

#[cfg(test)]
mod tests {
    use protobuf::CodedOutputStream;

    use super::*;

    fn any(type_url: &str, field: u32, text: &str) -> Any {
        let mut value = Vec::new();
        let mut stream = CodedOutputStream::vec(&mut value);
        stream.write_string(field, text).unwrap();
        stream.flush().unwrap();
        drop(stream);
        Any {
            type_url: type_url.into(),
            value,
            ..Default::default()
        }
    }

    #[test]
    fn options_name_the_file_or_hold_its_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nacre.toml");
        std::fs::write(&path, "default_vcpus = 2").unwrap();
        let by_path = any(RUNTIME_OPTIONS, CONFIG_PATH, path.to_str().unwrap());
        assert_eq!(config(&[by_path]).unwrap().default_vcpus, 2);
        let by_text = any(RUNTIME_OPTIONS, CONFIG_BODY, "default_vcpus = 3");
        assert_eq!(config(&[by_text]).unwrap().default_vcpus, 3);
        let wrong = any(RUNTIME_OPTIONS, CONFIG_BODY, "vcpu = 3");
        let error = config(&[wrong]).unwrap_err().to_string();
        assert!(
            error.starts_with("runtime options in containerd's"),
            "{error}"
        );
    }

    #[test]
    fn options_of_runc_mean_nothing() {
        let runc = any("containerd.runc.v1.Options", CONFIG_PATH, "/nowhere");
        config(&[runc]).unwrap();
    }
}
