//! From a name to layers that are unpacked.

use std::cell::OnceCell;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use oci_client::Reference;
use oci_spec::image::{Descriptor, ImageConfiguration};

use crate::cache::Cache;
use crate::digest::Digest;
use crate::error::ImageError;
use crate::overlay::{Overlay, make_upper};
use crate::progress::Progress;
use crate::reference::ImageReference;
use crate::run_dir::RunDir;
use crate::signature::PublicKey;
use crate::source::{
    Blobs, Found, Local, Manifest, Registry, digest_of, layer_file, media_type_of, read_image,
};
use crate::unpack::{Layer, Limits, Remaining, Target, unpack};

/// When a registry is asked.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Pull {
    /// Never: the image must be here.
    Never,
    /// When the image is not here.
    #[default]
    Missing,
    /// Always, whether the name leads to another image now.
    Always,
}

/// What is wanted beside the image.
#[derive(Debug, Default)]
pub struct Options {
    /// When a registry is asked.
    pub pull: Pull,
    /// A key with which the image must have been signed.
    pub key: Option<PublicKey>,
}

/// An image whose layers are unpacked.
#[derive(Debug)]
pub struct Prepared {
    /// Its configuration.
    pub config: ImageConfiguration,
    /// Directories, from the lowest up. They are shared: nobody may write to them.
    pub layers: Vec<PathBuf>,
}

/// Finds an image, and unpacks what of it is not in the cache. The caller is in a mount namespace
/// of its own, and root there.
///
/// # Errors
/// [`ImageError`]; nothing that is half done stays in the cache.
pub fn prepare(
    reference: &ImageReference,
    cache: &Cache,
    run: &RunDir,
    options: &Options,
    progress: &Progress,
) -> Result<Prepared, ImageError> {
    match reference {
        ImageReference::File { path, tag } => {
            if options.key.is_some() {
                return Err(ImageError::invalid(
                    path.display(),
                    "--verify-key works with registries only: a layout or an archive has no \
                     signature",
                ));
            }
            let (local, found) = Local::open(path, tag.as_deref())?;
            let unpacker = Unpacker::new(reference, cache, run, progress)?;
            unpacker.unpack(found, |number, layer| local.layer(number, layer))
        }
        ImageReference::Registry(name) => {
            let remote = Remote {
                name,
                cache,
                run,
                pull: options.pull,
                registry: OnceCell::new(),
            };
            remote.prepare(reference, options.key.as_ref(), progress)
        }
    }
}

/// An image in a registry, of which something may be in the cache.
struct Remote<'a> {
    name: &'a Reference,
    cache: &'a Cache,
    run: &'a RunDir,
    pull: Pull,
    registry: OnceCell<Registry>,
}

impl Remote<'_> {
    fn prepare(
        &self,
        reference: &ImageReference,
        key: Option<&PublicKey>,
        progress: &Progress,
    ) -> Result<Prepared, ImageError> {
        let top = self.top()?;
        if let Some(key) = key {
            // Each time: a signature may be taken back.
            key.verify(self.registry()?, &top.digest)?;
        }
        let digest = top.digest.clone();
        let found = read_image(self, top)?;
        let unpacker = Unpacker::new(reference, self.cache, self.run, progress)?;
        let missing = unpacker.missing(&found.layers);
        let downloads = if missing.is_empty() {
            self.run.path("downloads")
        } else {
            let dir = self.run.make_dir("downloads");
            let dir = dir.map_err(ImageError::system("cannot store layers"))?;
            self.registry()?.download(&missing, &dir, progress)?;
            dir
        };
        let prepared = unpacker.unpack(found, |_, layer| open_download(&downloads, layer))?;
        let remove = self.run.remove_dir("downloads");
        remove.map_err(ImageError::system(downloads.display()))?;
        self.cache
            .keep_reference(self.run, &self.name.whole(), &digest)?;
        Ok(prepared)
    }

    /// The manifest or index that the name leads to, or led to when that will do.
    fn top(&self) -> Result<Manifest, ImageError> {
        let what = self.name.whole();
        let known = || {
            let digest = self.cache.reference(&what)?;
            let bytes = self.cache.blob(&digest)?;
            Some((digest, bytes))
        };
        if self.pull != Pull::Always
            && let Some((digest, bytes)) = known()
        {
            return Ok(Manifest {
                media_type: media_type_of(&what, &bytes)?,
                digest,
                bytes,
            });
        }
        let top = self.registry()?.resolve()?;
        self.cache.keep_blob(self.run, &top.digest, &top.bytes)?;
        Ok(top)
    }

    fn registry(&self) -> Result<&Registry, ImageError> {
        if let Some(registry) = self.registry.get() {
            return Ok(registry);
        }
        if self.pull == Pull::Never {
            return Err(ImageError::invalid(
                self.name.whole(),
                "the registry would have to be asked, and --pull=never forbids that",
            ));
        }
        let registry = Registry::new(self.name)?;
        Ok(self.registry.get_or_init(|| registry))
    }

    /// A small blob, from the cache or else by `fetch`, and then kept.
    fn small(
        &self,
        digest: &Digest,
        fetch: impl FnOnce(&Registry) -> Result<Vec<u8>, ImageError>,
    ) -> Result<Vec<u8>, ImageError> {
        if let Some(bytes) = self.cache.blob(digest) {
            return Ok(bytes);
        }
        let bytes = fetch(self.registry()?)?;
        if Digest::of(&bytes) == *digest {
            self.cache.keep_blob(self.run, digest, &bytes)?;
        }
        Ok(bytes)
    }
}

impl Blobs for Remote<'_> {
    fn name(&self) -> String {
        self.name.whole()
    }

    fn manifest(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        self.small(digest, |registry| registry.manifest(digest))
    }

    fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        let digest = digest_of(&self.name(), descriptor)?;
        self.small(&digest, |registry| registry.config(descriptor))
    }
}

fn open_download(dir: &Path, layer: &Layer) -> Result<Box<dyn Read>, ImageError> {
    let path = layer_file(dir, layer.blob());
    let file = File::open(&path).map_err(ImageError::system(path.display()))?;
    Ok(Box::new(file))
}

/// Unpacks the layers of one image.
struct Unpacker<'a> {
    what: String,
    cache: &'a Cache,
    run: &'a RunDir,
    progress: &'a Progress,
    limits: Limits,
}

impl<'a> Unpacker<'a> {
    fn new(
        reference: &ImageReference,
        cache: &'a Cache,
        run: &'a RunDir,
        progress: &'a Progress,
    ) -> Result<Self, ImageError> {
        let what = reference.to_string();
        let dir = File::open(run.path(".")).map_err(ImageError::system(&what))?;
        let limits = Limits::on(dir).map_err(ImageError::system(&what))?;
        Ok(Self {
            what,
            cache,
            run,
            progress,
            limits,
        })
    }

    /// The layers that are not in the cache, each once.
    fn missing<'l>(&self, layers: &'l [Layer]) -> Vec<&'l Layer> {
        let mut missing: Vec<&Layer> = Vec::new();
        for (layer, chain) in layers.iter().zip(chains(layers)) {
            let is_known = missing.iter().any(|other| other.digest == layer.digest);
            if !is_known && !self.cache.has_layer(&chain) {
                missing.push(layer);
            }
        }
        missing
    }

    fn unpack(
        &self,
        found: Found,
        open: impl Fn(usize, &Layer) -> Result<Box<dyn Read>, ImageError>,
    ) -> Result<Prepared, ImageError> {
        let mut remaining = Remaining::new(self.limits);
        let mut below: Vec<PathBuf> = Vec::new();
        for (number, (layer, chain)) in found.layers.iter().zip(chains(&found.layers)).enumerate() {
            if !self.cache.has_layer(&chain) {
                let _lock = self.cache.lock_layer(&chain)?;
                // Another run may have unpacked it meanwhile.
                if !self.cache.has_layer(&chain) {
                    let blob = open(number, layer)?;
                    let dir = self.unpack_one(layer, blob, &below, &mut remaining)?;
                    self.cache.keep_layer(&chain, &dir)?;
                }
            }
            below.push(self.cache.layer(&chain));
        }
        Ok(Prepared {
            config: found.config,
            layers: below,
        })
    }

    /// Unpacks a layer into a directory of the run's.
    fn unpack_one(
        &self,
        layer: &Layer,
        blob: Box<dyn Read>,
        below: &[PathBuf],
        remaining: &mut Remaining,
    ) -> Result<PathBuf, ImageError> {
        let what = format!("{}: layer {}", self.what, layer.diff_id);
        let failed = || ImageError::system(&what);
        let task = self
            .progress
            .start("unpacking", layer.diff_id.short(), layer.size);
        let blob = task.reader(blob);
        let dir = make_upper(self.run, "layer", below).map_err(failed())?;
        let invalid = |error| ImageError::invalid(&what, error);
        if below.is_empty() {
            let mut target = Target::lowest(&dir).map_err(failed())?;
            unpack(blob, layer, &mut target, remaining).map_err(invalid)?;
        } else {
            let overlay = Overlay::mount(self.run, below, &dir)?;
            let mut target = Target::above(overlay.root(), &dir).map_err(failed())?;
            unpack(blob, layer, &mut target, remaining).map_err(invalid)?;
            drop(target);
            overlay.close(self.run).map_err(failed())?;
        }
        Ok(dir)
    }
}

/// Names of the layers that say which are below each; see the image specification's [ChainID].
///
/// [ChainID]: https://github.com/opencontainers/image-spec/blob/v1.1.1/config.md#layer-chainid
fn chains(layers: &[Layer]) -> impl Iterator<Item = Digest> {
    layers
        .iter()
        .scan(None, |below: &mut Option<Digest>, layer| {
            let chain = match below {
                None => layer.diff_id.clone(),
                Some(below) => Digest::of(format!("{below} {}", layer.diff_id).as_bytes()),
            };
            *below = Some(chain.clone());
            Some(chain)
        })
}
