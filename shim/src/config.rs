//! `/etc/nacre/nacre.toml`: the few things that an administrator decides.
//!
//! Every key has a default, and the file may be missing. A key that is not known
//! is an error: a typo must not silently mean the default.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nacre_pod::boot::{MAX_MEMORY_MIB, MAX_VCPUS, MIN_MEMORY_MIB};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::annotations;

/// Where it is, unless containerd's runtime options name another.
pub(crate) const PATH: &str = "/etc/nacre/nacre.toml";

/// Largest file that is read, bytes.
const MAX_FILE: u64 = 1 << 20;

/// Why the configuration cannot be used. Each message begins with its place.
#[derive(Debug, Error)]
pub(crate) enum ConfigError {
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{place}: {message}")]
    Parse { place: String, message: String },
    #[error("{place}: {key}: {reason}")]
    Value {
        place: String,
        key: &'static str,
        reason: String,
    },
}

/// The configuration.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// The monitor's binary; found beside the shim when unset, as are the two others.
    pub(crate) monitor: Option<PathBuf>,
    /// The guest kernel.
    pub(crate) kernel: Option<PathBuf>,
    /// The initramfs.
    pub(crate) initramfs: Option<PathBuf>,
    /// Memory of a pod without a limit, MiB.
    pub(crate) default_memory_mib: u64,
    /// vCPUs of a pod without a limit.
    pub(crate) default_vcpus: u8,
    /// What a guest gets beside its pod's memory limit, MiB: kernel, agent,
    /// page tables, caches.
    pub(crate) overhead_memory_mib: u64,
    /// Memory that a guest may grow to while its pod runs, MiB; what is below the guest's
    /// size, as 0, is no room to grow.
    pub(crate) max_memory_mib: u64,
    /// vCPUs that it may grow to.
    pub(crate) max_vcpus: u8,
    /// How long a guest may take until its agent serves, seconds.
    pub(crate) boot_timeout_secs: u32,
    /// Annotations by which a pod may size itself.
    pub(crate) pod_annotations: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            monitor: None,
            kernel: None,
            initramfs: None,
            default_memory_mib: 512,
            default_vcpus: 1,
            overhead_memory_mib: 128,
            max_memory_mib: 0,
            max_vcpus: 0,
            boot_timeout_secs: 30,
            pod_annotations: annotations::SIZING.map(str::to_owned).to_vec(),
        }
    }
}

impl Config {
    /// Reads the file at `path`; without one, [`PATH`] if it exists.
    pub(crate) fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let file = path.unwrap_or(Path::new(PATH));
        match read(file) {
            Ok(text) => Self::parse(&text, &file.display().to_string()),
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.is_none() => {
                Ok(Self::default())
            }
            Err(source) => Err(ConfigError::Read {
                path: file.to_owned(),
                source,
            }),
        }
    }

    /// Reads `text`, which `place` names.
    pub(crate) fn parse(text: &str, place: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| ConfigError::Parse {
            place: match error.span() {
                Some(span) => format!("{place}, line {}", line_of(text, span.start)),
                None => place.to_owned(),
            },
            message: error.message().replace('\n', ", "),
        })?;
        config.check().map_err(|(key, reason)| ConfigError::Value {
            place: place.to_owned(),
            key,
            reason,
        })?;
        Ok(config)
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&self.default_memory_mib) {
            let reason = format!("must be {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB}");
            return Err(("default_memory_mib", reason));
        }
        if !(1..=MAX_VCPUS).contains(&self.default_vcpus) {
            return Err(("default_vcpus", format!("must be 1 to {MAX_VCPUS}")));
        }
        for (key, mib) in [
            ("overhead_memory_mib", self.overhead_memory_mib),
            ("max_memory_mib", self.max_memory_mib),
        ] {
            if mib > MAX_MEMORY_MIB {
                return Err((key, format!("must be at most {MAX_MEMORY_MIB}")));
            }
        }
        if self.max_vcpus > MAX_VCPUS {
            return Err(("max_vcpus", format!("must be at most {MAX_VCPUS}")));
        }
        if self.boot_timeout_secs == 0 {
            return Err(("boot_timeout_secs", "must be at least 1".to_owned()));
        }
        for name in &self.pod_annotations {
            if !annotations::SIZING.contains(&name.as_str()) {
                let known = annotations::SIZING.join(", ");
                let reason = format!("{name:?}: {known} are known");
                return Err(("pod_annotations", reason));
            }
        }
        Ok(())
    }

    /// Whether a pod may size itself by the annotation `name`.
    pub(crate) fn allows(&self, name: &str) -> bool {
        self.pod_annotations.iter().any(|allowed| allowed == name)
    }
}

fn read(path: &Path) -> io::Result<String> {
    let size = fs::metadata(path)?.len();
    if size > MAX_FILE {
        let message = format!("larger than {MAX_FILE} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    fs::read_to_string(path)
}

fn line_of(text: &str, offset: usize) -> usize {
    let before = text.get(..offset).unwrap_or(text);
    before.matches('\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_default() {
        assert_eq!(Config::parse("", "x").unwrap(), Config::default());
        assert_eq!(
            Config::load(Some(Path::new("/dev/null"))).unwrap(),
            Config::default()
        );
    }

    #[test]
    fn the_file_that_is_installed_shows_each_key_with_its_default() {
        let installed = include_str!("../../deploy/nacre.toml");
        assert_eq!(Config::parse(installed, "x").unwrap(), Config::default());
        // What is commented out is `#key = default`; prose begins with `# `.
        let shown = installed.replace("\n#", "\n").replace("\n ", "\n# ");
        let shown = Config::parse(&shown, "x").unwrap();
        let parts_found = Config {
            monitor: None,
            kernel: None,
            initramfs: None,
            ..shown.clone()
        };
        assert_eq!(parts_found, Config::default());
        assert!(shown.monitor.is_some() && shown.kernel.is_some() && shown.initramfs.is_some());
    }

    #[test]
    fn the_manual_tells_of_every_key() {
        let manual = include_str!("../../deploy/man/nacre.toml.5");
        let table = include_str!("../../docs/containerd.md");
        let parts = Config {
            monitor: Some("x".into()),
            kernel: Some("x".into()),
            initramfs: Some("x".into()),
            ..Config::default()
        };
        let keys = serde_json::to_value(parts).unwrap();
        for key in keys.as_object().unwrap().keys() {
            assert!(manual.contains(key.as_str()), "{key}");
            assert!(table.contains(&format!("`{key}`")), "{key}");
        }
    }

    #[test]
    fn keys_say_what_they_change() {
        let text = "kernel = \"/k\"\ndefault_vcpus = 3\npod_annotations = []\n";
        let config = Config::parse(text, "x").unwrap();
        assert_eq!(config.kernel, Some("/k".into()));
        assert_eq!(config.default_vcpus, 3);
        assert!(!config.allows(annotations::MEMORY));
        assert!(Config::default().allows(annotations::MEMORY));
    }

    #[test]
    fn errors_name_the_file_the_line_and_the_key() {
        let error = |text| Config::parse(text, "/etc/x").unwrap_err().to_string();
        let unknown = error("default_vcpus = 1\ndefault_memory = 3\n");
        assert!(unknown.starts_with("/etc/x, line 2: unknown field `default_memory`"));
        assert!(!unknown.contains('\n'), "{unknown}");
        assert!(error("default_vcpus = \"many\"").starts_with("/etc/x, line 1: invalid type"));
        assert_eq!(
            error("default_vcpus = 0"),
            format!("/etc/x: default_vcpus: must be 1 to {MAX_VCPUS}")
        );
        assert!(error("default_memory_mib = 1").contains("default_memory_mib: must be "));
        assert!(error("max_vcpus = 33").contains("max_vcpus: must be at most 32"));
        assert!(error("max_memory_mib = 9999999").contains("max_memory_mib: must be at most "));
        assert!(error("boot_timeout_secs = 0").contains("boot_timeout_secs: must be at least 1"));
        assert!(error("pod_annotations = [\"x\"]").contains("pod_annotations: \"x\": "));
    }

    #[test]
    fn only_the_default_file_may_be_missing() {
        let error = Config::load(Some(Path::new("/nowhere/x.toml"))).unwrap_err();
        assert!(error.to_string().starts_with("/nowhere/x.toml: "));
    }
}
