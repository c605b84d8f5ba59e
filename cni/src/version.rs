//! Versions of the specification, and what each of them brought.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::text::one_line;

/// A version of the CNI specification that this library speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Version {
    /// 0.3.1: lists of plugins and today's kind of result.
    V0_3_1,
    /// 0.4.0: `CHECK`, and `prevResult` for `DEL`.
    V0_4_0,
    /// 1.0.0: no family beside an address any more.
    V1_0_0,
    /// 1.1.0: `GC`, `STATUS`, `cniVersions`, MTU and more about routes.
    V1_1_0,
}

/// A version that this library does not speak.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("CNI version \"{0}\" is none of 0.3.1, 0.4.0, 1.0.0 and 1.1.0")]
pub struct UnknownVersion(String);

impl Version {
    /// The newest one.
    pub const LATEST: Self = Self::V1_1_0;

    /// All of them, oldest first.
    pub const ALL: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// As it stands in `cniVersion`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Whether an address in a result carries its family.
    pub(crate) fn has_ip_family(self) -> bool {
        self < Self::V1_0_0
    }

    /// Whether a result carries MTUs, sockets, PCI devices and more than
    /// destination and next hop of a route.
    pub(crate) fn has_link_details(self) -> bool {
        self >= Self::V1_1_0
    }

    /// Whether `DEL` is given the result of `ADD`.
    pub(crate) fn has_result_on_del(self) -> bool {
        self >= Self::V0_4_0
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Version {
    type Err = UnknownVersion;

    fn from_str(text: &str) -> Result<Self, UnknownVersion> {
        Self::ALL
            .into_iter()
            .find(|version| version.as_str() == text)
            .ok_or_else(|| UnknownVersion(one_line(text)))
    }
}

impl TryFrom<String> for Version {
    type Error = UnknownVersion;

    fn try_from(text: String) -> Result<Self, UnknownVersion> {
        text.parse()
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.as_str().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_is_read_as_it_is_written() {
        for version in Version::ALL {
            assert_eq!(version.to_string().parse(), Ok(version));
        }
        assert_eq!(Version::ALL.last(), Some(&Version::LATEST));
        assert!(Version::ALL.is_sorted());
    }

    #[test]
    fn an_unknown_version_is_named() {
        for unknown in ["", "0.2.0", "1.1", "1.2.0", "v1.0.0"] {
            let error = unknown.parse::<Version>().unwrap_err();
            assert!(error.to_string().contains(&format!("\"{unknown}\"")));
        }
    }
}
