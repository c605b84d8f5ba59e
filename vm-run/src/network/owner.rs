//! Who a network belongs to: a file for each pod on one, which its `vm-run` keeps locked. The kernel lets go of the lock when that process ends, however it does,
//! so that another one can tell what is left over from what is in use.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

/// What all names begin with, so that nobody else's namespace is taken for ours.
const PREFIX: &str = "nacre-";

/// Random bytes in a name.
const RANDOM: usize = 6;

/// The name of a pod on its network: container id for the plugins, and name of its
/// network namespace. No two pods have the same, now or later.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Id(String);

impl Id {
    fn random() -> io::Result<Self> {
        let mut bytes = [0; RANDOM];
        let len = getrandom(&mut bytes[..], GetRandomFlags::empty())?;
        if len != RANDOM {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self(format!("{PREFIX}{hex}")))
    }

    /// None for what is no such name.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let hex = name.strip_prefix(PREFIX)?;
        let is_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        (hex.len() == 2 * RANDOM && hex.chars().all(is_hex)).then(|| Self(name.to_owned()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The directory of these files.
#[derive(Debug)]
pub(super) struct Owners {
    dir: PathBuf,
}

/// A locked file. Dropping it unlocks it: what belongs to it is then left over.
#[derive(Debug)]
pub(super) struct Owner {
    id: Id,
    path: PathBuf,
    _lock: File,
}

impl Owner {
    pub(super) fn id(&self) -> &Id {
        &self.id
    }

    /// Writes down what belongs to it, for whoever takes it over.
    pub(super) fn write(&self, note: &OsStr) -> io::Result<()> {
        fs::write(&self.path, note.as_bytes())
    }

    /// What was written.
    pub(super) fn read(&self) -> io::Result<OsString> {
        fs::read(&self.path).map(OsString::from_vec)
    }

    /// Removes the file. Call it when nothing is left that belongs to it.
    pub(super) fn forget(self) -> io::Result<()> {
        // Still locked, so that nobody takes it over meanwhile.
        fs::remove_file(&self.path)
    }
}

impl Owners {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes a new name and owns it.
    pub(super) fn create(&self) -> io::Result<Owner> {
        loop {
            // Another process may collect a file that is not locked yet.
            if let Some(owner) = self.lock(Id::random()?, true)? {
                return Ok(owner);
            }
        }
    }

    /// Owns what a dead process has left; none when its owner lives, or has just removed
    /// it.
    pub(super) fn take_over(&self, id: &Id) -> io::Result<Option<Owner>> {
        self.lock(id.clone(), false)
    }

    fn lock(&self, id: Id, new: bool) -> io::Result<Option<Owner>> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)?;
        let path = self.dir.join(id.as_str());
        let file = File::options()
            .write(true)
            .create(true)
            .create_new(new)
            .truncate(false)
            .mode(0o600)
            .open(&path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
        // Whoever held the lock before may have removed the file.
        let is_linked = file.metadata()?.nlink() > 0;
        Ok(is_linked.then_some(Owner {
            id,
            path,
            _lock: file,
        }))
    }

    /// All names, whether their owners live or not.
    pub(super) fn ids(&self) -> io::Result<Vec<Id>> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut ids = Vec::new();
        for entry in entries {
            ids.extend(id_of(&entry?.file_name()));
        }
        Ok(ids)
    }
}

fn id_of(file_name: &OsStr) -> Option<Id> {
    Id::parse(file_name.to_str()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owners() -> (tempfile::TempDir, Owners) {
        let dir = tempfile::tempdir().unwrap();
        let owners = Owners::new(dir.path().join("owners"));
        (dir, owners)
    }

    #[test]
    fn what_somebody_owns_nobody_takes_over() {
        let (_dir, owners) = owners();
        assert_eq!(owners.ids().unwrap(), []);
        let owner = owners.create().unwrap();
        let id = owner.id().clone();
        assert_eq!(owners.ids().unwrap(), std::slice::from_ref(&id));
        assert!(owners.take_over(&id).unwrap().is_none());
        owner.write(OsStr::new("/note")).unwrap();
        // As when its process has ended.
        drop(owner);
        assert_eq!(owners.ids().unwrap(), std::slice::from_ref(&id));
        let taken = owners.take_over(&id).unwrap().unwrap();
        assert_eq!(taken.read().unwrap(), "/note");
        assert!(owners.take_over(&id).unwrap().is_none());
        taken.forget().unwrap();
        assert_eq!(owners.ids().unwrap(), []);
    }

    #[test]
    fn a_file_that_was_removed_meanwhile_is_nobodys() {
        let (_dir, owners) = owners();
        let owner = owners.create().unwrap();
        let path = owners.dir().join(owner.id().as_str());
        let seen = File::open(&path).unwrap();
        owner.forget().unwrap();
        flock(&seen, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert_eq!(seen.metadata().unwrap().nlink(), 0);
    }

    #[test]
    fn other_files_are_no_names() {
        for name in ["nacre-", "nacre-0123456789zz", "nacre-0123", "..", "lock"] {
            assert_eq!(Id::parse(name), None, "{name}");
        }
        let id = Id::random().unwrap();
        assert_eq!(Id::parse(id.as_str()), Some(id));
    }
}
