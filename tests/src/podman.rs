//! podman with a storage of its own, which runs its containers by `vm-run`.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use tempfile::TempDir;

use crate::{Ended, Running, sh};

/// The image that there is: BusyBox, and a user `somebody` with the number 1000.
pub const IMAGE: &str = "nacre.test/busybox:1";

/// Dropping it removes all of its containers.
#[derive(Debug)]
pub struct Podman {
    dir: TempDir,
    runtime: String,
}

impl Podman {
    /// One with [`IMAGE`].
    ///
    /// # Panics
    /// When there is no podman, or it does not work.
    #[must_use]
    pub fn new() -> Self {
        // Not on /tmp, which may be a file system that overlayfs cannot lie on.
        let dir = tempfile::Builder::new()
            .prefix("nacre-test-")
            .tempdir_in("/var/tmp");
        let podman = Self {
            dir: dir.expect("a directory for podman"),
            runtime: sh("command -v vm-run").trim().to_owned(),
        };
        podman.import();
        podman
    }

    fn import(&self) {
        let root = self.dir.path().join("image");
        for name in ["bin", "dev", "etc", "proc", "sys", "tmp", "filled"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).expect("BusyBox of the test host");
        for applet in sh("busybox --list")
            .lines()
            .filter(|name| *name != "busybox")
        {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        let users = "root:x:0:0:root:/root:/bin/sh\nsomebody:x:1000:1000::/:/bin/sh\n";
        fs::write(root.join("etc/passwd"), users).unwrap();
        fs::write(root.join("etc/group"), "root:x:0:\nsomebody:x:1000:\n").unwrap();
        fs::write(root.join("filled/file"), "of the image\n").unwrap();
        let tar = self.dir.path().join("image.tar");
        sh(&format!(
            "tar -C {} -cf {} .",
            root.display(),
            tar.display()
        ));
        let tar = tar.to_str().unwrap().to_owned();
        let _ = self
            .call(&["import", "--quiet", &tar, IMAGE])
            .expect_code(0);
    }

    /// The words of a command line.
    #[must_use]
    pub fn words<'a>(&'a self, args: &[&'a str]) -> Vec<String> {
        let below = |name| self.dir.path().join(name).to_str().unwrap().to_owned();
        let mut words = ["podman", "--runtime", &self.runtime, "--root"]
            .map(str::to_owned)
            .to_vec();
        words.extend([below("root"), "--runroot".to_owned(), below("run")]);
        words.extend(args.iter().map(|arg| (*arg).to_owned()));
        words
    }

    /// Carries out a command without input until it ends.
    #[must_use]
    pub fn call(&self, args: &[&str]) -> Ended {
        let words = self.words(args);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        Running::to_the_end(command)
    }

    /// `podman run --rm` of [`IMAGE`] with a shell script.
    #[must_use]
    pub fn run(&self, options: &[&str], script: &str) -> Ended {
        let words = [&["run", "--rm"], options, &[IMAGE, "sh", "-c", script]].concat();
        self.call(&words)
    }
}

impl Default for Podman {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        for args in [
            &["rm", "--all", "--force", "--time", "0"][..],
            &["volume", "rm", "--all", "--force"],
            &["system", "reset", "--force"],
        ] {
            let _ = self.call(args);
        }
        // podman leaves the cgroups above its containers'.
        let _ = Command::new("sh")
            .args([
                "-c",
                "find /sys/fs/cgroup/libpod_parent -depth -type d -exec rmdir {} +",
            ])
            .output();
    }
}
