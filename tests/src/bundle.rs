//! Bundles of one static program, BusyBox.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

/// What of BusyBox the tests use.
const APPLETS: &[&str] = &[
    "awk",
    "cat",
    "chmod",
    "chown",
    "cmp",
    "cp",
    "cut",
    "date",
    "dd",
    "df",
    "dirname",
    "echo",
    "env",
    "expr",
    "false",
    "find",
    "flock",
    "getfattr",
    "grep",
    "head",
    "hostname",
    "id",
    "ionice",
    "ip",
    "kill",
    "linux32",
    "ln",
    "ls",
    "mkdir",
    "mkfifo",
    "mknod",
    "mount",
    "mv",
    "nc",
    "nproc",
    "od",
    "ping",
    "printf",
    "pwd",
    "readlink",
    "rm",
    "sed",
    "seq",
    "setpriv",
    "sh",
    "sha256sum",
    "sleep",
    "sort",
    "stat",
    "stty",
    "sync",
    "tail",
    "taskset",
    "test",
    "touch",
    "tr",
    "true",
    "truncate",
    "tty",
    "umount",
    "uname",
    "unlink",
    "unshare",
    "wc",
];

/// A bundle in a directory of its own that goes with it.
#[derive(Debug)]
pub struct TestBundle {
    dir: TempDir,
    /// `config.json`, written when `vm-run` is started.
    pub config: Value,
}

impl TestBundle {
    /// A bundle that runs a program; nothing in it is out of the ordinary.
    #[must_use]
    pub fn new(args: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("nacre-test-").tempdir();
        let dir = dir.expect("a directory for the bundle");
        for name in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
            fs::create_dir_all(dir.path().join("rootfs").join(name)).unwrap();
        }
        let bin = dir.path().join("rootfs/bin");
        fs::copy("/bin/busybox", bin.join("busybox")).expect("BusyBox of the test host");
        for applet in APPLETS {
            symlink("busybox", bin.join(applet)).unwrap();
        }
        Self {
            dir,
            config: config(args),
        }
    }

    /// A bundle that runs a shell script.
    #[must_use]
    pub fn sh(script: &str) -> Self {
        Self::new(&["sh", "-c", script])
    }

    /// Sets what a JSON pointer such as `/process/cwd` points to; objects on the
    /// way are made, `/-` at the end adds to an array.
    #[must_use]
    pub fn with(mut self, pointer: &str, value: Value) -> Self {
        let mut place = &mut self.config;
        for key in pointer.split('/').skip(1) {
            place = match place {
                Value::Array(items) => {
                    let index = if key == "-" {
                        items.push(Value::Null);
                        items.len() - 1
                    } else {
                        key.parse().unwrap()
                    };
                    &mut items[index]
                }
                object => &mut object[key],
            };
        }
        *place = value;
        self
    }

    /// Gives the process these capabilities, in all sets.
    #[must_use]
    pub fn with_capabilities(self, names: &[&str]) -> Self {
        let sets = [
            "bounding",
            "effective",
            "permitted",
            "inheritable",
            "ambient",
        ];
        sets.iter().fold(self, |bundle, set| {
            bundle.with(&format!("/process/capabilities/{set}"), json!(names))
        })
    }

    /// Adds a bind mount.
    #[must_use]
    pub fn with_bind(self, source: &Path, destination: &str, options: &[&str]) -> Self {
        let mount = json!({ "destination": destination, "type": "bind", "source": source,
            "options": options });
        self.with("/mounts/-", mount)
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A path in the container's root.
    #[must_use]
    pub fn in_root(&self, path: &str) -> PathBuf {
        self.path().join("rootfs").join(path)
    }

    /// Writes `config.json`.
    pub fn write(&self) {
        self.write_text(&serde_json::to_string_pretty(&self.config).unwrap());
    }

    /// Writes `config.json` as something else.
    pub fn write_text(&self, text: &str) {
        fs::write(self.path().join("config.json"), text).unwrap();
    }
}

fn config(args: &[&str]) -> Value {
    json!({
        "ociVersion": "1.2.0",
        "hostname": "nacre",
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "cwd": "/",
            "env": ["PATH=/bin"],
            "args": args,
            "noNewPrivileges": true
        },
        "root": { "path": "rootfs" },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc",
              "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/tmp", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "nodev", "mode=1777"] }
        ],
        "linux": {
            "namespaces": [
                { "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" },
                { "type": "mount" }, { "type": "cgroup" }
            ]
        }
    })
}
