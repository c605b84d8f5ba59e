//! The images that critest, the tests of cri-tools for CRI runtimes, pulls by their names in
//! public registries: made from BusyBox, and served by a registry of the test host's.
//!
//! What an image must have is told by the specs that use it; their `images/` folder makes some.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::image::{self, Layout};
use crate::registry::Registry;
use crate::sh;

/// Where the images of Kubernetes' own tests are, without the registry's host.
const E2E: &str = "e2e-test-images";

/// Where the images of cri-tools' tests are, without the registry's host.
const CRI_TOOLS: &str = "k8s-staging-cri-tools";

/// What a web server says.
const PAGE: &str = "<html>a page</html>\n";

/// As nginx: its PID in a file, and "master process" in its command line.
const NGINX: &str = "#!/bin/sh
echo $$ >/var/run/nginx.pid
httpd -f -p $1 -h /www &
wait
";

/// A registry with all images.
///
/// # Panics
/// When that fails.
#[must_use]
pub fn registry() -> Registry {
    let dir = tempfile::tempdir().unwrap();
    let mut images = Images::new(&dir);
    images.add_servers();
    images.add_users();
    images.add_names();
    images.push()
}

/// The images so far.
struct Images {
    layout: Layout,
    /// Entries of the layout's index, and the names in the registry, without its address.
    entries: Vec<(Value, String)>,
    programs: Value,
}

impl Images {
    fn new(dir: &TempDir) -> Self {
        let layout = Layout::new(&dir.path().join("layout"));
        let programs = layout.layer(programs);
        Self {
            layout,
            entries: Vec::new(),
            programs,
        }
    }

    /// Adds one with another layer, and with these parts of a configuration.
    fn add(&mut self, names: &[String], config: &Value, fill: impl FnOnce(&Path)) {
        let more = self.layout.layer(fill);
        let mut full = json!({ "Env": ["PATH=/bin:/usr/bin"], "Cmd": ["sh"] });
        for (key, value) in config.as_object().expect("an object") {
            full[key] = value.clone();
        }
        let layers = [&self.programs, &more];
        for name in names {
            let tag = format!("image-{}", self.entries.len());
            let entry = self.layout.image(&tag, &layers, &full);
            self.entries.push((entry, name.clone()));
        }
    }

    /// What specs run; [`Images::add_names`] is about names only.
    fn add_servers(&mut self) {
        self.add(&[format!("{E2E}/busybox:1.29-2")], &json!({}), |_| ());
        for (name, port) in [
            (format!("{E2E}/nginx:1.14-2"), "80"),
            (format!("{CRI_TOOLS}/hostnet-nginx-amd64:latest"), "12003"),
        ] {
            let command = json!({ "Cmd": ["nginx", port, "master process"] });
            self.add(&[name], &command, |root| {
                executable(root, "bin/nginx", NGINX);
            });
        }
        // Its log is to name it.
        let command = json!({ "Cmd": ["sh", "-c", "echo httpd; exec httpd -f -p 80 -h /www"] });
        self.add(&[format!("{E2E}/httpd:2.4.39-4")], &command, |_| ());
        // BusyBox drops what a set-user-ID bit gives; id of coreutils keeps it.
        let command = json!({ "Cmd": ["sh", "-c", "echo Effective uid: $(/usr/bin/id -u)"] });
        self.add(&[format!("{E2E}/nonewprivs:1.3")], &command, |root| {
            install(root, "/usr/bin/id");
            let mode = fs::Permissions::from_mode(0o4755);
            fs::set_permissions(root.join("usr/bin/id"), mode).unwrap();
        });
    }

    fn add_users(&mut self) {
        for (name, user) in [
            ("uid", "1002"),
            ("username", "www-data"),
            ("uid-group", "1003:1004"),
            ("username-group", "www-data:1004"),
        ] {
            let name = format!("{CRI_TOOLS}/test-image-user-{name}:latest");
            self.add(&[name], &json!({ "User": user }), |_| ());
        }
        let name = format!("{CRI_TOOLS}/test-image-predefined-group:latest");
        self.add(&[name], &json!({ "User": "1000" }), |root| {
            fs::create_dir(root.join("etc")).unwrap();
            let users = "root:x:0:0:root:/root:/bin/sh\n\
                         default-user:x:1000:1000::/root:/bin/sh\n";
            fs::write(root.join("etc/passwd"), users).unwrap();
            let groups = "root:x:0:\ndefault-user:x:1000:\n\
                          group-defined-in-image:x:50000:default-user\n";
            fs::write(root.join("etc/group"), groups).unwrap();
        });
    }

    /// Images that are pulled and looked at: those of one call are one image.
    fn add_names(&mut self) {
        for names in [
            &["test-image-latest:latest"][..],
            &["test-image-tag:test"],
            &["test-image-tag:all"],
            &["test-image-1:latest"],
            &["test-image-2:latest"],
            &["test-image-3:latest"],
            &[
                "test-image-tags:1",
                "test-image-tags:2",
                "test-image-tags:3",
            ],
        ] {
            let full: Vec<_> = names
                .iter()
                .map(|name| format!("{CRI_TOOLS}/{name}"))
                .collect();
            self.add(&full, &json!({}), |root| {
                fs::write(root.join("name"), names[0]).unwrap();
            });
        }
    }

    /// Starts a registry and fills it.
    fn push(self) -> Registry {
        let entries: Vec<_> = self
            .entries
            .iter()
            .map(|(entry, _)| entry.clone())
            .collect();
        self.layout.write_index(&entries);
        let registry = Registry::start();
        for (number, (_, name)) in self.entries.iter().enumerate() {
            let tag = format!("image-{number}");
            let _ = registry.push(self.layout.path(), &tag, name, "");
        }
        registry
    }
}

/// BusyBox, what specs call that it has not, its users, and the page of a web server.
fn programs(root: &Path) {
    image::busybox(root);
    for dir in ["var", "var/run", "www"] {
        fs::create_dir(root.join(dir)).unwrap();
    }
    for program in ["/usr/bin/pgrep", "/usr/bin/ipcs"] {
        install(root, program);
    }
    fs::write(root.join("www/index.html"), PAGE).unwrap();
    let users = "root:x:0:0:root:/root:/bin/sh\n\
                 www-data:x:33:33:www-data:/:/bin/sh\n\
                 nobody:x:65534:65534:nobody:/:/bin/sh\n";
    fs::write(root.join("etc/passwd"), users).unwrap();
    let groups = "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n";
    fs::write(root.join("etc/group"), groups).unwrap();
}

/// Copies a program of the test host's, with the libraries that it needs.
fn install(root: &Path, program: &str) {
    let libraries = sh(&format!("ldd {program} | grep -o '/[^ ]*'"));
    for path in libraries.lines().chain([program]) {
        let to = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(to.parent().expect("a path below /")).unwrap();
        fs::copy(path, to).unwrap();
    }
}

fn executable(root: &Path, name: &str, text: &str) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().expect("a path below a root")).unwrap();
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}
