//! The result cache: what `ADD` was given and what it got, so that `CHECK` and `DEL`
//! get the same, also from a later process.
//!
//! One file for each attachment. It is written before the first plugin runs and again
//! after each of them, so that a runtime that was killed in the middle of an `ADD`
//! leaves a trace to undo it by. A file is replaced by renaming, never changed: a
//! reader sees one state or the next.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use crate::attachment::{Attachment, AttachmentId};
use crate::config::NetworkConfig;
use crate::error::Error;
use crate::file::read_bounded;
use crate::names::NetworkName;
use crate::result::AddResult;
use crate::text::one_line;
use crate::version::Version;

/// Form of the files, in their first key.
const KIND: &str = "nacre-cni/1";

/// Largest file that is read, in bytes: a configuration and a result, and the rest.
const MAX_ENTRY: u64 = 4 << 20;

/// Between the parts of a file's name. None of them can have one.
const SEPARATOR: char = ':';

/// Before the name of a file that is being written. No name of a network starts so.
const UNFINISHED: char = '.';

/// One `ADD`: what went in, and what came out.
#[derive(Debug, Clone)]
pub struct CacheEntry {
    /// As it was at the time of `ADD`.
    pub network: NetworkConfig,
    /// With the parameters of `ADD`.
    pub attachment: Attachment,
    /// Of the last plugin that has succeeded.
    pub result: Option<AddResult>,
    /// All plugins have succeeded. If not, `ADD` is under way, or was cut short.
    pub complete: bool,
}

/// An attachment that the cache knows of.
#[derive(Debug, Clone)]
pub struct CachedAttachment {
    /// On which network.
    pub network: NetworkName,
    /// Which one.
    pub id: AttachmentId,
    /// None when its file is damaged; a garbage collection of the network removes it.
    pub entry: Option<CacheEntry>,
}

/// A [`CacheEntry`] in its file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    kind: String,
    network: Box<RawValue>,
    attachment: Attachment,
    result: Option<Box<RawValue>>,
    complete: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Cache {
    dir: PathBuf,
}

impl CacheEntry {
    /// An `ADD` of which nothing has happened yet.
    pub(crate) fn new(network: &NetworkConfig, attachment: &Attachment) -> Self {
        Self {
            network: network.clone(),
            attachment: attachment.clone(),
            result: None,
            complete: false,
        }
    }
}

impl Cache {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Makes the directory, for nobody else to read: configurations may have secrets.
    pub(crate) fn make_dir(&self) -> Result<&Path, Error> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(cannot("make", &self.dir))?;
        Ok(&self.dir)
    }

    /// What is known of an attachment.
    pub(crate) fn read(
        &self,
        network: &NetworkName,
        id: &AttachmentId,
    ) -> Result<Option<CacheEntry>, Error> {
        let path = self.dir.join(file_name(network, id));
        let bytes = match read_bounded(&path, MAX_ENTRY) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(damaged(&path, &error)),
        };
        let entry = decode(&bytes).map_err(|why| damaged(&path, &why))?;
        if entry.network.name != *network || entry.attachment.id != *id {
            return Err(damaged(&path, &"it is of another attachment"));
        }
        Ok(Some(entry))
    }

    /// Replaces what is known. Only a complete `ADD` is waited for until it is on the
    /// disk: what a crash of the whole host cuts short has lost its namespace anyway.
    pub(crate) fn write(&self, entry: &CacheEntry) -> Result<(), Error> {
        let bytes = encode(entry)?;
        let name = file_name(&entry.network.name, &entry.attachment.id);
        let path = self.dir.join(&name);
        let unfinished = self.dir.join(format!("{UNFINISHED}{name}"));
        write_file(&unfinished, &bytes, entry.complete).map_err(cannot("write", &unfinished))?;
        fs::rename(&unfinished, &path).map_err(cannot("write", &path))?;
        if entry.complete {
            let dir = File::open(&self.dir).and_then(|dir| dir.sync_all());
            dir.map_err(cannot("write", &self.dir))?;
        }
        Ok(())
    }

    /// Forgets an attachment.
    pub(crate) fn remove(&self, network: &NetworkName, id: &AttachmentId) -> Result<(), Error> {
        let name = file_name(network, id);
        for path in [
            self.dir.join(format!("{UNFINISHED}{name}")),
            self.dir.join(name),
        ] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(cannot("remove", &path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// All that is known, sorted by network and id.
    pub(crate) fn list(&self) -> Result<Vec<CachedAttachment>, Error> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(cannot("read", &self.dir))?,
        };
        let mut keys = Vec::new();
        for entry in entries {
            let name = entry.map_err(cannot("read", &self.dir))?.file_name();
            keys.extend(name.to_str().and_then(parse_file_name));
        }
        keys.sort_unstable();
        let mut attachments = Vec::new();
        for (network, id) in keys {
            let entry = match self.read(&network, &id) {
                Ok(Some(entry)) => Some(entry),
                // Somebody has deleted it meanwhile.
                Ok(None) => continue,
                Err(Error::Damaged { .. }) => None,
                Err(error) => return Err(error),
            };
            attachments.push(CachedAttachment { network, id, entry });
        }
        Ok(attachments)
    }
}

fn file_name(network: &NetworkName, id: &AttachmentId) -> String {
    let AttachmentId {
        container_id,
        interface,
    } = id;
    format!("{network}{SEPARATOR}{container_id}{SEPARATOR}{interface}")
}

fn parse_file_name(name: &str) -> Option<(NetworkName, AttachmentId)> {
    let mut parts = name.split(SEPARATOR);
    let (network, container, interface) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let id = AttachmentId::new(container, interface).ok()?;
    Some((network.parse().ok()?, id))
}

fn encode(entry: &CacheEntry) -> Result<Vec<u8>, Error> {
    let stored = Stored {
        kind: KIND.to_owned(),
        network: to_raw_value(&entry.network)?,
        attachment: entry.attachment.clone(),
        result: entry.result.as_ref().map(to_raw_value).transpose()?,
        complete: entry.complete,
    };
    Ok(serde_json::to_vec(&stored)?)
}

fn decode(bytes: &[u8]) -> Result<CacheEntry, String> {
    let stored: Stored = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if stored.kind != KIND {
        return Err(format!("its kind is \"{}\", not {KIND}", stored.kind));
    }
    let network = NetworkConfig::from_json(stored.network.get().as_bytes())
        .map_err(|error| error.to_string())?;
    let result = stored
        .result
        .map(|result| AddResult::from_json(result.get().as_bytes(), Version::LATEST))
        .transpose()
        .map_err(|error| error.to_string())?;
    Ok(CacheEntry {
        network,
        attachment: stored.attachment,
        result,
        complete: stored.complete,
    })
}

fn write_file(path: &Path, bytes: &[u8], durably: bool) -> io::Result<()> {
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    if durably {
        file.sync_all()?;
    }
    Ok(())
}

fn cannot(action: &'static str, path: &Path) -> impl Fn(io::Error) -> Error {
    move |source| Error::Cache {
        action,
        path: path.into(),
        source,
    }
}

fn damaged(path: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::Damaged {
        path: path.into(),
        why: one_line(&why.to_string()),
    }
}

#[cfg(test)]
#[path = "cache_test.rs"]
mod tests;
