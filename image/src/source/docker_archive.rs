//! An archive of `docker save`, version 1.2 and later: `manifest.json` names a configuration
//! and layers by their names in the archive.
//!
//! The one digest that it has of the image is the configuration's, in that file's name; the
//! layers' are in the configuration.

use std::io::Read;

use serde::Deserialize;

use super::Found;
use super::files::Files;
use super::manifest::{check_digest, diff_ids, parse, parse_config, read_document};
use crate::digest::Digest;
use crate::error::ImageError;
use crate::unpack::Layer;

pub(crate) struct DockerArchive {
    files: Files,
    layers: Vec<String>,
}

/// An image in `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Item {
    fn names(&self) -> &[String] {
        self.repo_tags.as_deref().unwrap_or_default()
    }
}

impl DockerArchive {
    /// The image that has the name `tag`, or the only one.
    pub(super) fn find(files: Files, tag: Option<&str>) -> Result<(Self, Found), ImageError> {
        let what = format!("{}: manifest.json", files.name());
        let items = read_document(&what, files.read("manifest.json")?)?;
        let items: Vec<Item> = parse(&what, &items)?;
        let all: Vec<_> = items
            .iter()
            .flat_map(Item::names)
            .take(20)
            .cloned()
            .collect();
        let mut named = items
            .into_iter()
            .filter(|item| tag.is_none_or(|tag| item.names().iter().any(|name| name == tag)));
        let item = match (named.next(), named.next()) {
            (Some(item), None) => item,
            (None, _) => {
                let reason = format!(
                    "it has no image {:?}; it has {all:?}",
                    tag.unwrap_or("at all")
                );
                return Err(ImageError::invalid(files.name(), reason));
            }
            _ => {
                let reason = format!("it has several images; give one with `:NAME`: {all:?}");
                return Err(ImageError::invalid(files.name(), reason));
            }
        };
        let found = Self::read(&files, &item)?;
        let archive = Self {
            files,
            layers: item.layers,
        };
        Ok((archive, found))
    }

    fn read(files: &Files, item: &Item) -> Result<Found, ImageError> {
        let what = format!("{}: {}", files.name(), item.config);
        let bytes = read_document(&what, files.read(&item.config)?)?;
        // HEX.json of old, blobs/sha256/HEX today.
        let name = item.config.rsplit('/').next().unwrap_or_default();
        let hex = name.strip_suffix(".json").unwrap_or(name);
        if let Ok(digest) = format!("sha256:{hex}").parse::<Digest>() {
            check_digest(&what, &digest, &bytes)?;
        }
        let config = parse_config(&what, &bytes)?;
        let diff_ids = diff_ids(&what, &config)?;
        if diff_ids.len() != item.layers.len() {
            let reason = format!(
                "it speaks of {} layers, and manifest.json of {}",
                diff_ids.len(),
                item.layers.len()
            );
            return Err(ImageError::invalid(what, reason));
        }
        let layer = |diff_id| Layer {
            digest: None,
            size: None,
            diff_id,
        };
        Ok(Found {
            config,
            layers: diff_ids.into_iter().map(layer).collect(),
        })
    }

    pub(super) fn layer(&self, number: usize) -> Result<Box<dyn Read>, ImageError> {
        match self.layers.get(number) {
            Some(name) => self.files.read(name),
            None => Err(ImageError::invalid(
                self.files.name(),
                format!("it has no layer {number}"),
            )),
        }
    }
}
