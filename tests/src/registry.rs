//! A registry on the loopback, Debian's docker-registry, filled with skopeo.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::{sh, wait_until};

/// A registry that ends, with all that is in it, when it is dropped.
#[derive(Debug)]
pub struct Registry {
    dir: TempDir,
    server: Child,
    address: String,
}

impl Registry {
    /// Starts an empty one.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Free a moment ago: nobody else makes sockets here.
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap().to_string();
        drop(free);
        let config = dir.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
             http:\n  addr: {address}\n",
            dir.path().join("data").display()
        );
        fs::write(&config, text).unwrap();
        let server = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry of the test host");
        wait_until("the registry listens", || {
            TcpStream::connect(&address).is_ok()
        });
        Self {
            dir,
            server,
            address,
        }
    }

    /// Its address, with the port.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The full name of something in it, such as `a/b:1`.
    #[must_use]
    pub fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// Puts the image `tag` of a layout there; returns its digest.
    pub fn push(&self, layout: &Path, tag: &str, name: &str, options: &str) -> String {
        let digest = self.dir.path().join("digest");
        sh(&format!(
            "skopeo copy --insecure-policy --dest-tls-verify=false --digestfile {} {options} \
             oci:{}:{tag} docker://{} >&2",
            digest.display(),
            layout.display(),
            self.name(name)
        ));
        fs::read_to_string(digest).unwrap().trim().to_owned()
    }
}

impl Registry {
    /// Ends it.
    pub fn stop(&mut self) {
        // It may have ended by itself.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
    }
}
