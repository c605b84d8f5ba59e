//! An OCI [image layout], a directory or an archive of one.
//!
//! [image layout]: https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md

use std::io::Read;

use oci_spec::image::{Descriptor, ImageIndex, OciLayout};

use super::Found;
use super::files::Files;
use super::manifest::{
    Blobs, Manifest, digest_of, for_this_machine, parse, read_document, read_image,
};
use crate::digest::Digest;
use crate::error::ImageError;
use crate::unpack::Layer;

/// Annotations by which an entry of the index has a name.
const NAMES: [&str; 2] = [
    "io.containerd.image.name",
    "org.opencontainers.image.ref.name",
];

pub(crate) struct Layout {
    files: Files,
}

impl Layout {
    pub(super) fn new(files: Files) -> Self {
        Self { files }
    }

    /// The image that has the name `tag`, or the only one.
    pub(super) fn find(&self, tag: Option<&str>) -> Result<Found, ImageError> {
        let what = |file: &str| format!("{}: {file}", self.files.name());
        let version = read_document(&what("oci-layout"), self.files.read("oci-layout")?)?;
        let version: OciLayout = parse(&what("oci-layout"), &version)?;
        if version.image_layout_version() != "1.0.0" {
            let reason = format!(
                "version {:?} of the layout is not supported, only 1.0.0",
                version.image_layout_version()
            );
            return Err(ImageError::invalid(what("oci-layout"), reason));
        }
        let index = read_document(&what("index.json"), self.files.read("index.json")?)?;
        let index: ImageIndex = parse(&what("index.json"), &index)?;
        let entry = choose(index.manifests(), tag)
            .map_err(|reason| ImageError::invalid(self.files.name(), reason))?;
        let digest = digest_of(&what("index.json"), entry)?;
        let top = Manifest {
            bytes: self.manifest(&digest)?,
            digest,
            media_type: entry.media_type().to_string(),
        };
        read_image(self, top)
    }

    pub(super) fn layer(&self, layer: &Layer) -> Result<Box<dyn Read>, ImageError> {
        self.blob(layer.blob())
    }

    fn blob(&self, digest: &Digest) -> Result<Box<dyn Read>, ImageError> {
        self.files.read(&format!("blobs/sha256/{}", digest.hex()))
    }
}

impl Blobs for Layout {
    fn name(&self) -> String {
        self.files.name()
    }

    fn manifest(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        read_document(&format!("{}: {digest}", self.name()), self.blob(digest)?)
    }

    fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        self.manifest(&digest_of(&self.name(), descriptor)?)
    }
}

/// The entry with that name; without a name, the only one, or that for this machine.
fn choose<'a>(entries: &'a [Descriptor], tag: Option<&str>) -> Result<&'a Descriptor, String> {
    let named: Vec<_> = entries
        .iter()
        .filter(|entry| tag.is_none_or(|tag| names(entry).any(|name| is_name(name, tag))))
        .cloned()
        .collect();
    let position = |chosen: &Descriptor| entries.iter().find(|entry| *entry == chosen);
    let chosen = match named.as_slice() {
        [] => None,
        [only] => position(only),
        several => for_this_machine(several).and_then(position),
    };
    chosen.ok_or_else(|| {
        let all: Vec<_> = entries.iter().flat_map(names).take(20).collect();
        match tag {
            Some(tag) => format!("it has no image {tag:?}; it has {all:?}"),
            None => format!("it has several images; give one with `:NAME`: {all:?}"),
        }
    })
}

fn names(entry: &Descriptor) -> impl Iterator<Item = &str> {
    let annotations = entry.annotations().as_ref();
    NAMES
        .iter()
        .filter_map(move |name| annotations?.get(*name).map(String::as_str))
}

/// A whole name, or the tag at the end of it.
fn is_name(name: &str, tag: &str) -> bool {
    let after_colon = name
        .strip_suffix(tag)
        .is_some_and(|rest| rest.ends_with(':'));
    name == tag || after_colon
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(entries: &str) -> ImageIndex {
        serde_json::from_str(&format!(
            r#"{{"schemaVersion": 2, "manifests": [{entries}]}}"#
        ))
        .unwrap()
    }

    fn entry(digit: char, rest: &str) -> String {
        format!(
            r#"{{"mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 1,
                "digest": "sha256:{}", {rest}}}"#,
            digit.to_string().repeat(64)
        )
    }

    #[test]
    fn an_image_is_found_by_name_or_when_it_is_alone() {
        let named = |digit, name| {
            entry(
                digit,
                &format!(r#""annotations": {{"{}": "{name}"}}"#, NAMES[0]),
            )
        };
        let two = index(&[named('1', "a/b:1"), named('2', "a/b:2")].join(","));
        let digest = |tag| choose(two.manifests(), tag).map(|entry| entry.digest().to_string());
        assert!(digest(Some("2")).unwrap().ends_with('2'));
        assert!(digest(Some("a/b:1")).unwrap().ends_with('1'));
        assert!(digest(Some("3")).unwrap_err().contains("a/b:1"));
        assert!(digest(None).unwrap_err().contains("several"));
        choose(&two.manifests()[..1], None).unwrap();
    }

    #[test]
    fn among_platforms_this_machine_s_is_chosen() {
        let platform = |digit, platform: &str| entry(digit, &format!(r#""platform": {platform}"#));
        let entries = [
            platform('1', r#"{"os": "linux", "architecture": "arm64"}"#),
            platform('2', r#"{"os": "windows", "architecture": "amd64"}"#),
            platform(
                '3',
                r#"{"os": "linux", "architecture": "amd64", "variant": "v3"}"#,
            ),
            platform('4', r#"{"os": "linux", "architecture": "amd64"}"#),
        ];
        let all = index(&entries.join(","));
        let chosen = choose(all.manifests(), None).unwrap();
        assert!(chosen.digest().to_string().ends_with('4'));
        let newest_only = for_this_machine(&all.manifests()[..3]).unwrap();
        assert!(newest_only.digest().to_string().ends_with('3'));
        assert!(for_this_machine(&all.manifests()[..2]).is_none());
    }
}
