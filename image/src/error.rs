//! What can be wrong with an image, as one line.

use std::error::Error;
use std::fmt::Display;
use std::io;

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
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
    #[error("{what}: no answer of use from the registry: {}", chain(source))]
    Registry {
        /// What was asked for.
        what: String,
        /// Its answer, or that there was none.
        source: Box<oci_client::errors::OciDistributionError>,
    },
}

/// An error and what it comes from. That of a connection is said at the end only.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let reason = error.to_string();
        if !text.contains(&reason) {
            text.push_str(": ");
            text.push_str(&reason);
        }
        source = error.source();
    }
    // A registry may answer with pages of text, in several lines, for a terminal or not.
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(MAX_ANSWER).map(printable).collect()
}

/// Characters of a registry's answer that are shown.
const MAX_ANSWER: usize = 500;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_it_comes_from_in_one_line() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot\x1b[31m\nconnect")]
        struct Outer(#[source] io::Error);
        let error = Outer(io::Error::other("refused"));
        assert_eq!(chain(&error), "cannot [31m connect: refused");
        let long = io::Error::other("x".repeat(10_000));
        assert_eq!(chain(&long).len(), MAX_ANSWER);
    }
}
