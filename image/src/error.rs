//! What can be wrong with an image, as one line.

use std::fmt::Display;
use std::io;

use thiserror::Error;

/// Why an image cannot be used.
#[derive(Debug, Error)]
pub enum ImageError {
    /// Something of the image is not as it has to be.
    #[error("{what}: {reason}")]
    Invalid {
        /// What is wrong: a reference, a file, a blob.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The system refused.
    #[error("{what}: {source}")]
    System {
        /// What was tried, on what.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A registry did not give what was asked for.
    #[error("{what}: the registry says: {source}")]
    Registry {
        /// What was asked for.
        what: String,
        /// Its answer, or that there was none.
        source: Box<oci_client::errors::OciDistributionError>,
    },
}

impl ImageError {
    pub(crate) fn invalid(what: impl Display, reason: impl Display) -> Self {
        Self::Invalid {
            what: what.to_string(),
            reason: reason.to_string(),
        }
    }

    /// For `map_err`: the system's answer to what was tried.
    pub(crate) fn system<E: Into<io::Error>>(what: impl Display) -> impl FnOnce(E) -> Self {
        move |source| Self::System {
            what: what.to_string(),
            source: source.into(),
        }
    }
}
