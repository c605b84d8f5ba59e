//! The socket that the shim of a pod serves on.
//!
//! Its name follows from the pod, so that a further container's `start` finds
//! the shim that is there already.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

/// Where containerd's shims have their sockets.
const DIR: &str = "/run/containerd/s";

const SCHEME: &str = "unix://";

/// What became of a pod's socket.
#[derive(Debug)]
pub(crate) enum Claim {
    /// A shim answers there.
    Served,
    /// It is ours to serve.
    Bound(UnixListener),
}

/// The address of the shim of the pod `pod`.
pub(crate) fn address(dir: Option<&str>, containerd: &str, namespace: &str, pod: &str) -> String {
    let mut hash = Sha256::new();
    // No part can contain the separator, or it is the first.
    for part in ["nacre", pod, namespace, containerd] {
        hash.update(part);
        hash.update("\0");
    }
    let name: String = hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{SCHEME}{}/{name}", dir.unwrap_or(DIR))
}

/// The path in an address.
pub(crate) fn path(address: &str) -> PathBuf {
    address.strip_prefix(SCHEME).unwrap_or(address).into()
}

/// What tells the pod that has this address from others, in the names of files.
pub(crate) fn key(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

/// Binds the socket at `path`, unless a shim serves there. One that nobody
/// serves any more is replaced.
///
/// # Errors
/// The system's; nothing is then left.
pub(crate) fn claim(path: &Path) -> io::Result<Claim> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o711).create(dir)?;
    // Between finding a dead socket and replacing it, nobody else may do the same.
    let lock = File::open(dir)?;
    flock(&lock, FlockOperation::LockExclusive)?;
    match bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if is_served(path) {
                return Ok(Claim::Served);
            }
            fs::remove_file(path)?;
            bind(path).map(Claim::Bound)
        }
        bound => bound.map(Claim::Bound),
    }
}

/// Whether a shim answers at `path`.
pub(crate) fn is_served(path: &Path) -> bool {
    UnixStream::connect(path).is_ok()
}

/// Removes the socket at `path`, if nobody serves it any more.
pub(crate) fn remove_dead(path: &Path) {
    let dir = path.parent().unwrap_or(Path::new("/"));
    // Without its directory, there is no socket.
    let Ok(lock) = File::open(dir) else { return };
    if flock(&lock, FlockOperation::LockExclusive).is_ok() && !is_served(path) {
        remove(path);
    }
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(path)?;
    if let Err(error) = fs::set_permissions(path, Permissions::from_mode(0o600)) {
        remove(path);
        return Err(error);
    }
    Ok(listener)
}

/// Removes a socket, if it is there.
pub(crate) fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        log::warn!("{}: {error}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pod_has_an_address_of_its_own() {
        let one = address(None, "/run/containerd/containerd.sock", "default", "a");
        assert!(one.starts_with("unix:///run/containerd/s/"), "{one}");
        // The kernel's limit is 107 bytes.
        assert_eq!(
            path(&one).as_os_str().len(),
            "/run/containerd/s/".len() + 64
        );
        for (containerd, namespace, pod) in [
            ("/run/containerd/containerd.sock", "default", "b"),
            ("/run/containerd/containerd.sock", "k8s.io", "a"),
            ("/run/other.sock", "default", "a"),
        ] {
            assert_ne!(address(None, containerd, namespace, pod), one);
        }
        let elsewhere = address(Some("/run/x"), "", "default", "a");
        assert!(path(&elsewhere).starts_with("/run/x"));
    }

    #[test]
    fn a_shim_that_answers_is_found_and_a_dead_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/s");
        let Claim::Bound(listener) = claim(&path).unwrap() else {
            panic!("served before anybody was there");
        };
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(matches!(claim(&path).unwrap(), Claim::Served));
        drop(listener);
        assert!(matches!(claim(&path).unwrap(), Claim::Bound(_)));
    }

    #[test]
    fn only_a_socket_that_nobody_serves_is_dead() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let claimed = claim(&path).unwrap();
        remove_dead(&path);
        assert!(path.exists());
        drop(claimed);
        remove_dead(&path);
        assert!(!path.exists());
        remove_dead(&dir.path().join("missing/s"));
    }

    #[test]
    fn a_socket_is_removed_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        claim(&path).unwrap();
        remove(&path);
        assert!(!path.exists());
        remove(&path);
    }
}
