//! Names that become environment variables and names of files.
//!
//! A value of these types has been checked, so that no other room has to.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::text::one_line;

/// Longest name of a network and longest container id, in bytes. The
/// specification has no bound; two of them and an interface must fit a file's name.
const MAX_NAME: usize = 110;

/// `IFNAMSIZ` without the terminating zero.
const MAX_INTERFACE_NAME: usize = 15;

/// Longest name of a file in Linux (`NAME_MAX`), in bytes.
const MAX_FILE_NAME: usize = 255;

/// A name that breaks the specification's or the kernel's rules.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{what} \"{name}\" {why}")]
pub struct InvalidName {
    what: &'static str,
    name: String,
    why: &'static str,
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:path) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as it was given.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(name: String) -> Result<Self, InvalidName> {
                match $check(&name) {
                    Ok(()) => Ok(Self(name)),
                    Err(why) => Err(InvalidName { what: $what, name: one_line(&name), why }),
                }
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(name: &str) -> Result<Self, InvalidName> {
                name.to_owned().try_into()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// A network's name: a letter or digit, then letters, digits, `_`, `.` and `-`,
    /// at most 110 bytes (section 1 of the specification).
    NetworkName, "network name", check_identifier
}

name! {
    /// A container's id, in the form of a [`NetworkName`] (section 2, "Parameters").
    ContainerId, "container id", check_identifier
}

name! {
    /// The name of a network interface, by the kernel's rules.
    InterfaceName, "interface name", check_interface
}

name! {
    /// A plugin's `type`: the name of its executable file.
    PluginType, "plugin type", check_file_name
}

fn check_identifier(name: &str) -> Result<(), &'static str> {
    let mut bytes = name.bytes();
    match bytes.next() {
        None => return Err("is empty"),
        Some(first) if !first.is_ascii_alphanumeric() => {
            return Err("does not start with a letter or digit");
        }
        Some(_) => {}
    }
    if !bytes.all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b)) {
        return Err("has a character other than letters, digits, \"_\", \".\" and \"-\"");
    }
    if name.len() > MAX_NAME {
        return Err("is longer than 110 bytes");
    }
    Ok(())
}

fn check_interface(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("is empty");
    }
    if name.len() > MAX_INTERFACE_NAME {
        return Err("is longer than 15 bytes");
    }
    if name == "." || name == ".." {
        return Err("is not one the kernel takes");
    }
    if name
        .chars()
        .any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control())
    {
        return Err("has a slash, colon, space or control character");
    }
    Ok(())
}

fn check_file_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("is empty");
    }
    if name == "." || name == ".." {
        return Err("is a directory");
    }
    if name.len() > MAX_FILE_NAME {
        return Err("is longer than 255 bytes");
    }
    if name.chars().any(|c| "/\\".contains(c) || c.is_control()) {
        return Err("has a slash, backslash or control character");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_follow_the_specification() {
        for good in ["a", "0", "mynet0", "k8s.pod_1-x", &"a".repeat(MAX_NAME)] {
            assert_eq!(good.parse::<NetworkName>().unwrap().as_str(), good);
            assert_eq!(good.parse::<ContainerId>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            ".",
            "..",
            "-a",
            "_a",
            "a/b",
            "a b",
            "a\n",
            "ä",
            "a:b",
            "a;b",
            "a\0",
            &"a".repeat(MAX_NAME + 1),
        ] {
            assert!(bad.parse::<NetworkName>().is_err(), "{bad:?}");
            assert!(bad.parse::<ContainerId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn interface_names_follow_the_kernel() {
        for good in ["eth0", "lo", "veth-1.2@x", "fifteen-bytes-x"] {
            assert_eq!(good.parse::<InterfaceName>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "a:b",
            "a b",
            "a\u{7}",
            "sixteen-bytes-xx",
        ] {
            assert!(bad.parse::<InterfaceName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_plugin_type_never_leaves_its_directory() {
        assert_eq!(
            "host-local".parse::<PluginType>().unwrap().as_str(),
            "host-local"
        );
        for bad in ["", ".", "..", "../sh", "/bin/sh", "a\\b", "a\0b"] {
            assert!(bad.parse::<PluginType>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_error_names_what_is_wrong_without_control_characters() {
        let error = "a\u{1b}[2J".parse::<ContainerId>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "container id \"a\\u{1b}[2J\" has a character other than letters, digits, \
             \"_\", \".\" and \"-\""
        );
    }
}
