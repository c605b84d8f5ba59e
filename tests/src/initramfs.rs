//! Initramfs archives that are not Nacre's.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use crate::sh;

/// An archive that goes with its directory.
#[derive(Debug)]
pub struct Initramfs {
    dir: TempDir,
}

impl Initramfs {
    /// BusyBox, a script as `/init` if there is one, and some MiB of ballast.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new(init: Option<&str>, ballast_mib: usize) -> Self {
        let dir = tempfile::Builder::new().prefix("nacre-test-").tempdir();
        let dir = dir.expect("a directory for the archive");
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("bin")).unwrap();
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        fs::write(root.join("ballast"), vec![1; ballast_mib << 20]).unwrap();
        if let Some(script) = init {
            fs::write(root.join("init"), format!("#!/bin/busybox sh\n{script}\n")).unwrap();
        }
        sh(&format!(
            "cd {} && chmod -R 755 . && find . | busybox cpio -o -H newc >../archive 2>/dev/null",
            root.display()
        ));
        Self { dir }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("archive")
    }
}
