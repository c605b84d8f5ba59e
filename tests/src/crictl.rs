//! Pods and their containers, made through containerd's CRI service by `crictl`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::ctr::new_id;
use crate::{Containerd, Ended, Running, Runtime, image, wait_until};

/// A pod that runs. Remove it with [`Pod::remove`].
#[derive(Debug)]
pub struct Pod<'a> {
    containerd: &'a Containerd,
    id: String,
    /// The requests' files and the containers' logs.
    dir: TempDir,
}

/// A process namespace, as CRI says it.
#[derive(Clone, Copy, Debug)]
pub enum Pids {
    /// One for the pod.
    Shared,
    /// One for each container.
    Private,
}

impl<'a> Pod<'a> {
    /// Runs one without a container.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn run(containerd: &'a Containerd, runtime: Runtime, pids: Pids) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("nacre-pod-")
            .tempdir_in(containerd.dir())
            .expect("a directory for the pod");
        let name = new_id();
        let config = json!({
            "metadata": { "name": name, "uid": name, "namespace": "test", "attempt": 0 },
            "hostname": "carved",
            "log_directory": dir.path(),
            "linux": { "security_context": { "namespace_options": options(pids) } }
        });
        fs::write(dir.path().join("pod.json"), config.to_string()).unwrap();
        let mut command = crictl(containerd, &["runp", "--runtime", runtime.handler()]);
        command.arg(dir.path().join("pod.json"));
        let id = printed(command);
        Self {
            containerd,
            id,
            dir,
        }
    }

    /// Its identifier.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its address in the pods' network.
    ///
    /// # Panics
    /// When it has none.
    #[must_use]
    pub fn address(&self) -> String {
        let status = inspect(self.containerd, "inspectp", &self.id);
        status["status"]["network"]["ip"]
            .as_str()
            .expect("an address")
            .to_owned()
    }

    /// `SANDBOX_READY` or `SANDBOX_NOTREADY`.
    ///
    /// # Panics
    /// When it is not there.
    #[must_use]
    pub fn state(&self) -> String {
        let status = inspect(self.containerd, "inspectp", &self.id);
        status["status"]["state"]
            .as_str()
            .expect("a state")
            .to_owned()
    }

    /// Makes and starts a container of BusyBox that runs a line of shell.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start(&self, script: &str, pids: Pids) -> Container<'a> {
        let name = new_id();
        let config = json!({
            "metadata": { "name": name, "attempt": 0 },
            "image": { "image": image::BUSYBOX },
            "command": ["sh", "-c", script],
            "log_path": format!("{name}.log"),
            "linux": { "security_context": { "namespace_options": options(pids) } }
        });
        let path = self.dir.path().join(format!("{name}.json"));
        fs::write(&path, config.to_string()).unwrap();
        let mut command = crictl(self.containerd, &["create", "--no-pull", &self.id]);
        command.arg(&path).arg(self.dir.path().join("pod.json"));
        let container = Container {
            containerd: self.containerd,
            id: printed(command),
            log: self.dir.path().join(format!("{name}.log")),
        };
        let _ = printed(crictl(self.containerd, &["start", &container.id]));
        container
    }

    /// Stops it and removes it with all that is in it.
    pub fn remove(self) {
        let _ = printed(crictl(self.containerd, &["stopp", &self.id]));
        assert_eq!(self.state(), "SANDBOX_NOTREADY");
        let _ = printed(crictl(self.containerd, &["rmp", &self.id]));
    }
}

/// A container of a pod.
#[derive(Debug)]
pub struct Container<'a> {
    containerd: &'a Containerd,
    id: String,
    log: PathBuf,
}

impl Container<'_> {
    /// Its identifier.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Runs a command in it until that has ended.
    #[must_use]
    pub fn exec(&self, args: &[&str]) -> Ended {
        let mut command = crictl(self.containerd, &["exec", "--sync", &self.id]);
        command.args(args);
        Running::to_the_end(command)
    }

    /// Runs a line of shell in it and returns what that prints, without white space
    /// at its end, of which crictl adds some.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn sh(&self, script: &str) -> String {
        let ended = self.exec(&["sh", "-c", script]).expect_code(0);
        ended.text().trim_end().to_owned()
    }

    /// What it printed, each line with its stream: `stdout hello`.
    #[must_use]
    pub fn log(&self) -> String {
        // TIME STREAM TAG LINE
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines = log.lines().map(|line| {
            let words: Vec<_> = line.splitn(4, ' ').collect();
            format!("{} {}\n", words[1], words.get(3).unwrap_or(&""))
        });
        lines.collect()
    }

    /// The state that CRI gives, such as `CONTAINER_RUNNING`, and the exit code.
    ///
    /// # Panics
    /// When it is not there.
    #[must_use]
    pub fn state(&self) -> (String, i64) {
        let status = &inspect(self.containerd, "inspect", &self.id)["status"];
        // What is zero is left out.
        let code = status["exitCode"].as_i64().unwrap_or(0);
        (status["state"].as_str().expect("a state").to_owned(), code)
    }

    /// Waits for its end; returns its exit code.
    #[must_use]
    pub fn wait(&self) -> i64 {
        wait_until(&format!("{} has ended", self.id), || {
            self.state().0 == "CONTAINER_EXITED"
        });
        self.state().1
    }

    /// Runs `crictl` with these words and its identifier after them.
    #[must_use]
    pub fn crictl(&self, words: &[&str]) -> String {
        let mut command = crictl(self.containerd, words);
        command.arg(&self.id);
        printed(command)
    }

    /// Stops it, at once, and removes it.
    pub fn remove(self) {
        let _ = self.crictl(&["stop", "--timeout", "0"]);
        let _ = self.crictl(&["rm"]);
    }
}

fn options(pids: Pids) -> Value {
    // NamespaceMode of CRI: POD is 0, CONTAINER 1.
    json!({ "network": 0, "ipc": 0, "pid": match pids { Pids::Shared => 0, Pids::Private => 1 } })
}

fn crictl(containerd: &Containerd, words: &[&str]) -> Command {
    let endpoint = format!("unix://{}", containerd.socket().display());
    let mut command = containerd.program("crictl");
    command
        .args([
            "--runtime-endpoint",
            &endpoint,
            "--image-endpoint",
            &endpoint,
        ])
        // A file of the host's would say otherwise.
        .args(["--config", "/dev/null", "--timeout", "180s"])
        .args(words);
    command
}

fn inspect(containerd: &Containerd, what: &str, id: &str) -> Value {
    serde_json::from_str(&printed(crictl(
        containerd,
        &[what, "--output", "json", id],
    )))
    .expect("JSON of crictl")
}

/// What a command prints that must not fail, without white space around it.
fn printed(command: Command) -> String {
    Running::to_the_end(command)
        .expect_code(0)
        .text()
        .trim()
        .to_owned()
}
