//! `-v` and `-info`: what this runtime is.

use std::io::{self, Write};

use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::Message;

/// The name of the runtime in containerd.
pub(crate) const RUNTIME: &str = "io.containerd.nacre.v2";

/// Name of the program.
pub(crate) const PROGRAM: &str = env!("CARGO_PKG_NAME");

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
}
