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
        Self { dir }.packed()
    }

    /// Nacre's agent, and beside it a script that works against it. The script sees the guest's
    /// `/proc` as `/p`, and the agent's files below `/p/1/root`.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn with_saboteur(script: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("nacre-test-").tempdir();
        let dir = dir.expect("a directory for the archive");
        let root = dir.path().join("root");
        for name in ["bin", "dev", "p"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        // A shell gives it to what runs in the background.
        fs::write(root.join("dev/null"), "").unwrap();
        sh(&format!(
            "cd {} && busybox cpio -i </nacre/guest/initramfs.cpio 2>/dev/null && mv init agent",
            root.display()
        ));
        let init = format!(
            "#!/bin/busybox sh\n/bin/busybox mount -t proc p /p\n{{ {script}\n}} &\nexec /agent\n"
        );
        fs::write(root.join("init"), init).unwrap();
        Self { dir }.packed()
    }

    fn packed(self) -> Self {
        sh(&format!(
            "cd {}/root && chmod -R 755 . && find . | busybox cpio -o -H newc >../archive 2>/dev/null",
            self.dir.path().display()
        ));
        self
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("archive")
    }
}
