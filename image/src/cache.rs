//! Layers that have been unpacked, for all runs.
//!
//! ```text
//! layers/CHAIN      a layer, unpacked above those that its chain ID names; never changed
//! locks/CHAIN       held by the run that unpacks it
//! blobs/HEX         manifests and configurations of registries
//! refs/HEX          which manifest a name in a registry led to, last
//! runs/RUN          what a run has for itself, locked by it; see `run_dir`
//! lock              held while one of runs/ is made, or looked for
//! ```
//!
//! What is here under its final name is whole: it was made in a run's directory, checked,
//! written to the disk, and renamed. What a killed run has left, the next one removes.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, syncfs};
use rustix::io::Errno;

use crate::digest::Digest;
use crate::error::ImageError;
use crate::remove::remove_tree;
use crate::run_dir::RunDir;
use crate::source::{MAX_DOCUMENT, read_document};

/// Where root's cache is, unless told otherwise.
pub const DEFAULT_DIR: &str = "/var/lib/nacre/images";

/// The folder of the cache.
#[derive(Debug)]
pub struct Cache {
    path: PathBuf,
}

impl Cache {
    /// Opens the folder, made if missing. Nobody else may reach what is in it: images have
    /// set-user-ID programs and device nodes.
    ///
    /// # Errors
    /// When it is not ours, or open to others.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let failed = || ImageError::system(path.display());
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed())?;
        }
        make_private_dir(path).map_err(failed())?;
        let metadata = fs::symlink_metadata(path).map_err(failed())?;
        let is_ours = metadata.uid() == rustix::process::geteuid().as_raw();
        if !metadata.is_dir() || !is_ours || metadata.mode() & 0o077 != 0 {
            return Err(ImageError::invalid(
                path.display(),
                "must be a directory of your own that nobody else can enter (mode 0700)",
            ));
        }
        let path = path.canonicalize().map_err(failed())?;
        for name in ["layers", "locks", "blobs", "refs", "runs"] {
            make_private_dir(&path.join(name)).map_err(failed())?;
        }
        Ok(Self { path })
    }

    /// Makes a directory for one run, after removing those of runs that were killed.
    ///
    /// # Errors
    /// The system's answer.
    pub fn new_run(&self) -> Result<RunDir, ImageError> {
        let runs = self.path.join("runs");
        let failed = || ImageError::system(runs.display());
        let lock = self.lock("lock")?;
        let dead = dead_runs(&runs).map_err(failed())?;
        let run = RunDir::make(&runs).map_err(failed())?;
        drop(lock);
        for (path, lock) in dead {
            if let Err(error) = remove_tree(&path) {
                log::warn!("{}: cannot be removed: {error}", path.display());
            }
            drop(lock);
        }
        Ok(run)
    }

    /// Waits for the lock of this name, which goes with the file.
    fn lock(&self, name: &str) -> Result<File, ImageError> {
        let path = self.path.join(name);
        let open = || -> io::Result<File> {
            let file = File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)?;
            loop {
                match flock(&file, FlockOperation::LockExclusive) {
                    Err(Errno::INTR) => {}
                    answer => break answer?,
                }
            }
            Ok(file)
        };
        open().map_err(ImageError::system(path.display()))
    }

    /// Waits until nobody else unpacks this layer.
    pub(crate) fn lock_layer(&self, chain: &Digest) -> Result<File, ImageError> {
        self.lock(&format!("locks/{}", chain.hex()))
    }

    /// Where the layer is, or will be.
    pub(crate) fn layer(&self, chain: &Digest) -> PathBuf {
        self.path.join("layers").join(chain.hex())
    }

    /// Whether the layer is here.
    pub(crate) fn has_layer(&self, chain: &Digest) -> bool {
        self.layer(chain).is_dir()
    }

    /// Takes a directory over as a layer. All of it is on the disk before it has its name.
    pub(crate) fn keep_layer(&self, chain: &Digest, dir: &Path) -> Result<(), ImageError> {
        let to = self.layer(chain);
        let keep = || -> io::Result<()> {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            syncfs(rustix::fs::open(dir, flags, Mode::empty())?)?;
            fs::rename(dir, &to)
        };
        keep().map_err(ImageError::system(to.display()))
    }

    /// A manifest or configuration that was kept.
    pub(crate) fn blob(&self, digest: &Digest) -> Option<Vec<u8>> {
        let path = self.path.join("blobs").join(digest.hex());
        let file = File::open(path).ok()?;
        let bytes = read_document("blob", file).ok()?;
        (Digest::of(&bytes) == *digest).then_some(bytes)
    }

    pub(crate) fn keep_blob(
        &self,
        run: &RunDir,
        digest: &Digest,
        bytes: &[u8],
    ) -> Result<(), ImageError> {
        debug_assert!(bytes.len() as u64 <= MAX_DOCUMENT);
        self.keep_file(run, &Path::new("blobs").join(digest.hex()), bytes)
    }

    /// What `reference` led to when it was last pulled.
    pub(crate) fn reference(&self, reference: &str) -> Option<Digest> {
        let path = self.path.join(Self::reference_file(reference));
        fs::read_to_string(path).ok()?.trim().parse().ok()
    }

    pub(crate) fn keep_reference(
        &self,
        run: &RunDir,
        reference: &str,
        digest: &Digest,
    ) -> Result<(), ImageError> {
        let file = Self::reference_file(reference);
        self.keep_file(run, &file, format!("{digest}\n").as_bytes())
    }

    fn reference_file(reference: &str) -> PathBuf {
        Path::new("refs").join(Digest::of(reference.as_bytes()).hex())
    }

    fn keep_file(&self, run: &RunDir, name: &Path, bytes: &[u8]) -> Result<(), ImageError> {
        let (from, to) = (run.path("file"), self.path.join(name));
        let keep = || -> io::Result<()> {
            let mut file = File::create(&from)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&from, &to)
        };
        keep().map_err(ImageError::system(to.display()))
    }
}

/// Runs that have ended without cleaning up, each with its lock.
fn dead_runs(runs: &Path) -> io::Result<Vec<(PathBuf, rustix::fd::OwnedFd)>> {
    let mut dead = Vec::new();
    for entry in fs::read_dir(runs)? {
        let path = entry?.path();
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = match rustix::fs::open(&path, flags, Mode::empty()) {
            // Its run has just ended.
            Err(Errno::NOENT) => continue,
            dir => dir?,
        };
        if flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok() {
            dead.push((path, dir));
        }
    }
    Ok(dead)
}

fn make_private_dir(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        answer => answer,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_cache_that_others_can_enter_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache");
        Cache::open(&path).unwrap();
        Cache::open(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o750)).unwrap();
        let error = Cache::open(&path).unwrap_err().to_string();
        assert!(error.contains("0700"), "{error}");
        std::os::unix::fs::symlink(&path, dir.path().join("link")).unwrap();
        Cache::open(&dir.path().join("link")).unwrap_err();
    }

    #[test]
    fn what_a_killed_run_has_left_goes_and_what_a_living_one_has_stays() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(&dir.path().join("cache")).unwrap();
        let living = cache.new_run().unwrap();
        let dead = dir.path().join("cache/runs/1.0");
        fs::create_dir_all(dead.join("layer/deep")).unwrap();
        fs::write(dead.join("layer/file"), "").unwrap();
        let next = cache.new_run().unwrap();
        assert!(!dead.exists());
        assert!(living.path(".").exists() && next.path(".").exists());
    }

    #[test]
    fn a_blob_that_was_changed_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(&dir.path().join("cache")).unwrap();
        let run = cache.new_run().unwrap();
        let digest = Digest::of(b"blob");
        cache.keep_blob(&run, &digest, b"blob").unwrap();
        assert_eq!(cache.blob(&digest).unwrap(), b"blob");
        cache.keep_blob(&run, &digest, b"blub").unwrap();
        assert!(cache.blob(&digest).is_none());
    }
}
