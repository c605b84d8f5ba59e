//! Indexes and manifests: from a digest to a configuration and layers.

use std::io::Read;

use oci_spec::image::{
    Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType, Os,
};
use serde::de::DeserializeOwned;

use super::Found;
use crate::digest::Digest;
use crate::error::ImageError;
use crate::unpack::Layer;

/// Largest index, manifest or configuration, in bytes. They are held in memory.
pub(crate) const MAX_DOCUMENT: u64 = 4 << 20;

/// Layers that an image may have. Docker makes no more, either.
const MAX_LAYERS: usize = 128;

/// Indexes that may be in one another.
const MAX_INDEXES: usize = 3;

/// Media types that a manifest or index may have.
pub(crate) mod media_types {
    pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    pub(crate) const DOCKER_INDEX: &str =
        "application/vnd.docker.distribution.manifest.list.v2+json";
    pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

    pub(super) const CONFIGS: [&str; 2] = [
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
    ];
    pub(super) const LAYERS: [&str; 6] = [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
    ];
}

/// What gives small blobs by their digests.
pub(crate) trait Blobs {
    /// For messages.
    fn name(&self) -> String;

    /// The whole of a manifest or index, at most [`MAX_DOCUMENT`] bytes. The caller checks
    /// its digest.
    fn manifest(&self, digest: &Digest) -> Result<Vec<u8>, ImageError>;

    /// The whole of a configuration, as [`Blobs::manifest`].
    fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError>;
}

/// A manifest or an index, by what it says of itself.
pub(crate) struct Manifest {
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
    pub(crate) bytes: Vec<u8>,
}

/// Finds the image for this machine in a manifest or index.
pub(crate) fn read_image(blobs: &impl Blobs, mut top: Manifest) -> Result<Found, ImageError> {
    for _ in 0..=MAX_INDEXES {
        let what = format!("{}: {}", blobs.name(), top.digest);
        check_digest(&what, &top.digest, &top.bytes)?;
        match top.media_type.as_str() {
            media_types::MANIFEST | media_types::DOCKER_MANIFEST => {
                return read_manifest(blobs, &what, &top.bytes);
            }
            media_types::INDEX | media_types::DOCKER_INDEX => {
                let index: ImageIndex = parse(&what, &top.bytes)?;
                let entry = for_this_machine(index.manifests()).ok_or_else(|| {
                    ImageError::invalid(&what, "the index has no image for linux/amd64")
                })?;
                let digest = digest_of(&what, entry)?;
                top = Manifest {
                    bytes: blobs.manifest(&digest)?,
                    digest,
                    media_type: entry.media_type().to_string(),
                };
            }
            other => {
                let reason = format!("its media type {other:?} is not that of an image");
                return Err(ImageError::invalid(what, reason));
            }
        }
    }
    Err(ImageError::invalid(
        blobs.name(),
        "too many indexes in one another",
    ))
}

/// The entry for linux/amd64; one that needs nothing of newer processors comes first.
pub(crate) fn for_this_machine(entries: &[Descriptor]) -> Option<&Descriptor> {
    let fits = |entry: &&Descriptor| {
        entry.platform().as_ref().is_some_and(|platform| {
            *platform.os() == Os::Linux && *platform.architecture() == Arch::Amd64
        })
    };
    let is_basic = |entry: &&Descriptor| {
        let variant = entry.platform().as_ref().and_then(|p| p.variant().as_ref());
        variant.is_none_or(|variant| variant == "v1")
    };
    let mut fitting = entries.iter().filter(fits);
    let basic = fitting.clone().find(is_basic);
    basic.or_else(|| fitting.next())
}

fn read_manifest(blobs: &impl Blobs, what: &str, bytes: &[u8]) -> Result<Found, ImageError> {
    let manifest: ImageManifest = parse(what, bytes)?;
    let media_type = manifest.config().media_type().to_string();
    if !media_types::CONFIGS.contains(&media_type.as_str()) {
        let reason = format!("it is not of an image: its config is of type {media_type:?}");
        return Err(ImageError::invalid(what, reason));
    }
    let digest = digest_of(what, manifest.config())?;
    let bytes = blobs.config(manifest.config())?;
    check_digest(&format!("{}: {digest}", blobs.name()), &digest, &bytes)?;
    let config = parse_config(what, &bytes)?;
    let diff_ids = diff_ids(what, &config)?;
    if diff_ids.len() != manifest.layers().len() {
        return Err(ImageError::invalid(
            what,
            format!(
                "it has {} layers, and its config speaks of {}",
                manifest.layers().len(),
                diff_ids.len()
            ),
        ));
    }
    let layers = manifest.layers().iter().zip(diff_ids);
    let layers = layers
        .map(|(descriptor, diff_id)| layer(what, descriptor, diff_id))
        .collect::<Result<_, _>>()?;
    Ok(Found { config, layers })
}

fn layer(what: &str, descriptor: &Descriptor, diff_id: Digest) -> Result<Layer, ImageError> {
    let media_type = descriptor.media_type().to_string();
    if !media_types::LAYERS.contains(&media_type.as_str()) {
        let reason = format!("a layer is of the unknown media type {media_type:?}");
        return Err(ImageError::invalid(what, reason));
    }
    Ok(Layer {
        digest: Some(digest_of(what, descriptor)?),
        size: Some(descriptor.size()),
        diff_id,
    })
}

/// Reads a configuration and checks that it is for this machine.
pub(super) fn parse_config(what: &str, bytes: &[u8]) -> Result<ImageConfiguration, ImageError> {
    let config: ImageConfiguration = parse(what, bytes)?;
    let (os, architecture) = (config.os(), config.architecture());
    if *os != Os::Linux || *architecture != Arch::Amd64 {
        let reason = format!("the image is for {os}/{architecture}, not for linux/amd64");
        return Err(ImageError::invalid(what, reason));
    }
    Ok(config)
}

/// Digests of the layers' archives, from the lowest up.
pub(super) fn diff_ids(what: &str, config: &ImageConfiguration) -> Result<Vec<Digest>, ImageError> {
    let diff_ids = config.rootfs().diff_ids();
    if diff_ids.len() > MAX_LAYERS {
        let reason = format!("it has more than {MAX_LAYERS} layers");
        return Err(ImageError::invalid(what, reason));
    }
    let parse = |id: &String| id.parse().map_err(|error| ImageError::invalid(what, error));
    diff_ids.iter().map(parse).collect()
}

pub(crate) fn digest_of(what: &str, descriptor: &Descriptor) -> Result<Digest, ImageError> {
    let digest = descriptor.digest().to_string();
    digest
        .parse()
        .map_err(|error| ImageError::invalid(what, error))
}

pub(super) fn parse<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, ImageError> {
    serde_json::from_slice(bytes).map_err(|error| ImageError::invalid(what, error))
}

pub(crate) fn check_digest(what: &str, digest: &Digest, bytes: &[u8]) -> Result<(), ImageError> {
    let found = Digest::of(bytes);
    if found == *digest {
        return Ok(());
    }
    let reason = format!("its content has the digest {found}");
    Err(ImageError::invalid(what, reason))
}

/// Reads all of a small file.
pub(crate) fn read_document(what: &str, from: impl Read) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    from.take(MAX_DOCUMENT + 1)
        .read_to_end(&mut bytes)
        .map_err(ImageError::system(what))?;
    if bytes.len() as u64 > MAX_DOCUMENT {
        return Err(ImageError::invalid(what, "is larger than 4 MiB"));
    }
    Ok(bytes)
}

/// The media type that a manifest or index has, or must have by its form.
pub(crate) fn media_type_of(what: &str, bytes: &[u8]) -> Result<String, ImageError> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Form {
        schema_version: u32,
        media_type: Option<String>,
        manifests: Option<serde::de::IgnoredAny>,
    }
    let form: Form = parse(what, bytes)?;
    if form.schema_version != 2 {
        let reason = format!(
            "is in version {} of the schema; only 2 is supported",
            form.schema_version
        );
        return Err(ImageError::invalid(what, reason));
    }
    let by_form = match form.manifests {
        Some(_) => MediaType::ImageIndex,
        None => MediaType::ImageManifest,
    };
    Ok(form.media_type.unwrap_or_else(|| by_form.to_string()))
}
