//! `-v` and `-info`: what this runtime is.

use std::io::{self, Write};

use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use nacre_pod::spec;
use protobuf::Message;
use protobuf::well_known_types::any::Any;

/// The name of the runtime in containerd.
pub(crate) const RUNTIME: &str = "io.containerd.nacre.v2";

/// Name of the program.
pub(crate) const PROGRAM: &str = env!("CARGO_PKG_NAME");

/// How containerd names what a runtime can do, which is JSON (its `core/runtime/typeurl.go`).
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Prints the version, in the form of containerd's own shims.
pub(crate) fn print_version() -> io::Result<()> {
    writeln!(io::stdout(), "{PROGRAM}:\n  Version:  {VERSION}")
}

/// Prints a `RuntimeInfo` message, as containerd 2 asks for it.
pub(crate) fn print_info() -> io::Result<()> {
    let bytes = runtime_info().write_to_bytes().map_err(io::Error::other)?;
    io::stdout().write_all(&bytes)
}

fn runtime_info() -> RuntimeInfo {
    RuntimeInfo {
        name: RUNTIME.to_owned(),
        version: Some(RuntimeVersion {
            version: VERSION.to_owned(),
            ..Default::default()
        })
        .into(),
        features: Some(features()).into(),
        ..Default::default()
    }
}

/// CRI reads out of them what pods may have.
fn features() -> Any {
    Any {
        type_url: FEATURES.to_owned(),
        value: spec::features(true).to_string().into_bytes(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_names_runtime_and_version() {
        let bytes = runtime_info().write_to_bytes().unwrap();
        let info = RuntimeInfo::parse_from_bytes(&bytes).unwrap();
        assert_eq!(info.name, "io.containerd.nacre.v2");
        assert_eq!(info.version.version, VERSION);
    }

    #[test]
    fn pods_are_promised_what_they_can_have() {
        let features: serde_json::Value = serde_json::from_slice(&features().value).unwrap();
        let lists = |pointer, what: &str| {
            let list = features.pointer(pointer).unwrap().as_array().unwrap();
            list.iter().any(|entry| entry == what)
        };
        // The kubelet asks for it by recursiveReadOnly.
        assert!(lists("/mountOptions", "rro"));
        assert!(lists("/linux/namespaces", "pid"));
        assert!(!lists("/linux/namespaces", "user"));
    }
}
