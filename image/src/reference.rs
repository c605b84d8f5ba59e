//! How a person names an image.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use oci_client::Reference;

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
        match name.parse() {
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
        for (text, whole) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("docker://a/b:1", "docker.io/a/b:1"),
            ("localhost:5000/a:1", "localhost:5000/a:1"),
        ] {
            assert_eq!(text.parse::<ImageReference>().unwrap().to_string(), whole);
        }
        for text in ["", "A", "a b", "-x", "http://a/b"] {
            assert!(text.parse::<ImageReference>().is_err(), "{text}");
        }
    }
}
