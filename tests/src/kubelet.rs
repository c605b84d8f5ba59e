//! Volumes as the kubelet makes them and renews them.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

/// The link to the directory with the content.
const DATA: &str = "..data";

/// A volume below a kubelet's root directory, which goes with it.
#[derive(Debug)]
pub struct Volume {
    _root: TempDir,
    path: PathBuf,
}

impl Volume {
    /// An empty one of a kind such as `configmap`.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new(kind: &str) -> Self {
        let root = tempfile::Builder::new().prefix("nacre-test-").tempdir();
        let root = root.expect("a directory for the kubelet");
        let path = format!("pods/uid/volumes/kubernetes.io~{kind}/name");
        let path = root.path().join(path);
        fs::create_dir_all(&path).unwrap();
        Self { _root: root, path }
    }

    /// As [`Volume::new`], on a file system of its own, as Secrets are.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn on_tmpfs(kind: &str) -> Self {
        let volume = Self::new(kind);
        let (flags, options) = (MountFlags::empty(), c"size=1m");
        mount("tmpfs", volume.path(), "tmpfs", flags, options).expect("a tmpfs");
        volume
    }

    /// Unmounts its file system, as the kubelet does when the pod is gone.
    ///
    /// # Panics
    /// When somebody still has it.
    pub fn unmount(&self) {
        unmount(&self.path, UnmountFlags::empty()).expect("nobody has the volume");
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes files in place of all that are there, by the steps of the kubelet's atomic
    /// writer. `generation` stands for the time in the name of the directory; `prepare` may
    /// change owners and modes before the files are shown.
    ///
    /// # Panics
    /// When that fails.
    pub fn write(&self, generation: &str, files: &[(&str, &str)], prepare: impl FnOnce(&Path)) {
        let before = fs::read_link(self.path.join(DATA)).ok();
        let content = self.path.join(generation);
        fs::create_dir(&content).unwrap();
        for (name, text) in files {
            fs::write(content.join(name), text).unwrap();
        }
        prepare(&content);
        let new = self.path.join("..data_tmp");
        symlink(generation, &new).unwrap();
        fs::rename(new, self.path.join(DATA)).unwrap();
        for (name, _) in files {
            match symlink(Path::new(DATA).join(name), self.path.join(name)) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made.unwrap(),
            }
        }
        for entry in fs::read_dir(&self.path).unwrap() {
            let name = entry.unwrap().file_name();
            let name = name.to_str().unwrap();
            if !name.starts_with("..") && !files.iter().any(|(wanted, _)| *wanted == name) {
                fs::remove_file(self.path.join(name)).unwrap();
            }
        }
        if let Some(before) = before {
            fs::remove_dir_all(self.path.join(before)).unwrap();
        }
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Most have no file system of their own.
        let _ = unmount(&self.path, UnmountFlags::DETACH);
    }
}
