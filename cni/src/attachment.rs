//! One container's interface on one network, and what the runtime says about it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::capabilities::Capabilities;
use crate::names::{ContainerId, InterfaceName, InvalidName};
use crate::text::one_line;

/// What identifies an attachment (section 3 of the specification).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttachmentId {
    /// Chosen by the runtime.
    #[serde(rename = "containerID")]
    pub container_id: ContainerId,
    /// The interface inside the container.
    #[serde(rename = "ifname")]
    pub interface: InterfaceName,
}

impl AttachmentId {
    /// Checks both names.
    ///
    /// # Errors
    ///
    /// One of the names breaks the rules of the specification or of the kernel.
    pub fn new(container_id: &str, interface: &str) -> Result<Self, InvalidName> {
        Ok(Self {
            container_id: container_id.parse()?,
            interface: interface.parse()?,
        })
    }
}

impl fmt::Display for AttachmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of container {}", self.interface, self.container_id)
    }
}

/// The parameters of an attachment (section 3, "Attachment Parameters").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Which one.
    pub id: AttachmentId,
    /// The file of the container's network namespace. `ADD` needs one; for `DEL` it
    /// may be gone.
    pub netns: Option<PathBuf>,
    /// `CNI_ARGS`, which every plugin is given.
    #[serde(default)]
    pub args: Args,
    /// What only those plugins are given whose configuration asks for it.
    #[serde(default)]
    pub capabilities: Capabilities,
}

impl Attachment {
    /// An attachment without arguments and capabilities.
    #[must_use]
    pub fn new(id: AttachmentId, netns: Option<PathBuf>) -> Self {
        Self {
            id,
            netns,
            args: Args::default(),
            capabilities: Capabilities::default(),
        }
    }
}

/// `CNI_ARGS`: keys and values in the order they were added.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Args(Vec<(String, String)>);

/// An argument that cannot be written as `KEY=VALUE;KEY=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("CNI argument \"{0}\" is not of the form KEY=VALUE without \";\" and control characters")]
pub struct InvalidArgument(String);

impl Args {
    /// Adds an argument.
    ///
    /// # Errors
    ///
    /// The key is empty, or key or value has `=`, `;` or a control character.
    pub fn push(&mut self, key: &str, value: &str) -> Result<(), InvalidArgument> {
        let bad = |c: char| "=;".contains(c) || c.is_control();
        if key.is_empty() || key.contains(bad) || value.contains(bad) {
            return Err(InvalidArgument(one_line(&format!("{key}={value}"))));
        }
        self.0.push((key.to_owned(), value.to_owned()));
        Ok(())
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// As in the environment variable.
impl fmt::Display for Args {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (key, value)) in self.0.iter().enumerate() {
            let separator = if position == 0 { "" } else { ";" };
            write!(f, "{separator}{key}={value}")?;
        }
        Ok(())
    }
}

impl FromStr for Args {
    type Err = InvalidArgument;

    fn from_str(text: &str) -> Result<Self, InvalidArgument> {
        let mut args = Self::default();
        for argument in text.split(';').filter(|argument| !argument.is_empty()) {
            let (key, value) = argument
                .split_once('=')
                .ok_or_else(|| InvalidArgument(one_line(argument)))?;
            args.push(key, value)?;
        }
        Ok(args)
    }
}

impl TryFrom<String> for Args {
    type Error = InvalidArgument;

    fn try_from(text: String) -> Result<Self, InvalidArgument> {
        text.parse()
    }
}

impl From<Args> for String {
    fn from(args: Args) -> Self {
        args.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_written_as_the_environment_has_them() {
        let mut args = Args::default();
        assert_eq!(args.to_string(), "");
        args.push("IgnoreUnknown", "1").unwrap();
        args.push("IP", "10.0.0.7/24").unwrap();
        assert_eq!(args.to_string(), "IgnoreUnknown=1;IP=10.0.0.7/24");
        assert_eq!(args.to_string().parse(), Ok(args));
    }

    #[test]
    fn an_argument_cannot_become_two() {
        let mut args = Args::default();
        for (key, value) in [
            ("", "x"),
            ("a", "b;c=d"),
            ("a=b", "c"),
            ("a", "b=c"),
            ("a", "b\n"),
        ] {
            assert!(args.push(key, value).is_err(), "{key}={value}");
        }
        assert!(args.is_empty());
        "keyonly".parse::<Args>().unwrap_err();
    }
}
