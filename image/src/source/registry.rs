//! A registry, spoken to with `oci-client`.
//!
//! Nothing of this runs, and no thread is started, unless something has to be fetched.

use std::fs::File;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use oci_client::client::{Client, ClientConfig, ClientProtocol, LayerDescriptor};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use oci_client::{Reference, RegistryOperation};
use oci_spec::image::Descriptor;
use tokio::runtime::Runtime;

use super::manifest::{Blobs, MAX_DOCUMENT, Manifest, digest_of, media_type_of, media_types};
use crate::digest::Digest;
use crate::error::ImageError;
use crate::progress::Progress;
use crate::unpack::Layer;

/// How long a registry may take to be reached.
const CONNECT: Duration = Duration::from_secs(30);

/// How long a registry that was reached may say nothing.
const SILENCE: Duration = Duration::from_secs(60);

/// How long a manifest, an index or a configuration may take in all.
const DOCUMENT: Duration = Duration::from_secs(120);

/// Layers that are fetched at the same time.
const AT_ONCE: usize = 3;

/// A repository of a registry.
pub(crate) struct Registry {
    client: Client,
    reference: Reference,
    runtime: Runtime,
}

impl Registry {
    /// Prepares to ask for `reference`, without an account. A registry on this machine's
    /// loopback is spoken to without TLS, as other tools do.
    pub(crate) fn new(reference: &Reference) -> Result<Self, ImageError> {
        // Somebody else in this process may have chosen one: that will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let host = reference.resolve_registry();
        let protocol = if is_loopback(host) {
            ClientProtocol::HttpsExcept(vec![host.to_owned()])
        } else {
            ClientProtocol::Https
        };
        let config = ClientConfig {
            protocol,
            connect_timeout: Some(CONNECT),
            read_timeout: Some(SILENCE),
            user_agent: concat!("nacre/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        let client = Client::try_from(config).map_err(failed(reference))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(4)
            .build()
            .map_err(ImageError::system("cannot start the registry's client"))?;
        let registry = Self {
            client,
            reference: reference.clone(),
            runtime,
        };
        registry.log_in()?;
        Ok(registry)
    }

    fn log_in(&self) -> Result<(), ImageError> {
        let auth = self.client.auth(
            &self.reference,
            &RegistryAuth::Anonymous,
            RegistryOperation::Pull,
        );
        self.wait(auth)?;
        Ok(())
    }

    /// Waits for a short answer.
    fn wait<T>(
        &self,
        answer: impl Future<Output = Result<T, OciDistributionError>>,
    ) -> Result<T, ImageError> {
        self.runtime.block_on(async {
            match tokio::time::timeout(DOCUMENT, answer).await {
                Ok(answer) => answer.map_err(failed(&self.reference)),
                Err(_) => Err(ImageError::invalid(
                    self.reference.whole(),
                    "the registry takes too long",
                )),
            }
        })
    }

    /// The manifest or index that the reference leads to.
    pub(crate) fn resolve(&self) -> Result<Manifest, ImageError> {
        self.fetch_manifest(&self.reference)
    }

    /// The manifest with a tag of the same repository, or `None` when there is none.
    pub(crate) fn tagged(&self, tag: &str) -> Result<Option<Manifest>, ImageError> {
        let reference = Reference::with_tag(
            self.reference.registry().to_owned(),
            self.reference.repository().to_owned(),
            tag.to_owned(),
        );
        match self.fetch_manifest(&reference) {
            Err(ImageError::Registry { source, .. }) if is_missing(&source) => Ok(None),
            answer => answer.map(Some),
        }
    }

    fn fetch_manifest(&self, reference: &Reference) -> Result<Manifest, ImageError> {
        let accepted = [
            media_types::INDEX,
            media_types::MANIFEST,
            media_types::DOCKER_INDEX,
            media_types::DOCKER_MANIFEST,
        ];
        let answer = self
            .client
            .pull_manifest_raw(reference, &RegistryAuth::Anonymous, &accepted);
        let (bytes, _) = self.wait(answer)?;
        let what = reference.whole();
        if bytes.len() as u64 > MAX_DOCUMENT {
            return Err(ImageError::invalid(
                what,
                "its manifest is larger than 4 MiB",
            ));
        }
        let digest = match reference.digest() {
            Some(digest) => digest
                .parse()
                .map_err(|error| ImageError::invalid(&what, error))?,
            None => Digest::of(&bytes),
        };
        Ok(Manifest {
            media_type: media_type_of(&what, &bytes)?,
            digest,
            bytes: bytes.to_vec(),
        })
    }

    /// The whole of a small blob. The caller checks its digest.
    pub(crate) fn small_blob(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        let name = digest.to_string();
        self.wait(async {
            let mut stream = self.blob_stream(&name).await?;
            let mut bytes = Vec::new();
            while let Some(chunk) = stream.try_next().await? {
                bytes.extend_from_slice(&chunk);
                if bytes.len() as u64 > MAX_DOCUMENT {
                    return Err(OciDistributionError::SpecViolationError(format!(
                        "{name} is larger than 4 MiB"
                    )));
                }
            }
            Ok(bytes)
        })
    }

    async fn blob_stream(
        &self,
        digest: &str,
    ) -> Result<oci_client::client::SizedStream, OciDistributionError> {
        // Addresses elsewhere that a descriptor may have are not gone to.
        let descriptor = LayerDescriptor {
            digest,
            urls: &None,
        };
        self.client
            .pull_blob_stream(&self.reference, &descriptor)
            .await
    }

    /// Fetches layers into files of `dir`, named by their digests. What is there after an error
    /// is to be thrown away; digests are checked when the layers are unpacked.
    pub(crate) fn download(
        &self,
        layers: &[&Layer],
        dir: &Path,
        progress: &Progress,
    ) -> Result<(), ImageError> {
        let downloads = layers
            .iter()
            .filter_map(|layer| Some((layer.digest.as_ref()?, layer.size?)))
            .map(|(digest, size)| self.download_one(digest, size, dir, progress));
        let all = stream::iter(downloads)
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>();
        self.runtime.block_on(all)
    }

    async fn download_one(
        &self,
        digest: &Digest,
        size: u64,
        dir: &Path,
        progress: &Progress,
    ) -> Result<(), ImageError> {
        let what = format!("{}: {digest}", self.reference.whole());
        let task = progress.start("pulling", digest.short(), Some(size));
        let name = digest.to_string();
        let stream = self.blob_stream(&name).await;
        let mut stream = stream.map_err(failed(&self.reference))?;
        let path = layer_file(dir, digest);
        let mut file = File::create_new(&path).map_err(ImageError::system(path.display()))?;
        let mut left = size;
        while let Some(chunk) = stream.try_next().await.map_err(ImageError::system(&what))? {
            let len = chunk.len() as u64;
            left = left
                .checked_sub(len)
                .ok_or_else(|| ImageError::invalid(&what, "is larger than its manifest says"))?;
            file.write_all(&chunk)
                .map_err(ImageError::system(path.display()))?;
            task.advance(len);
        }
        Ok(())
    }
}

impl Blobs for Registry {
    fn name(&self) -> String {
        self.reference.whole()
    }

    fn manifest(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        let reference = self.reference.clone_with_digest(digest.to_string());
        Ok(self.fetch_manifest(&reference)?.bytes)
    }

    fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        self.small_blob(&digest_of(&self.name(), descriptor)?)
    }
}

/// Where a layer is fetched to.
pub(crate) fn layer_file(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join(digest.hex())
}

fn failed(reference: &Reference) -> impl FnOnce(OciDistributionError) -> ImageError + use<> {
    let what = reference.whole();
    move |source| ImageError::Registry {
        what,
        source: Box::new(source),
    }
}

fn is_missing(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::ImageManifestNotFoundError(_) => true,
        OciDistributionError::ServerError { code, .. } => *code == 404,
        OciDistributionError::RegistryError { envelope, .. } => {
            use oci_client::errors::OciErrorCode;
            let codes = envelope.errors.iter().map(|error| &error.code);
            let mut missing = codes.filter(|code| {
                matches!(code, OciErrorCode::ManifestUnknown | OciErrorCode::NotFound)
            });
            missing.next().is_some()
        }
        _ => false,
    }
}

/// Whether `host`, with a port or not, is this machine by its name or address.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_spoken_to_without_tls() {
        for host in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:1",
            "[::1]:5000",
            "127.1.2.3",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "example.org",
            "10.0.0.1:5000",
            "localhost.example.org",
            "127.0.0.1.nip.io",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
