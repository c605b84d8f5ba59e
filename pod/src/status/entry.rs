//! A pod's entry: a directory with its identity and its socket.
//!
//! The identity is a file, so that also a pod that does not answer can be named.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// The directory of all entries. It is not below the one on which front doors mount what only
/// they see.
pub const PODS: &str = "/run/nacre-pods";

const IDENTITY: &str = "pod.json";
const SOCKET: &str = "socket";

/// Who a pod is.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Identity {
    /// Its identifier, which is also that of CRI's sandbox.
    pub id: String,
    /// containerd's namespace.
    pub containerd_namespace: String,
    /// The shim's process.
    pub shim_pid: u32,
    /// Its name in Kubernetes, if it was told.
    pub name: Option<String>,
    /// Its namespace in Kubernetes, if it was told.
    pub namespace: Option<String>,
    /// Its UID in Kubernetes, if it was told.
    pub uid: Option<String>,
}

impl Identity {
    /// Whether a person means this pod by `word`: its identifier, the beginning of it, or
    /// `NAMESPACE/NAME`.
    #[must_use]
    pub fn is_meant_by(&self, word: &str) -> bool {
        let named = || match (word.split_once('/'), &self.namespace, &self.name) {
            (Some((namespace, name)), Some(ours), Some(own)) => ours == namespace && own == name,
            _ => false,
        };
        !word.is_empty() && (self.id.starts_with(word) || named())
    }
}

/// The entry of a pod that this process serves.
#[derive(Debug)]
pub struct Entry {
    dir: PathBuf,
    identity: Mutex<Identity>,
}

/// An entry that was found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Known {
    /// Whose it is.
    pub identity: Identity,
    /// Where the pod answers, if it does.
    pub socket: PathBuf,
}

impl Entry {
    /// Makes the entry `key` below [`PODS`], in the place of one that a pod of the same key has
    /// left, and the socket in it.
    ///
    /// # Errors
    /// The system's; nothing is then left.
    pub fn claim(key: &str, identity: Identity) -> io::Result<(Self, UnixListener)> {
        Self::claim_in(Path::new(PODS), key, identity)
    }

    fn claim_in(pods: &Path, key: &str, identity: Identity) -> io::Result<(Self, UnixListener)> {
        let entry = Self {
            dir: pods.join(key),
            identity: Mutex::new(identity),
        };
        let claimed = entry.fill();
        match claimed {
            Ok(listener) => Ok((entry, listener)),
            Err(error) => {
                entry.remove();
                Err(error)
            }
        }
    }

    fn fill(&self) -> io::Result<UnixListener> {
        // What a person may know of a pod is not for everybody.
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)?;
        self.write(&self.identity())?;
        let socket = self.dir.join(SOCKET);
        absent_is_fine(fs::remove_file(&socket))?;
        let listener = UnixListener::bind(&socket)?;
        fs::set_permissions(&socket, Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    /// Whose it is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        let identity = self.identity.lock();
        identity.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Adds to the identity what has become known.
    ///
    /// # Errors
    /// The system's; the file then says what it did before.
    pub fn learn(&self, change: impl FnOnce(&mut Identity)) -> io::Result<()> {
        let mut identity = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        let before = identity.clone();
        change(&mut identity);
        if *identity == before {
            return Ok(());
        }
        self.write(&identity)
    }

    /// Writes the identity in one piece.
    fn write(&self, identity: &Identity) -> io::Result<()> {
        let (new, file) = (self.dir.join("pod.json.new"), self.dir.join(IDENTITY));
        fs::write(&new, serde_json::to_vec(identity)?)?;
        fs::rename(new, file)
    }

    /// Takes the entry away; harmless when it is gone.
    pub fn remove(&self) {
        remove_dir(&self.dir);
    }
}

/// Takes away the entry `key`, which its pod has left.
pub fn remove(key: &str) {
    remove_dir(&Path::new(PODS).join(key));
}

fn remove_dir(dir: &Path) {
    if let Err(error) = absent_is_fine(fs::remove_dir_all(dir)) {
        log::warn!("{}: {error}", dir.display());
    }
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The entries of all pods of this host, in the order of their identifiers.
///
/// # Errors
/// The system's. No directory means no pods.
pub fn entries() -> io::Result<Vec<Known>> {
    entries_in(Path::new(PODS))
}

fn entries_in(pods: &Path) -> io::Result<Vec<Known>> {
    let dir = match fs::read_dir(pods) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        dir => dir?,
    };
    let mut entries = Vec::new();
    for entry in dir {
        let dir = entry?.path();
        // One that comes or goes at this moment has no identity.
        let Ok(text) = fs::read(dir.join(IDENTITY)) else {
            continue;
        };
        match serde_json::from_slice(&text) {
            Ok(identity) => entries.push(Known {
                identity,
                socket: dir.join(SOCKET),
            }),
            Err(error) => log::warn!("{}: {error}", dir.join(IDENTITY).display()),
        }
    }
    entries.sort_by(|one, other| {
        let key = |known: &Known| {
            let identity = &known.identity;
            (identity.id.clone(), identity.containerd_namespace.clone())
        };
        key(one).cmp(&key(other))
    });
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn identity(id: &str) -> Identity {
        Identity {
            id: id.into(),
            containerd_namespace: "k8s.io".into(),
            ..Identity::default()
        }
    }

    #[test]
    fn an_entry_is_found_while_it_is_there_and_is_roots_alone() {
        let dir = tempfile::tempdir().unwrap();
        let pods = dir.path().join("pods");
        assert_eq!(entries_in(&pods).unwrap(), []);
        let (b, _listener) = Entry::claim_in(&pods, "1", identity("b")).unwrap();
        let (a, _) = Entry::claim_in(&pods, "2", identity("a")).unwrap();
        a.learn(|identity| identity.name = Some("web".into()))
            .unwrap();
        let found = entries_in(&pods).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].identity, a.identity());
        assert_eq!(found[0].identity.name.as_deref(), Some("web"));
        UnixStream::connect(&found[1].socket).unwrap();
        for (path, mode) in [(&pods.join("1"), 0o700), (&found[1].socket, 0o600)] {
            let permissions = fs::metadata(path).unwrap().permissions();
            assert_eq!(permissions.mode() & 0o777, mode, "{}", path.display());
        }
        a.remove();
        b.remove();
        b.remove();
        assert_eq!(fs::read_dir(&pods).unwrap().count(), 0);
    }

    #[test]
    fn the_next_pod_takes_the_place_of_one_that_was_killed() {
        let dir = tempfile::tempdir().unwrap();
        let (_, listener) = Entry::claim_in(dir.path(), "1", identity("a")).unwrap();
        drop(listener);
        let known = entries_in(dir.path()).unwrap().remove(0);
        UnixStream::connect(&known.socket).unwrap_err();
        let (_, _listener) = Entry::claim_in(dir.path(), "1", identity("a")).unwrap();
        UnixStream::connect(&known.socket).unwrap();
    }

    #[test]
    fn what_is_no_identity_hides_no_other_pod() {
        let dir = tempfile::tempdir().unwrap();
        let _ = Entry::claim_in(dir.path(), "1", identity("a")).unwrap();
        for (name, text) in [("2", "{"), ("3", "[1]")] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join(IDENTITY), text).unwrap();
        }
        fs::create_dir(dir.path().join("4")).unwrap();
        assert_eq!(entries_in(dir.path()).unwrap().len(), 1);
    }

    #[test]
    fn a_pod_is_meant_by_its_identifier_or_by_its_name() {
        let pod = Identity {
            name: Some("web".into()),
            namespace: Some("default".into()),
            ..identity("abc")
        };
        for word in ["abc", "a", "default/web"] {
            assert!(pod.is_meant_by(word), "{word}");
        }
        for word in ["", "bc", "abcd", "web", "other/web", "default/we"] {
            assert!(!pod.is_meant_by(word), "{word}");
        }
        assert!(!identity("abc").is_meant_by("default/web"));
    }
}
