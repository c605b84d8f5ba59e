//! Signatures of images in the form of [cosign's simple signing].
//!
//! Next to an image with the digest `sha256:HEX` its registry has a manifest with the tag
//! `sha256-HEX.sig`. Each of its layers is a payload that names the image's digest, and its
//! annotations have a signature of that payload.
//!
//! [cosign's simple signing]: https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use oci_spec::image::{Descriptor, ImageManifest};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;

use crate::digest::Digest;
use crate::error::ImageError;
use crate::source::{Blobs, Registry, check_digest, digest_of};

/// Media type of a payload.
const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";

/// Where a layer has its signature.
const ANNOTATION: &str = "dev.cosignproject.cosign/signature";

/// What the payload says that it is.
const TYPE: &str = "cosign container image signature";

/// Signatures that are looked at; anybody who may push can add some.
const MAX_SIGNATURES: usize = 32;

/// What stands before the point in the only DER form of a P-256 key (RFC 5480): two sequences,
/// the identifiers of id-ecPublicKey and secp256r1, and a bit string of 65 bytes.
const P256_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// A key that an image must have been signed with.
#[derive(Debug)]
pub struct PublicKey {
    /// Coordinates, uncompressed.
    point: Vec<u8>,
}

impl PublicKey {
    /// Reads a P-256 key from a PEM file such as cosign's `cosign.pub`.
    ///
    /// # Errors
    /// When it is none.
    pub fn read(path: &Path) -> Result<Self, ImageError> {
        let pem = std::fs::read(path).map_err(ImageError::system(path.display()))?;
        Self::parse(&pem).map_err(|reason| ImageError::invalid(path.display(), reason))
    }

    fn parse(pem: &[u8]) -> Result<Self, &'static str> {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem)
            .map_err(|_| "is not a public key in PEM form (-----BEGIN PUBLIC KEY-----)")?;
        match der.strip_prefix(&P256_PREFIX) {
            Some(point) if point.len() == 65 && point[0] == 4 => Ok(Self {
                point: point.to_vec(),
            }),
            _ => Err("is not an ECDSA P-256 key, the only kind that is supported"),
        }
    }

    /// Makes sure that the image or index with this digest was signed with this key.
    pub(crate) fn verify(&self, registry: &Registry, image: &Digest) -> Result<(), ImageError> {
        let what = Blobs::name(registry);
        let tag = format!("sha256-{}.sig", image.hex());
        let refused = |reason: String| ImageError::invalid(&what, reason);
        let Some(signatures) = registry.tagged(&tag)? else {
            return Err(refused(format!("is not signed (there is no {tag})")));
        };
        let manifest: ImageManifest = serde_json::from_slice(&signatures.bytes)
            .map_err(|error| refused(format!("{tag}: {error}")))?;
        let payloads = manifest.layers().iter().take(MAX_SIGNATURES);
        for descriptor in payloads.filter(|layer| layer.media_type().to_string() == PAYLOAD) {
            let digest = digest_of(&what, descriptor)?;
            let payload = registry.small_blob(&digest)?;
            check_digest(&what, &digest, &payload)?;
            if self.has_signed(descriptor, &payload) && names(&payload, image) {
                return Ok(());
            }
        }
        Err(refused(format!(
            "none of its signatures ({tag}) is of {image} and by the key given"
        )))
    }

    /// Whether the annotation is a signature of the payload by this key.
    fn has_signed(&self, descriptor: &Descriptor, payload: &[u8]) -> bool {
        let annotations = descriptor.annotations().as_ref();
        let signature = annotations.and_then(|all| STANDARD.decode(all.get(ANNOTATION)?).ok());
        signature.is_some_and(|signature| self.verifies(payload, &signature))
    }

    fn verifies(&self, payload: &[u8], signature: &[u8]) -> bool {
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.point);
        key.verify(payload, signature).is_ok()
    }
}

/// Whether a payload speaks of this image.
fn names(payload: &[u8], image: &Digest) -> bool {
    #[derive(Deserialize)]
    struct Payload {
        critical: Critical,
    }
    #[derive(Deserialize)]
    struct Critical {
        image: Image,
        #[serde(rename = "type")]
        kind: String,
    }
    #[derive(Deserialize)]
    struct Image {
        #[serde(rename = "docker-manifest-digest")]
        digest: String,
    }
    serde_json::from_slice(payload).is_ok_and(|Payload { critical }| {
        critical.kind == TYPE && critical.image.digest == image.to_string()
    })
}

#[cfg(test)]
mod tests {
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};

    use super::*;

    fn key_pair() -> EcdsaKeyPair {
        let (algorithm, random) = (&ECDSA_P256_SHA256_ASN1_SIGNING, SystemRandom::new());
        let key = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        EcdsaKeyPair::from_pkcs8(algorithm, key.as_ref(), &random).unwrap()
    }

    fn pem(prefix: &[u8], point: &[u8]) -> String {
        let der = STANDARD.encode([prefix, point].concat());
        format!("-----BEGIN PUBLIC KEY-----\n{der}\n-----END PUBLIC KEY-----\n")
    }

    #[test]
    fn only_its_own_signature_of_that_very_payload_counts() {
        let (signer, other) = (key_pair(), key_pair());
        let key = |pair: &EcdsaKeyPair| {
            PublicKey::parse(pem(&P256_PREFIX, pair.public_key().as_ref()).as_bytes()).unwrap()
        };
        let signature = signer.sign(&SystemRandom::new(), b"payload").unwrap();
        assert!(key(&signer).verifies(b"payload", signature.as_ref()));
        assert!(!key(&signer).verifies(b"Payload", signature.as_ref()));
        assert!(!key(&signer).verifies(b"payload", b""));
        assert!(!key(&other).verifies(b"payload", signature.as_ref()));
    }

    #[test]
    fn keys_of_other_kinds_are_refused() {
        let point = key_pair().public_key().as_ref().to_vec();
        let mut p384 = P256_PREFIX;
        p384[22] = 8;
        for text in [
            String::new(),
            pem(&p384, &point),
            pem(&P256_PREFIX, &point[1..]),
            pem(&P256_PREFIX, &[2; 65]),
            pem(&P256_PREFIX, &point).replace("PUBLIC", "PRIVATE"),
        ] {
            assert!(PublicKey::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_payload_names_its_image() {
        let image = Digest::of(b"image");
        let payload = |kind: &str, digest: &str| {
            format!(
                r#"{{"critical": {{"identity": {{"docker-reference": "x"}}, "type": "{kind}",
                "image": {{"docker-manifest-digest": "{digest}"}}}}, "optional": null}}"#
            )
        };
        assert!(names(payload(TYPE, &image.to_string()).as_bytes(), &image));
        let other = Digest::of(b"other").to_string();
        assert!(!names(payload(TYPE, &other).as_bytes(), &image));
        assert!(!names(
            payload("atomic", &image.to_string()).as_bytes(),
            &image
        ));
        assert!(!names(b"{}", &image));
    }
}
