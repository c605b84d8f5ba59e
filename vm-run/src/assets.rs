//! Where the monitor and the guest are found.
//!
//! For each file, the first of: the option on the command line, the environment
//! variable, and the places below, in order. A name that was given is taken as
//! it is; only the places are tried one after the other.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::cli::BundleArgs;

/// A file that a pod needs.
struct Asset {
    what: &'static str,
    option: Option<&'static str>,
    variable: &'static str,
    /// Relative to the directory of this program.
    places: &'static [&'static str],
}

// An installation has this program in bin/ and everything else in lib/nacre/
// beside it; a checkout has the programs in target/TRIPLE/release/ and the rest
// in target/guest/.

const MONITOR: Asset = Asset {
    what: "monitor",
    option: None,
    variable: "NACRE_VMM",
    places: &["nacre-vmm", "../lib/nacre/nacre-vmm"],
};

const KERNEL: Asset = Asset {
    what: "guest kernel",
    option: Some("--kernel"),
    variable: "NACRE_KERNEL",
    places: &["../lib/nacre/vmlinux", "../../guest/vmlinux"],
};

const INITRAMFS: Asset = Asset {
    what: "initramfs",
    option: Some("--initramfs"),
    variable: "NACRE_INITRAMFS",
    places: &["../lib/nacre/initramfs.cpio", "../../guest/initramfs.cpio"],
};

/// A file that was found nowhere.
#[derive(Debug, Error)]
#[error(
    "no {what} found: looked for {} ({}{variable} names another; `make build` makes it)",
    list(places),
    option.map(|option| format!("{option} or ")).unwrap_or_default()
)]
pub(crate) struct MissingAsset {
    what: &'static str,
    option: Option<&'static str>,
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

/// The files that a pod needs.
#[derive(Debug)]
pub(crate) struct Assets {
    pub(crate) monitor: PathBuf,
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
}

impl Assets {
    /// Finds all of them.
    pub(crate) fn find(args: &BundleArgs) -> Result<Self, MissingAsset> {
        let found = Found::find(args.kernel.as_ref(), args.initramfs.as_ref());
        Ok(Self {
            monitor: found.monitor?,
            kernel: found.kernel?,
            initramfs: found.initramfs?,
        })
    }
}

/// What was found of the files that a pod needs.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) monitor: Result<PathBuf, MissingAsset>,
    pub(crate) kernel: Result<PathBuf, MissingAsset>,
    pub(crate) initramfs: Result<PathBuf, MissingAsset>,
}

impl Found {
    /// Looks for each of them.
    pub(crate) fn find(kernel: Option<&PathBuf>, initramfs: Option<&PathBuf>) -> Self {
        let program = env::current_exe().unwrap_or_default();
        let dir = program.parent().unwrap_or(Path::new("/"));
        let find = |asset: Asset, given: Option<&PathBuf>| {
            let variable = env::var_os(asset.variable);
            asset.find(given, variable, dir)
        };
        Self {
            monitor: find(MONITOR, None),
            kernel: find(KERNEL, kernel),
            initramfs: find(INITRAMFS, initramfs),
        }
    }
}

impl Asset {
    fn find(
        self,
        given: Option<&PathBuf>,
        variable: Option<OsString>,
        dir: &Path,
    ) -> Result<PathBuf, MissingAsset> {
        if let Some(path) = given {
            return Ok(path.clone());
        }
        if let Some(path) = variable.filter(|path| !path.is_empty()) {
            return Ok(path.into());
        }
        let places: Vec<_> = self.places.iter().map(|place| dir.join(place)).collect();
        match places.iter().find(|place| place.exists()) {
            Some(place) => Ok(place.clone()),
            None => Err(MissingAsset {
                what: self.what,
                option: self.option,
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
        option: Some("--thing"),
        variable: "NACRE_THING",
        places: &["../a/thing", "../b/thing"],
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
            ASSET.find(None, None, &bin).unwrap(),
            bin.join("../b/thing")
        );
        fs::write(root.path().join("a/thing"), "").unwrap();
        assert_eq!(
            ASSET.find(None, Some("".into()), &bin).unwrap(),
            bin.join("../a/thing")
        );
        let variable = Some("/from/variable".into());
        let given = PathBuf::from("given");
        assert_eq!(
            ASSET.find(None, variable.clone(), &bin).unwrap(),
            Path::new("/from/variable")
        );
        assert_eq!(ASSET.find(Some(&given), variable, &bin).unwrap(), given);
    }

    #[test]
    fn what_is_missing_says_where_it_was_looked_for() {
        let error = ASSET
            .find(None, None, Path::new("/no/bin"))
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "no thing found: looked for /no/bin/../a/thing, /no/bin/../b/thing (--thing or \
             NACRE_THING names another; `make build` makes it)"
        );
    }
}
