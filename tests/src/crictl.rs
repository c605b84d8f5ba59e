//! Pods and their containers, made through containerd's CRI service by `crictl`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::ctr::new_id;
use crate::pty::Session;
use crate::{Containerd, Ended, Running, Runtime, image, patience, wait_until};

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
        Self::run_with(containerd, runtime, pids, |_| ())
    }

    /// The same with another configuration: the one that `change` makes of the usual.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn run_with(
        containerd: &'a Containerd,
        runtime: Runtime,
        pids: Pids,
        change: impl FnOnce(&mut Value),
    ) -> Self {
        let start = PodStart::new(containerd, runtime, pids, change);
        let ended = Running::to_the_end(start.command());
        start.pod(&ended.expect_code(0))
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

    /// What it uses, as CRI's `PodSandboxStats`.
    ///
    /// # Panics
    /// When that is not told.
    #[must_use]
    pub fn stats(&self) -> Value {
        let words = ["statsp", "--output", "json", "--id", &self.id];
        let stats: Value = serde_json::from_str(&printed(crictl(self.containerd, &words)))
            .expect("JSON of crictl");
        stats["stats"][0].clone()
    }

    /// The network namespace that was made for it.
    ///
    /// # Panics
    /// When it has none.
    #[must_use]
    pub fn network_namespace(&self) -> PathBuf {
        let info = &inspect(self.containerd, "inspectp", &self.id)["info"];
        let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array();
        let network = namespaces
            .expect("namespaces")
            .iter()
            .find(|namespace| namespace["type"] == "network");
        let path = network.and_then(|network| network["path"].as_str());
        path.expect("a network namespace").into()
    }

    /// Forwards a free port of the host's to each of these of the pod's localhost.
    ///
    /// # Panics
    /// When that does not begin.
    #[must_use]
    pub fn forward(&self, ports: &[u16]) -> PortForward {
        let mut command = crictl(self.containerd, &["port-forward", &self.id]);
        command.args(ports.iter().map(|port| format!("0:{port}")));
        command.stdin(Stdio::null());
        let mut running = Running::start(command);
        for port in ports {
            running.wait_for(&format!(" -> {port}\n"));
        }
        PortForward { running }
    }

    /// Makes and starts a container of BusyBox that runs a line of shell.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start(&self, script: &str, pids: Pids) -> Container<'a> {
        self.start_with(script, pids, &[])
    }

    /// As [`Pod::start`], with read-only mounts of these directories of the host in these places.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start_with(&self, script: &str, pids: Pids, mounts: &[(&Path, &str)]) -> Container<'a> {
        let mounts = mounts.iter().map(|(source, place)| {
            json!({ "host_path": source, "container_path": place, "readonly": true })
        });
        self.start_mounting(script, pids, &mounts.collect())
    }

    /// As [`Pod::start`], with mounts, as CRI's list of `Mount`.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start_mounting(&self, script: &str, pids: Pids, mounts: &Value) -> Container<'a> {
        let mounts = mounts.clone();
        self.start_changed(script, pids, |config| config["mounts"] = mounts)
    }

    /// As [`Pod::start`], with a device of the host, as CRI's `Device`.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start_with_device(&self, script: &str, pids: Pids, device: &Value) -> Container<'a> {
        self.start_changed(script, pids, |config| config["devices"] = json!([device]))
    }

    /// As [`Pod::start`], with another configuration: the one that `change` makes of the usual.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start_changed(
        &self,
        script: &str,
        pids: Pids,
        change: impl FnOnce(&mut Value),
    ) -> Container<'a> {
        let start = self.creation(script, pids, change);
        let ended = Running::to_the_end(start.command());
        let container = start.container(&ended.expect_code(0));
        let _ = printed(container.start_command());
        container
    }

    /// The request for a container, as `change` makes it of the usual.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn creation(
        &self,
        script: &str,
        pids: Pids,
        change: impl FnOnce(&mut Value),
    ) -> Creation<'a, '_> {
        let name = new_id();
        let mut config = json!({
            "metadata": { "name": name, "attempt": 0 },
            "image": { "image": image::BUSYBOX },
            "command": ["sh", "-c", script],
            "log_path": format!("{name}.log"),
            "linux": { "security_context": { "namespace_options": options(pids) } }
        });
        change(&mut config);
        fs::write(
            self.dir.path().join(format!("{name}.json")),
            config.to_string(),
        )
        .unwrap();
        Creation { pod: self, name }
    }

    /// Tries to stop it.
    #[must_use]
    pub fn stop(&self) -> Ended {
        Running::to_the_end(crictl(self.containerd, &["stopp", &self.id]))
    }

    /// Removes it after its shim or its monitor was killed, as the kubelet does it: by trying again.
    /// containerd knows of the pod's end first, and of its containers' a moment later.
    pub fn remove_lost(self) {
        let tried = |words: &[&str]| Running::to_the_end(crictl(self.containerd, words));
        wait_until("the pod is known to have ended", || {
            let asked = tried(&["inspectp", "--output", "json", &self.id]);
            asked.code() == 0 && asked.text().contains("SANDBOX_NOTREADY")
        });
        wait_until("it is removed", || {
            self.stop().code() == 0 && tried(&["rmp", &self.id]).code() == 0
        });
    }

    /// Stops it and removes it with all that is in it.
    pub fn remove(self) {
        let _ = self.stop().expect_code(0);
        assert_eq!(self.state(), "SANDBOX_NOTREADY");
        let _ = printed(crictl(self.containerd, &["rmp", &self.id]));
    }
}

/// The request for a pod without a container.
#[derive(Debug)]
pub struct PodStart<'a> {
    containerd: &'a Containerd,
    runtime: Runtime,
    dir: TempDir,
}

impl<'a> PodStart<'a> {
    /// Writes it, as `change` makes it of the usual.
    ///
    /// # Panics
    /// When that fails.
    #[must_use]
    pub fn new(
        containerd: &'a Containerd,
        runtime: Runtime,
        pids: Pids,
        change: impl FnOnce(&mut Value),
    ) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("nacre-pod-")
            .tempdir_in(containerd.dir())
            .expect("a directory for the pod");
        let name = new_id();
        let mut config = json!({
            "metadata": { "name": name, "uid": name, "namespace": "test", "attempt": 0 },
            "hostname": "carved",
            "log_directory": dir.path(),
            "linux": { "security_context": { "namespace_options": options(pids) } }
        });
        change(&mut config);
        fs::write(dir.path().join("pod.json"), config.to_string()).unwrap();
        Self {
            containerd,
            runtime,
            dir,
        }
    }

    /// The command that makes it; what that prints is for [`PodStart::pod`].
    #[must_use]
    pub fn command(&self) -> Command {
        let words = ["runp", "--runtime", self.runtime.handler()];
        let mut command = crictl(self.containerd, &words);
        command.arg(self.dir.path().join("pod.json"));
        command.stdin(Stdio::null());
        command
    }

    /// The pod that was made.
    #[must_use]
    pub fn pod(self, ended: &Ended) -> Pod<'a> {
        Pod {
            containerd: self.containerd,
            id: ended.text().trim().to_owned(),
            dir: self.dir,
        }
    }
}

/// The request for a container that is not there yet.
#[derive(Debug)]
pub struct Creation<'a, 'p> {
    pod: &'p Pod<'a>,
    name: String,
}

impl<'a> Creation<'a, '_> {
    /// The command that makes it; what that prints is for [`Creation::container`].
    #[must_use]
    pub fn command(&self) -> Command {
        let dir = self.pod.dir.path();
        let mut command = crictl(self.pod.containerd, &["create", "--no-pull", &self.pod.id]);
        command
            .arg(dir.join(format!("{}.json", self.name)))
            .arg(dir.join("pod.json"))
            .stdin(Stdio::null());
        command
    }

    /// The container that was made.
    #[must_use]
    pub fn container(self, ended: &Ended) -> Container<'a> {
        Container {
            containerd: self.pod.containerd,
            id: ended.text().trim().to_owned(),
            log: self.pod.dir.path().join(format!("{}.log", self.name)),
        }
    }
}

/// A `crictl port-forward` that runs; it ends when it is dropped.
#[derive(Debug)]
pub struct PortForward {
    running: Running,
}

impl PortForward {
    /// The port of 127.0.0.1 that leads to one of the pod's.
    ///
    /// # Panics
    /// When that is not forwarded.
    #[must_use]
    pub fn port(&self, of_pod: u16) -> u16 {
        let said = self.running.said();
        // Forwarding from 127.0.0.1:PORT -> PORT
        let port = said.lines().find_map(|line| {
            let (from, to) = line.split_once(" -> ")?;
            let (_, port) = from.split_once("127.0.0.1:")?;
            (to == of_pod.to_string()).then(|| port.parse().ok())?
        });
        port.unwrap_or_else(|| panic!("port {of_pod} is not forwarded: {said}"))
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

    /// Starts a command in it as a probe does, which gives it so many seconds.
    #[must_use]
    pub fn probe(&self, seconds: u32, args: &[&str]) -> Running {
        let limit = seconds.to_string();
        let words = ["exec", "--sync", "--timeout", &limit, &self.id];
        let mut command = crictl(self.containerd, &words);
        command.args(args).stdin(Stdio::null());
        Running::start(command)
    }

    /// The command that runs another one in it, with standard input, as `kubectl exec -i` does.
    #[must_use]
    pub fn stream(&self, args: &[&str]) -> Command {
        let mut command = crictl(self.containerd, &["exec", "--interactive", &self.id]);
        command.args(args);
        command
    }

    /// Runs a command in it with a terminal, at a terminal of this size.
    ///
    /// # Panics
    /// When that does not begin.
    #[must_use]
    pub fn terminal(&self, args: &[&str], columns: u16, rows: u16) -> Session {
        let words = ["exec", "--interactive", "--tty", &self.id];
        let mut command = crictl(self.containerd, &words);
        command.args(args);
        Session::of(&command, columns, rows)
    }

    /// Attaches to it, with input.
    ///
    /// # Panics
    /// When that does not begin.
    #[must_use]
    pub fn attach(&self) -> Running {
        let mut command = crictl(self.containerd, &["attach", "--stdin", &self.id]);
        command.stdin(Stdio::piped());
        Running::start(command)
    }

    /// The command that starts it once it is made.
    #[must_use]
    pub fn start_command(&self) -> Command {
        let mut command = crictl(self.containerd, &["start", &self.id]);
        command.stdin(Stdio::null());
        command
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
        logged(&self.log)
    }

    /// Puts its log away and has another one begun, as the kubelet does when one has grown.
    ///
    /// # Panics
    /// When that fails.
    pub fn rotate_log(&self) {
        fs::rename(&self.log, self.rotated()).unwrap();
        let _ = self.crictl(&["logs", "--reopen"]);
    }

    /// What is in the log that was put away, as [`Container::log`] says it.
    #[must_use]
    pub fn rotated_log(&self) -> String {
        logged(&self.rotated())
    }

    fn rotated(&self) -> PathBuf {
        self.log.with_extension("log.1")
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

    /// Why it has ended, in CRI's words; empty before that.
    #[must_use]
    pub fn reason(&self) -> String {
        let status = &inspect(self.containerd, "inspect", &self.id)["status"];
        status["reason"].as_str().unwrap_or_default().to_owned()
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

    /// Asks for other limits, in crictl's words.
    #[must_use]
    pub fn update(&self, words: &[&str]) -> Ended {
        let mut command = crictl(self.containerd, &["update"]);
        command.args(words).arg(&self.id);
        Running::to_the_end(command)
    }

    /// Stops it, at once, and removes it.
    pub fn remove(self) {
        let _ = self.crictl(&["stop", "--timeout", "0"]);
        let _ = self.crictl(&["rm"]);
    }
}

fn logged(file: &Path) -> String {
    // TIME STREAM TAG LINE
    let log = fs::read_to_string(file).unwrap_or_default();
    let lines = log.lines().map(|line| {
        let words: Vec<_> = line.splitn(4, ' ').collect();
        format!("{} {}\n", words[1], words.get(3).unwrap_or(&""))
    });
    lines.collect()
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
        .args(["--config", "/dev/null", "--timeout"])
        .arg(format!("{}s", patience().as_secs()))
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
