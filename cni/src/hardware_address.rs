//! Hardware addresses of interfaces.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::text::one_line;

/// Bytes of an Ethernet address, an EUI-64 and an IP-over-InfiniBand address.
const LENGTHS: [usize; 3] = [6, 8, 20];

/// The hardware address of an interface: 6, 8 or 20 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HardwareAddress(Vec<u8>);

/// A text that is no hardware address.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("\"{0}\" is not a hardware address such as c2:11:22:33:44:55")]
pub struct InvalidHardwareAddress(String);

impl HardwareAddress {
    /// Its bytes, as many as the kind of link has.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The six bytes of an Ethernet address, when it is one.
    #[must_use]
    pub fn ethernet(&self) -> Option<[u8; 6]> {
        self.0.as_slice().try_into().ok()
    }
}

impl From<[u8; 6]> for HardwareAddress {
    fn from(bytes: [u8; 6]) -> Self {
        Self(bytes.to_vec())
    }
}

impl FromStr for HardwareAddress {
    type Err = InvalidHardwareAddress;

    fn from_str(text: &str) -> Result<Self, InvalidHardwareAddress> {
        let separator = if text.contains('-') { '-' } else { ':' };
        let bytes: Option<Vec<u8>> = text.split(separator).take(32).map(byte).collect();
        match bytes {
            Some(bytes) if LENGTHS.contains(&bytes.len()) => Ok(Self(bytes)),
            _ => Err(InvalidHardwareAddress(one_line(text))),
        }
    }
}

/// Two hexadecimal digits, and no sign as `from_str_radix` would take.
fn byte(digits: &str) -> Option<u8> {
    if digits.len() != 2 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

impl fmt::Display for HardwareAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, byte) in self.0.iter().enumerate() {
            let separator = if position == 0 { "" } else { ":" };
            write!(f, "{separator}{byte:02x}")?;
        }
        Ok(())
    }
}

impl TryFrom<String> for HardwareAddress {
    type Error = InvalidHardwareAddress;

    fn try_from(text: String) -> Result<Self, InvalidHardwareAddress> {
        text.parse()
    }
}

impl From<HardwareAddress> for String {
    fn from(address: HardwareAddress) -> Self {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for text in [
            "c2:11:22:33:44:ff",
            "c2:11:22:33:44:55:66:77",
            "80:00:02:08:fe:80:00:00:00:00:00:00:f4:52:14:03:00:7b:cb:a1",
        ] {
            assert_eq!(text.parse::<HardwareAddress>().unwrap().to_string(), text);
        }
        let address: HardwareAddress = "C2-11-22-33-44-FF".parse().unwrap();
        assert_eq!(
            address.ethernet(),
            Some([0xc2, 0x11, 0x22, 0x33, 0x44, 0xff])
        );
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            ":",
            "c2:11:22:33:44",
            "c2:11:22:33:44:5",
            "c2:11:22:33:44:+5",
            "c2:11:22:33:44:55:",
            "c2:11-22:33:44:55",
            "zz:11:22:33:44:55",
            "c2:11:22:33:44:55\n",
        ] {
            assert!(text.parse::<HardwareAddress>().is_err(), "{text:?}");
        }
        ":".repeat(1 << 20).parse::<HardwareAddress>().unwrap_err();
    }
}
