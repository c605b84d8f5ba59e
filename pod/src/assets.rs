//! Where the monitor and the guest are found.
//!
//! For each file, the first of: what the front door was told, the environment
//! variable, and the places below, in order. A name that was given is taken as
//! it is; only the places are tried one after the other.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// A file that a pod needs.
struct Asset {
    what: &'static str,
    variable: &'static str,
    /// Relative to the directory of this program.
    places: &'static [&'static str],
}

// An installation has this program in bin/ and everything else in lib/nacre/
// beside it; a checkout has the programs in target/TRIPLE/release/ and the rest
// in target/guest/.

const MONITOR: Asset = Asset {
    what: "monitor",
    variable: "NACRE_VMM",
    places: &["nacre-vmm", "../lib/nacre/nacre-vmm"],
};

const KERNEL: Asset = Asset {
    what: "guest kernel",
    variable: "NACRE_KERNEL",
    places: &["../lib/nacre/vmlinux", "../../guest/vmlinux"],
};

const INITRAMFS: Asset = Asset {
    what: "initramfs",
    variable: "NACRE_INITRAMFS",
    places: &["../lib/nacre/initramfs.cpio", "../../guest/initramfs.cpio"],
};

/// A file that was found nowhere.
#[derive(Debug, Error)]
#[error(
    "no {what} found: looked for {} ({}{variable} names another; `make build` makes it)",
    list(places),
    by.map(|by| format!("{by} or ")).unwrap_or_default()
)]
pub struct MissingAsset {
    what: &'static str,
    by: Option<&'static str>,
    variable: &'static str,
    places: Vec<PathBuf>,
}

fn list(places: &[PathBuf]) -> String {
    let places: Vec<_> = places
        .iter()
        .map(|place| place.display().to_string())
        .collect();
    places.join(", ")
}

/// How a front door can be told of a file.
#[derive(Clone, Copy, Debug, Default)]
pub struct Given<'a> {
    /// The file that it was told of.
    pub path: Option<&'a Path>,
    /// What tells it, for messages: an option, or a key of a configuration.
    pub by: Option<&'static str>,
}

/// What a front door was told of the files that a pod needs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Choices<'a> {
    /// The monitor's binary.
    pub monitor: Given<'a>,
    /// The guest kernel.
    pub kernel: Given<'a>,
    /// The initramfs.
    pub initramfs: Given<'a>,
}

/// The files that a pod needs.
#[derive(Debug)]
pub struct Assets {
    /// The monitor's binary.
    pub monitor: PathBuf,
    /// The guest kernel.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
}

impl Assets {
    /// Finds all of them.
    ///
    /// # Errors
    /// The first that is missing.
    pub fn find(choices: &Choices<'_>) -> Result<Self, MissingAsset> {
        let found = Found::find(choices);
        Ok(Self {
            monitor: found.monitor?,
            kernel: found.kernel?,
            initramfs: found.initramfs?,
        })
    }
}

/// What was found of the files that a pod needs.
#[derive(Debug)]
pub struct Found {
    /// The monitor's binary.
    pub monitor: Result<PathBuf, MissingAsset>,
    /// The guest kernel.
    pub kernel: Result<PathBuf, MissingAsset>,
    /// The initramfs.
    pub initramfs: Result<PathBuf, MissingAsset>,
}

impl Found {
    /// Looks for each of them.
    #[must_use]
    pub fn find(choices: &Choices<'_>) -> Self {
        let program = env::current_exe().unwrap_or_default();
        let dir = program.parent().unwrap_or(Path::new("/"));
        let find = |asset: Asset, given: Given<'_>| {
            let variable = env::var_os(asset.variable);
            asset.find(given, variable, dir)
        };
        Self {
            monitor: find(MONITOR, choices.monitor),
            kernel: find(KERNEL, choices.kernel),
            initramfs: find(INITRAMFS, choices.initramfs),
        }
    }
}

impl Asset {
    fn find(
        self,
        given: Given<'_>,
        variable: Option<OsString>,
        dir: &Path,
    ) -> Result<PathBuf, MissingAsset> {
        if let Some(path) = given.path {
            return Ok(path.to_owned());
        }
        if let Some(path) = variable.filter(|path| !path.is_empty()) {
            return Ok(path.into());
        }
        let places: Vec<_> = self.places.iter().map(|place| dir.join(place)).collect();
        match places.iter().find(|place| place.exists()) {
            Some(place) => Ok(place.clone()),
            None => Err(MissingAsset {
                what: self.what,
                by: given.by,
                variable: self.variable,
                places,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const ASSET: Asset = Asset {
        what: "thing",
        variable: "NACRE_THING",
        places: &["../a/thing", "../b/thing"],
    };

    const NOT_GIVEN: Given<'static> = Given {
        path: None,
        by: Some("--thing"),
    };

    #[test]
    fn option_then_variable_then_the_places_in_order() {
        let root = tempfile::tempdir().unwrap();
        let bin = root.path().join("bin");
        for dir in ["bin", "a", "b"] {
            fs::create_dir(root.path().join(dir)).unwrap();
        }
        fs::write(root.path().join("b/thing"), "").unwrap();
        assert_eq!(
            ASSET.find(NOT_GIVEN, None, &bin).unwrap(),
            bin.join("../b/thing")
        );
        fs::write(root.path().join("a/thing"), "").unwrap();
        assert_eq!(
            ASSET.find(NOT_GIVEN, Some("".into()), &bin).unwrap(),
            bin.join("../a/thing")
        );
        let variable = Some("/from/variable".into());
        let given = Path::new("given");
        assert_eq!(
            ASSET.find(NOT_GIVEN, variable.clone(), &bin).unwrap(),
            Path::new("/from/variable")
        );
        let path = Some(given);
        let told = Given { path, ..NOT_GIVEN };
        assert_eq!(ASSET.find(told, variable, &bin).unwrap(), given);
    }

    #[test]
    fn what_is_missing_says_where_it_was_looked_for() {
        let error = ASSET
            .find(NOT_GIVEN, None, Path::new("/no/bin"))
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "no thing found: looked for /no/bin/../a/thing, /no/bin/../b/thing (--thing or \
             NACRE_THING names another; `make build` makes it)"
        );
    }
}
