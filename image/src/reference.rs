//! How a person names an image.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use oci_client::Reference;

use crate::digest::Digest;

/// An image, by the name that was given.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ImageReference {
    /// An OCI image layout, a directory or an archive of one, or an archive of `docker save`.
    File {
        /// The directory or archive.
        path: PathBuf,
        /// Which of the images in it.
        tag: Option<String>,
    },
    /// In a registry.
    Registry(Reference),
}

/// Prefixes that other tools know, for files.
const FILE_PREFIXES: [&str; 3] = ["oci:", "oci-archive:", "docker-archive:"];

impl FromStr for ImageReference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        for prefix in FILE_PREFIXES {
            if let Some(file) = text.strip_prefix(prefix) {
                return Ok(Self::file(file));
            }
        }
        let is_path = text.starts_with('/') || text.starts_with("./") || text.starts_with("../");
        if is_path {
            return Ok(Self::file(text));
        }
        let name = text.strip_prefix("docker://").unwrap_or(text);
        match in_registry(name) {
            Ok(reference) => Ok(Self::Registry(reference)),
            Err(error) => Err(format!(
                "neither a path (which has a slash first, or a dot and a slash) nor a name in a \
                 registry: {error}"
            )),
        }
    }
}

impl ImageReference {
    /// `PATH` or `PATH:TAG`; a file that has the whole of it as its name comes first.
    fn file(text: &str) -> Self {
        if let Some((path, tag)) = text.split_once(':')
            && !tag.is_empty()
            && !Path::new(text).exists()
        {
            return Self::File {
                path: path.into(),
                tag: Some(tag.into()),
            };
        }
        Self::File {
            path: text.into(),
            tag: None,
        }
    }
}

/// Longest name of a repository, its registry included.
const MAX_NAME: usize = 255;

/// Longest tag.
const MAX_TAG: usize = 128;

/// Where images are that have a name without a registry.
const DEFAULT_REGISTRY: &str = "docker.io";

/// Reads `[REGISTRY/]NAME[:TAG][@DIGEST]`, by the [grammar] that all tools share.
///
/// `oci-spec` has a regular expression for it that stays in memory, 8 MiB of it, for as long as
/// the container runs.
///
/// [grammar]: https://pkg.go.dev/github.com/distribution/reference
fn in_registry(text: &str) -> Result<Reference, &'static str> {
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (text, None),
    };
    if digest.is_some_and(|digest| digest.parse::<Digest>().is_err()) {
        return Err("what follows the @ is not sha256: and 64 hexadecimal digits");
    }
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match name[last..].rsplit_once(':') {
        Some((before, tag)) => (&name[..last + before.len()], Some(tag)),
        None => (name, None),
    };
    if !tag.is_none_or(is_tag) {
        return Err("its tag must be 1 to 128 of A-Z, a-z, 0-9, `_`, `.`, `-`");
    }
    let (registry, repository) = repository_of(name)?;
    let tag = tag.map(str::to_owned);
    Ok(match (tag, digest.map(str::to_owned)) {
        (Some(tag), Some(digest)) => {
            Reference::with_tag_and_digest(registry, repository, tag, digest)
        }
        (None, Some(digest)) => Reference::with_digest(registry, repository, digest),
        (tag, None) => {
            Reference::with_tag(registry, repository, tag.unwrap_or_else(|| "latest".into()))
        }
    })
}

/// Registry and repository of a name; the first part is a registry if it looks like a host.
fn repository_of(name: &str) -> Result<(String, String), &'static str> {
    let host = name.split_once('/').filter(|(first, _)| {
        first.contains(['.', ':']) || *first == "localhost" || first.contains(char::is_uppercase)
    });
    let (registry, path) = host.unwrap_or((DEFAULT_REGISTRY, name));
    if !is_host(registry) {
        return Err("its registry must be a host and, after a colon, a port");
    }
    if name.len() > MAX_NAME || !path.split('/').all(is_part) {
        return Err(
            "each part of its name must be a-z and 0-9, with `.`, `_`, `__` or `-` between",
        );
    }
    let registry = if registry == "index.docker.io" {
        DEFAULT_REGISTRY
    } else {
        registry
    };
    let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
        format!("library/{path}")
    } else {
        path.to_owned()
    };
    Ok((registry.to_owned(), repository))
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let is_port = port.is_none_or(|port| port.parse::<u16>().is_ok());
    let is_label = |label: &str| {
        let inside = |c: char| c.is_ascii_alphanumeric() || c == '-';
        !label.is_empty() && label.chars().all(inside) && !label.starts_with('-')
    };
    let ipv6 = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let is_name = match ipv6 {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => host.split('.').all(is_label),
    };
    is_port && is_name
}

/// Letters and digits with one separator between them, of which `-` may be several.
fn is_part(part: &str) -> bool {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_separator =
        |text: &str| matches!(text, "" | "." | "_" | "__") || text.chars().all(|c| c == '-');
    part.starts_with(is_word) && part.ends_with(is_word) && part.split(is_word).all(is_separator)
}

fn is_tag(tag: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let inside = |c: char| is_word(c) || matches!(c, '.' | '-');
    tag.len() <= MAX_TAG && tag.starts_with(is_word) && tag.chars().all(inside)
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, tag: None } => path.display().fmt(f),
            Self::File {
                path,
                tag: Some(tag),
            } => write!(f, "{}:{tag}", path.display()),
            Self::Registry(reference) => reference.whole().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, tag: Option<&str>) -> ImageReference {
        ImageReference::File {
            path: path.into(),
            tag: tag.map(Into::into),
        }
    }

    #[test]
    fn a_path_shows_itself_as_one() {
        let parse = |text: &str| text.parse::<ImageReference>().unwrap();
        assert_eq!(parse("/a/b"), file("/a/b", None));
        assert_eq!(parse("./a:v1"), file("./a", Some("v1")));
        assert_eq!(parse("oci:a:host/b:1"), file("a", Some("host/b:1")));
        assert_eq!(parse("docker-archive:a.tar"), file("a.tar", None));
    }

    #[test]
    fn everything_else_is_in_a_registry() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for text in [
            "alpine",
            "a/b:1",
            "index.docker.io/a",
            "localhost:5000/a:1",
            "localhost/a",
            "127.0.0.1:5000/a/b/c:V_1.0-x",
            "h.example/a__b/c---d/e.f:1",
            &format!("h:1/a@{digest}"),
            &format!("h:1/a:t@{digest}"),
        ] {
            let ours = text.parse::<ImageReference>().unwrap().to_string();
            assert_eq!(ours, text.parse::<Reference>().unwrap().whole(), "{text}");
        }
        let docker = "docker://a/b:1".parse::<ImageReference>().unwrap();
        assert_eq!(docker.to_string(), "docker.io/a/b:1");
        // oci-spec does not know addresses of IPv6, nor that capitals make a host.
        for text in ["[::1]:5000/a:1", "Host/a:1"] {
            assert_eq!(text.parse::<ImageReference>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in [
            "",
            "A",
            "a b",
            "-x",
            "http://a/b",
            "a/",
            "/",
            "a//b",
            "a_",
            "a___b",
            "a..b",
            "a:",
            "a:.x",
            "a:b/c",
            "a@sha256:0",
            "a@",
            "h.:5000/a",
            "h:x/a",
            "-h.x/a",
            "a/../b",
            "h.example/\u{e4}",
            "a?b",
            "h.example/a#b",
        ] {
            // A path of this machine is none of these.
            let is_file = matches!(text.parse(), Ok(ImageReference::File { .. }));
            assert!(is_file || in_registry(text).is_err(), "{text}");
        }
        in_registry(&"a".repeat(256)).unwrap_err();
        in_registry(&format!("a:{}", "t".repeat(129))).unwrap_err();
    }
}
