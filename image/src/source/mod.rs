//! Where images come from.

mod docker_archive;
mod files;
mod layout;
mod manifest;
mod registry;

use std::io::Read;
use std::path::Path;

use oci_spec::image::ImageConfiguration;

use crate::error::ImageError;
use crate::unpack::Layer;

use self::docker_archive::DockerArchive;
use self::files::Files;
use self::layout::Layout;
pub(crate) use self::manifest::{
    Blobs, MAX_DOCUMENT, Manifest, check_digest, digest_of, media_type_of, read_document,
    read_image,
};
pub(crate) use self::registry::{Registry, layer_file};

/// An image that was found, with what is known of it before its layers are read.
pub(crate) struct Found {
    pub(crate) config: ImageConfiguration,
    /// From the lowest up.
    pub(crate) layers: Vec<Layer>,
}

/// An image of which all is on this machine.
pub(crate) enum Local {
    Layout(Layout),
    DockerArchive(DockerArchive),
}

impl Local {
    /// Opens the layout or archive at `path`, and finds the image `tag` in it.
    pub(crate) fn open(path: &Path, tag: Option<&str>) -> Result<(Self, Found), ImageError> {
        let files = Files::open(path)?;
        // `docker save` writes both forms into one archive; that of the OCI has more digests.
        if files.has("oci-layout") {
            let layout = Layout::new(files);
            let found = layout.find(tag)?;
            Ok((Self::Layout(layout), found))
        } else if files.has("manifest.json") {
            let (archive, found) = DockerArchive::find(files, tag)?;
            Ok((Self::DockerArchive(archive), found))
        } else {
            Err(ImageError::invalid(
                path.display(),
                "is neither an OCI image layout (it has no file oci-layout) nor an archive of \
                 `docker save` (it has no manifest.json)",
            ))
        }
    }

    /// The blob of the layer with this number, counted from the lowest.
    pub(crate) fn layer(&self, number: usize, layer: &Layer) -> Result<Box<dyn Read>, ImageError> {
        match self {
            Self::Layout(layout) => layout.layer(layer),
            Self::DockerArchive(archive) => archive.layer(number),
        }
    }
}
