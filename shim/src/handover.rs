//! What `start` tells the shim that it starts, besides the command line.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::Config;

/// What `start` has found out.
#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Handover {
    pub(crate) config: Config,
    /// Where the shim serves.
    pub(crate) address: String,
    /// Where its events go.
    pub(crate) ttrpc_address: String,
}

/// The shim was not started by `start`.
#[derive(Debug, Error)]
#[error(
    "{}: {reason}: containerd starts shims, with the action \"start\"",
    Handover::VARIABLE
)]
pub(crate) struct HandoverError {
    reason: String,
}

impl Handover {
    /// The environment variable that carries it.
    pub(crate) const VARIABLE: &'static str = "NACRE_SHIM";

    /// As text.
    pub(crate) fn encode(&self) -> String {
        // Strings and numbers can always be written.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Takes it over.
    pub(crate) fn receive() -> Result<Self, HandoverError> {
        let text = std::env::var(Self::VARIABLE).map_err(|error| HandoverError {
            reason: error.to_string(),
        })?;
        Self::decode(&text)
    }

    fn decode(text: &str) -> Result<Self, HandoverError> {
        serde_json::from_str(text).map_err(|error| HandoverError {
            reason: error.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_arrives() {
        let told = Handover {
            config: Config {
                default_vcpus: 7,
                monitor: Some("/m".into()),
                ..Config::default()
            },
            address: "unix:///s".into(),
            ttrpc_address: "/t".into(),
        };
        assert_eq!(Handover::decode(&told.encode()).unwrap(), told);
        Handover::decode("{}").unwrap_err();
    }
}
