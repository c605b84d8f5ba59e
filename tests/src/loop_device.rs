//! Block devices of the host, on files.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{major, minor};
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use crate::proc::{named, names};
use crate::sh;

/// A loop device on a file of its own. Both go with it.
#[derive(Debug)]
pub struct LoopDevice {
    file: NamedTempFile,
    node: PathBuf,
    number: u64,
}

impl LoopDevice {
    /// One of so many MiB, full of zeroes.
    ///
    /// # Panics
    /// When there is none to be had.
    #[must_use]
    pub fn new(mib: u64) -> Self {
        let file = NamedTempFile::new().expect("a file for the device");
        file.as_file().set_len(mib << 20).unwrap();
        let path = file.path().display();
        let node = PathBuf::from(sh(&format!("losetup --find --show {path}")).trim());
        let number = fs::metadata(&node).unwrap().rdev();
        Self { file, node, number }
    }

    /// Its node on the host.
    #[must_use]
    pub fn node(&self) -> &Path {
        &self.node
    }

    /// Numbers of the driver and of the device.
    #[must_use]
    pub fn number(&self) -> (u32, u32) {
        (major(self.number), minor(self.number))
    }

    /// An element of `linux.devices` that has it at `path`.
    #[must_use]
    pub fn listed(&self, path: &str) -> Value {
        let (major, minor) = self.number();
        json!({ "path": path, "type": "b", "major": major, "minor": minor, "fileMode": 0o660 })
    }

    /// An element of `linux.resources.devices` that allows it.
    #[must_use]
    pub fn allowed(&self, access: &str) -> Value {
        let (major, minor) = self.number();
        json!({ "allow": true, "type": "b", "major": major, "minor": minor, "access": access })
    }

    /// What the host finds there.
    ///
    /// # Panics
    /// When it cannot be read.
    #[must_use]
    pub fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let node = fs::File::open(&self.node).unwrap();
        node.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    /// Puts something there for a guest to find.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, offset: u64, bytes: &[u8]) {
        let node = fs::File::options().write(true).open(&self.node).unwrap();
        node.write_all_at(bytes, offset).unwrap();
        node.sync_all().unwrap();
    }

    /// How often monitors have it open.
    #[must_use]
    pub fn opened_by_monitors(&self) -> usize {
        self.descriptors_of_monitors().len()
    }

    /// The descriptors by which monitors have it open, in procfs.
    #[must_use]
    pub fn descriptors_of_monitors(&self) -> Vec<PathBuf> {
        let of = |pid: u32| {
            let dir = PathBuf::from(format!("/proc/{pid}/fd"));
            let all = names(&dir).into_iter().map(move |name| dir.join(name));
            all.filter(|path| fs::metadata(path).is_ok_and(|of| of.rdev() == self.number))
        };
        named("nacre-vmm").into_iter().flat_map(of).collect()
    }

    /// Makes an ext4 on it with this file in it.
    pub fn make_ext4(&self, name: &str, content: &str) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(name), content).unwrap();
        sh(&format!(
            "mkfs.ext4 -q -d {} {}",
            dir.path().display(),
            self.node.display()
        ));
    }

    /// What `dumpe2fs` says of its file system.
    #[must_use]
    pub fn about_ext4(&self) -> String {
        sh(&format!("dumpe2fs -h {} 2>/dev/null", self.node.display()))
    }

    /// Mounts it on the host, does something in the directory, and unmounts it.
    pub fn mounted<T>(&self, look: impl FnOnce(&Path) -> T) -> T {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().display();
        sh(&format!("mount {} {place}", self.node.display()));
        let seen = look(dir.path());
        sh(&format!("umount {place}"));
        seen
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = self.file.as_file().sync_all();
        let detached = Command::new("losetup").arg("-d").arg(&self.node).status();
        if !detached.is_ok_and(|status| status.success()) && !std::thread::panicking() {
            panic!("{} cannot be taken away", self.node.display());
        }
    }
}
