//! Finding network configurations in a directory such as `/etc/cni/net.d`.
//!
//! A file ends with `.conflist`, `.conf` or `.json`; files come in the order of their
//! names' bytes. Since 1.1.0, a list may get more plugins from the directory that is
//! named after the network and lies beside the list's file, unless
//! `loadOnlyInlinedPlugins` is set.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::config::{InvalidConfig, MAX_CONFIG, NetworkConfig, PluginConfig, refuse_too_many};
use crate::error::Error;
use crate::file::read_bounded;
use crate::names::NetworkName;

/// Where administrators put network configurations.
pub const DEFAULT_CONF_DIR: &str = "/etc/cni/net.d";

/// Configuration lists.
const LISTS: &[&str] = &["conflist"];
/// Configurations of one plugin.
const SINGLES: &[&str] = &["conf", "json"];
/// All of them.
const ALL: &[&str] = &["conflist", "conf", "json"];

/// The network called `name`: lists first, then single configurations, each in the
/// order of their files' names. A file that is broken does not hide another one.
///
/// # Errors
///
/// The directory cannot be read, or has no such network.
pub fn find(dir: &Path, name: &NetworkName) -> Result<NetworkConfig, Error> {
    let mut files = files(dir, LISTS)?;
    files.extend(self::files(dir, SINGLES)?);
    first_match(&files, |network| network.name == *name).map_err(|broken| Error::NoSuchNetwork {
        name: name.clone(),
        dir: dir.into(),
        broken,
    })
}

/// The default network: the first valid file.
///
/// # Errors
///
/// The directory cannot be read, or has no valid configuration.
pub fn first(dir: &Path) -> Result<NetworkConfig, Error> {
    first_match(&files(dir, ALL)?, |_| true).map_err(|broken| Error::NoNetwork {
        dir: dir.into(),
        broken,
    })
}

/// The network of one file, with the plugins of its network's directory.
///
/// # Errors
///
/// The file cannot be read, is no network configuration, or has no plugins.
pub fn load(path: &Path) -> Result<NetworkConfig, Error> {
    let mut network = NetworkConfig::from_json(&read(path)?).map_err(at(path))?;
    if has_extension(path, LISTS) && !network.load_only_inlined_plugins {
        let siblings = path.with_file_name(network.name.as_str());
        for path in files(&siblings, &["conf"])? {
            let plugin = PluginConfig::from_json(&read(&path)?).map_err(at(&path))?;
            network.plugins.push(plugin);
            // With those of the list: the result cache takes no more either.
            refuse_too_many(network.plugins.len()).map_err(at(&path))?;
        }
    }
    if network.plugins.is_empty() {
        return Err(Error::NoPlugins(network.name));
    }
    Ok(network)
}

/// The first network that matches, or the first error on the way.
fn first_match(
    files: &[PathBuf],
    matches: impl Fn(&NetworkConfig) -> bool,
) -> Result<NetworkConfig, Option<Box<Error>>> {
    let mut broken = None;
    for path in files {
        match load(path) {
            Ok(network) if matches(&network) => return Ok(network),
            Ok(_) => {}
            Err(error) => {
                broken.get_or_insert(Box::new(error));
            }
        }
    }
    Err(broken)
}

/// Files with one of the extensions, sorted; none when there is no such directory.
fn files(dir: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>, Error> {
    let unreadable = |source| Error::Read {
        path: dir.into(),
        source,
    };
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(unreadable)?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        if has_extension(&path, extensions) && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort_unstable();
    Ok(files)
}

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| extensions.contains(&extension))
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    read_bounded(path, MAX_CONFIG).map_err(|source| Error::Read {
        path: path.into(),
        source,
    })
}

fn at(path: &Path) -> impl Fn(InvalidConfig) -> Error {
    move |source| Error::Config {
        path: path.into(),
        source,
    }
}

#[cfg(test)]
#[path = "discovery_test.rs"]
mod tests;
