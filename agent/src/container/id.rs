//! Identifiers of containers and processes, as the contract allows them.

use crate::error::Error;

const MAX_LENGTH: usize = 128;

/// An identifier that is safe as the name of a directory and of a cgroup.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Id(String);

impl Id {
    /// Checks the identifier that a request has in `field`.
    pub(crate) fn parse(id: &str, field: &str) -> Result<Self, Error> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if id.is_empty() || id.len() > MAX_LENGTH || id.starts_with('.') || !id.chars().all(allowed)
        {
            return Err(Error::InvalidArgument(format!(
                "{field}: must be 1 to {MAX_LENGTH} of [A-Za-z0-9_.-], not starting with a dot"
            )));
        }
        Ok(Self(id.to_owned()))
    }

    /// The identifier as the host wrote it.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_of_the_contract_are_taken() {
        for id in ["a", "web-1_x.y", &"f".repeat(128), "-", "A..B"] {
            assert_eq!(Id::parse(id, "container_id").unwrap().as_str(), id);
        }
    }

    #[test]
    fn identifiers_that_could_name_something_else_are_refused() {
        for id in [
            "",
            ".",
            "..",
            ".x",
            "a/b",
            "a b",
            "ä",
            "a\0",
            &"f".repeat(129),
        ] {
            assert!(Id::parse(id, "container_id").is_err(), "{id:?}");
        }
    }
}
