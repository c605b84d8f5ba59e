//! Digests, and readers that work them out on the way.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

/// A SHA-256 digest in the form `sha256:` and 64 hexadecimal digits.
///
/// Other algorithms are refused: no registry uses them.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Digest(String);

impl Digest {
    /// The digest of `bytes`.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self::finish(Sha256::new_with_prefix(bytes))
    }

    fn finish(hash: Sha256) -> Self {
        use fmt::Write as _;
        let mut text = String::from("sha256:");
        for byte in hash.finalize() {
            // Writing to a string does not fail.
            let _ = write!(text, "{byte:02x}");
        }
        Self(text)
    }

    /// The hexadecimal digits; fit to be a file's name.
    pub(crate) fn hex(&self) -> &str {
        self.0.split_at("sha256:".len()).1
    }

    /// Its first digits, for people.
    pub(crate) fn short(&self) -> &str {
        &self.hex()[..12]
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_hex = |c: char| matches!(c, '0'..='9' | 'a'..='f');
        match text.strip_prefix("sha256:") {
            Some(hex) if hex.len() == 64 && hex.chars().all(is_hex) => Ok(Self(text.into())),
            _ => Err(format!(
                "{:?} is not a SHA-256 digest, which is sha256: and 64 hexadecimal digits",
                text.chars().take(100).collect::<String>()
            )),
        }
    }
}

/// Passes bytes on, and knows the digest and the number of those that have passed.
pub(crate) struct Hashing<R> {
    inner: R,
    hash: Sha256,
    len: u64,
}

impl<R: Read> Hashing<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
            len: 0,
        }
    }

    /// Reads what is left; returns digest and length, in bytes, of it all.
    pub(crate) fn finish(mut self) -> io::Result<(Digest, u64)> {
        io::copy(&mut self, &mut io::sink())?;
        Ok((Digest::finish(self.hash), self.len))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hash.update(&buffer[..n]);
        self.len = self.len.saturating_add(n as u64);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_of_all_bytes_read_or_not() {
        let mut reader = Hashing::new(&b"abc"[..]);
        reader.read_exact(&mut [0]).unwrap();
        let (digest, len) = reader.finish().unwrap();
        assert_eq!((&digest, len), (&Digest::of(b"abc"), 3));
        // FIPS 180-4's example.
        assert!(digest.hex().starts_with("ba7816bf8f01cfea"));
    }

    #[test]
    fn what_could_be_another_name_of_a_file_is_no_digest() {
        let hex = "0".repeat(64);
        assert_eq!(
            format!("sha256:{hex}").parse::<Digest>().unwrap().hex(),
            hex
        );
        for text in [
            "",
            "sha256:",
            &hex,
            &format!("sha512:{hex}"),
            &format!("sha256:{}", "A".repeat(64)),
            &format!("sha256:../{}", "0".repeat(61)),
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }
}
