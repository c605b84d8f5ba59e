//! How large the guest of a bundle is, and which network it gets.

use std::path::PathBuf;

use nacre_pod::boot::{MAX_MEMORY_MIB, MAX_VCPUS};
use nacre_pod::spec::Bundle;
use thiserror::Error;

use crate::cli::{BundleArgs, Net};

/// Memory of a guest whose container has no limit, MiB. Only what is touched
/// costs the host anything.
const DEFAULT_MEMORY: u64 = 512;

/// Memory that a guest needs beside what its container may use, MiB: kernel,
/// agent, page tables, caches.
const GUEST_MEMORY: u64 = 128;

/// Why the command line and the bundle do not go together.
#[derive(Debug, Error, Eq, PartialEq)]
pub(crate) enum ShapeError {
    #[error(
        "linux.namespaces: the bundle names the network namespace {}, --net={} another",
        bundle.display(), net.display()
    )]
    Networks { bundle: PathBuf, net: PathBuf },
    #[error(
        "linux.namespaces: the bundle names the network namespace {}, --net=none forbids it",
        .0.display()
    )]
    NoNetwork(PathBuf),
}

/// The guest of a bundle.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Shape {
    pub(crate) vcpus: u8,
    pub(crate) memory_mib: u64,
    /// The network namespace to take the place of.
    pub(crate) network: Option<PathBuf>,
}

impl Shape {
    /// What the command line says, else what follows from the bundle.
    pub(crate) fn choose(args: &BundleArgs, bundle: &Bundle) -> Result<Self, ShapeError> {
        let memory = args.memory.map(|size| size.0);
        Ok(Self {
            vcpus: args.cpus.unwrap_or_else(|| vcpus_for(bundle.cpu_limit())),
            memory_mib: memory.unwrap_or_else(|| memory_for(bundle.memory_limit())),
            network: network(args.net.clone(), bundle.network_namespace().map(Into::into))?,
        })
    }
}

fn vcpus_for(limit: Option<u64>) -> u8 {
    let limit = limit.unwrap_or(1).clamp(1, u64::from(MAX_VCPUS));
    u8::try_from(limit).unwrap_or(MAX_VCPUS)
}

fn memory_for(limit: Option<u64>) -> u64 {
    let Some(limit) = limit else {
        return DEFAULT_MEMORY;
    };
    let needed = limit.div_ceil(1 << 20).saturating_add(GUEST_MEMORY);
    needed.min(MAX_MEMORY_MIB)
}

fn network(net: Option<Net>, bundle: Option<PathBuf>) -> Result<Option<PathBuf>, ShapeError> {
    match (net, bundle) {
        (None, bundle) => Ok(bundle),
        (Some(Net::None), None) => Ok(None),
        (Some(Net::None), Some(bundle)) => Err(ShapeError::NoNetwork(bundle)),
        (Some(Net::Namespace(net)), None) => Ok(Some(net)),
        (Some(Net::Namespace(net)), Some(bundle)) => {
            if same_file(&net, &bundle) {
                Ok(Some(net))
            } else {
                Err(ShapeError::Networks { bundle, net })
            }
        }
    }
}

/// Whether both paths name the same namespace; one that cannot be looked at is
/// no other's.
fn same_file(a: &PathBuf, b: &PathBuf) -> bool {
    let identity = |path| {
        let stat = rustix::fs::stat(path).ok()?;
        Some((stat.st_dev, stat.st_ino))
    };
    a == b || identity(a).is_some_and(|a| Some(a) == identity(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_larger_than_its_container() {
        assert_eq!(memory_for(None), 512);
        assert_eq!(memory_for(Some(64 << 20)), 64 + 128);
        assert_eq!(memory_for(Some(1)), 129);
        assert_eq!(memory_for(Some(u64::MAX)), MAX_MEMORY_MIB);
    }

    #[test]
    fn a_quota_is_that_many_cpus() {
        assert_eq!(vcpus_for(None), 1);
        assert_eq!(vcpus_for(Some(3)), 3);
        assert_eq!(vcpus_for(Some(u64::MAX)), MAX_VCPUS);
    }

    #[test]
    fn the_network_of_bundle_and_command_line_must_agree() {
        let namespace = |path: &str| Some(Net::Namespace(path.into()));
        let path = |path: &str| Some(PathBuf::from(path));
        assert_eq!(network(None, None), Ok(None));
        assert_eq!(network(None, path("/a")), Ok(path("/a")));
        assert_eq!(network(namespace("/a"), None), Ok(path("/a")));
        let proc = "/proc/self/ns/net";
        network(namespace("/proc/thread-self/ns/net"), path(proc)).unwrap();
        assert!(matches!(
            network(namespace("/dev/null"), path(proc)),
            Err(ShapeError::Networks { .. })
        ));
        assert!(matches!(
            network(Some(Net::None), path("/a")),
            Err(ShapeError::NoNetwork(_))
        ));
    }
}
