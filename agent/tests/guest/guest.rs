//! The host's side of a test: one guest, its share, and calls to its agent.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use nacre_protocol::agent::{
    CopiedVolume, CreateContainerRequest, DeleteContainerRequest, DeleteExecRequest, ExecRequest,
    PidNamespace, ResizeTerminalRequest, ShutDownRequest, SignalContainerRequest,
    StartContainerRequest, Stdio, TerminalSize, WaitContainerRequest, WaitContainerResponse,
};
use nacre_protocol::agent_ttrpc::AgentClient;
use nacre_protocol::stream::StreamHeader;
use serde_json::{Value, json};
use ttrpc::Code;

use crate::server;

/// No call of a test takes longer on a host that works.
const DEADLINE: Duration = Duration::from_secs(60);

/// Whether containers of this machine can have a memory limit.
pub(crate) fn has_memory_controller() -> bool {
    fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
        .is_ok_and(|controllers| controllers.split_whitespace().any(|name| name == "memory"))
}

/// A running guest.
pub(crate) struct Guest {
    directory: tempfile::TempDir,
    process: Child,
    runtime: tokio::runtime::Runtime,
    client: AgentClient,
    next_stream: AtomicU64,
}

impl Guest {
    /// Starts a guest whose share holds a busybox root file system, `rootfs`.
    pub(crate) fn start() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("nacre-guest-")
            .tempdir()
            .expect("a directory");
        let rootfs = directory.path().join("share/rootfs");
        make_rootfs(&rootfs);
        let mut process = server::command(directory.path()).spawn().expect("unshare");
        let started = Instant::now();
        while !directory.path().join("ready").exists() {
            assert!(started.elapsed() < DEADLINE, "the guest does not start");
            let ended = process.try_wait().expect("its status");
            assert!(ended.is_none(), "the guest cannot start: {ended:?}");
            sleep(Duration::from_millis(2));
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let address = format!("unix://{}", directory.path().join("control.sock").display());
        let client = runtime
            .block_on(ttrpc::r#async::Client::connect(&address))
            .expect("the agent");
        Self {
            directory,
            process,
            runtime,
            client: AgentClient::new(client),
            next_stream: AtomicU64::new(1),
        }
    }

    /// A path in the share, as the host has it.
    pub(crate) fn share(&self, path: &str) -> PathBuf {
        self.directory.path().join("share").join(path)
    }

    /// Puts an executable script or a file of other bytes into the rootfs.
    pub(crate) fn add_file(&self, path: &str, content: &str, mode: u32) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.share("rootfs").join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(&path, content).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("its mode");
    }

    /// Makes a call and gives its answer or error.
    pub(crate) fn call<T>(
        &self,
        call: impl AsyncFnOnce(&AgentClient, ttrpc::context::Context) -> ttrpc::Result<T>,
    ) -> Result<T, CallError> {
        let context = ttrpc::context::with_duration(DEADLINE);
        self.runtime
            .block_on(call(&self.client, context))
            .map_err(|error| match error {
                ttrpc::Error::RpcStatus(status) => CallError {
                    code: status.code(),
                    message: status.message,
                },
                other => panic!("the agent did not answer: {other}"),
            })
    }

    /// Opens a stream as the host does.
    pub(crate) fn open_stream(&self) -> (u64, UnixStream) {
        let id = self.next_stream.fetch_add(1, Ordering::Relaxed);
        let path = self.directory.path().join("streams.sock");
        let mut stream = UnixStream::connect(path).expect("a stream");
        stream
            .write_all(&StreamHeader { id }.encode())
            .expect("the header");
        (id, stream)
    }

    /// Creates a container with all its streams.
    pub(crate) fn create(&self, id: &str, spec: &Value) -> Result<Container<'_>, CallError> {
        self.create_in(id, spec, PidNamespace::OWN)
    }

    /// Creates a container with all its streams in a PID namespace.
    pub(crate) fn create_in(
        &self,
        id: &str,
        spec: &Value,
        pid_namespace: PidNamespace,
    ) -> Result<Container<'_>, CallError> {
        let request = CreateContainerRequest {
            pid_namespace: pid_namespace.into(),
            ..CreateContainerRequest::default()
        };
        self.create_as(id, spec, request)
    }

    /// Creates a container with all its streams and copies of volumes.
    pub(crate) fn create_copying(
        &self,
        id: &str,
        spec: &Value,
        copied_volumes: Vec<CopiedVolume>,
    ) -> Result<Container<'_>, CallError> {
        let request = CreateContainerRequest {
            copied_volumes,
            ..CreateContainerRequest::default()
        };
        self.create_as(id, spec, request)
    }

    fn create_as(
        &self,
        id: &str,
        spec: &Value,
        request: CreateContainerRequest,
    ) -> Result<Container<'_>, CallError> {
        let terminal = spec["process"]["terminal"] == json!(true);
        let (stdin_stream, stdin) = self.open_stream();
        let (stdout_stream, stdout) = self.open_stream();
        let (stderr_stream, stderr) = if terminal {
            (0, None)
        } else {
            let (id, stream) = self.open_stream();
            (id, Some(stream))
        };
        let request = CreateContainerRequest {
            container_id: id.to_owned(),
            spec: spec.to_string().into_bytes(),
            stdio: Some(Stdio {
                stdin_stream,
                stdout_stream,
                stderr_stream,
                terminal,
                ..Stdio::default()
            })
            .into(),
            ..request
        };
        self.create_with(&request)?;
        Ok(Container {
            guest: self,
            id: id.to_owned(),
            stdin,
            stdout,
            stderr,
        })
    }

    /// A container that was created with a request, without streams.
    pub(crate) fn adopt(&self, id: &str) -> Container<'_> {
        let (stdin, _) = UnixStream::pair().expect("a pair");
        let (stdout, _) = UnixStream::pair().expect("a pair");
        Container {
            guest: self,
            id: id.to_owned(),
            stdin,
            stdout,
            stderr: None,
        }
    }

    /// Creates a container as a request says.
    pub(crate) fn create_with(&self, request: &CreateContainerRequest) -> Result<u32, CallError> {
        self.call(async |agent, context| agent.create_container(context, request).await)
            .map(|response| response.pid)
    }

    /// Starts a further process as a request says.
    pub(crate) fn exec_with(&self, request: &ExecRequest) -> Result<u32, CallError> {
        self.call(async |agent, context| agent.exec(context, request).await)
            .map(|response| response.pid)
    }

    /// Controllers that a container's cgroup has.
    pub(crate) fn controllers(&self) -> String {
        let file = self
            .agent_root()
            .join("sys/fs/cgroup/nacre/cgroup.subtree_control");
        fs::read_to_string(file)
            .expect("controllers")
            .trim()
            .to_owned()
    }

    /// Runs a shell command in a container to its end.
    pub(crate) fn sh(&self, command: &str) -> Output {
        self.run(&spec(&["sh", "-c", command]))
    }

    /// Runs a container to its end and deletes it.
    pub(crate) fn run(&self, spec: &Value) -> Output {
        let id = format!("run-{}", self.next_stream.load(Ordering::Relaxed));
        let container = self.create(&id, spec).expect("to create the container");
        container.start().expect("to start the container");
        container.finish()
    }

    /// Processes of the guest besides its agent, by their names.
    pub(crate) fn processes(&self) -> Vec<String> {
        let unshare = self.process.id();
        let agents = children_of(unshare);
        agents
            .iter()
            .flat_map(|agent| children_of(*agent))
            .map(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default())
            // What holds the pod's PID namespace lives as long as the pod.
            .filter(|name| name != "pod\n")
            .collect()
    }

    /// Open descriptors of the agent.
    pub(crate) fn descriptors(&self) -> usize {
        let agent = children_of(self.process.id())[0];
        fs::read_dir(format!("/proc/{agent}/fd"))
            .expect("descriptors")
            .count()
    }

    /// Runs `ip` in the guest's network namespace, for a device to configure.
    pub(crate) fn ip(&self, arguments: &str) {
        let agent = children_of(self.process.id())[0].to_string();
        let status = std::process::Command::new("nsenter")
            .args(["-t", &agent, "-n", "ip"])
            .args(arguments.split(' '))
            .status()
            .expect("nsenter");
        assert!(status.success(), "ip {arguments}");
    }

    /// Shows one directory of the share in another place, read-only.
    pub(crate) fn share_read_only(&self, source: &str, place: &str) {
        fs::create_dir(self.share(place)).expect("a directory");
        let agent = children_of(self.process.id())[0].to_string();
        let share = "/run/nacre/share";
        let mount = format!(
            "mount --bind {share}/{source} {share}/{place} && \
             mount -o remount,bind,ro {share}/{place}"
        );
        let status = std::process::Command::new("nsenter")
            .args(["-t", &agent, "-m", "sh", "-c", &mount])
            .status()
            .expect("nsenter");
        assert!(status.success(), "{mount}");
    }

    /// Whether the guest has gone down.
    pub(crate) fn has_ended(&self) -> bool {
        children_of(self.process.id()).is_empty()
    }

    fn agent_root(&self) -> PathBuf {
        let agent = children_of(self.process.id())[0];
        PathBuf::from(format!("/proc/{agent}/root"))
    }

    /// Asserts that the guest keeps nothing of containers that are gone.
    pub(crate) fn check_nothing_is_left(&self) {
        if self.has_ended() {
            return;
        }
        let root = self.agent_root();
        let started = Instant::now();
        // An orphan is reaped a moment after its end.
        while !self.processes().is_empty() && started.elapsed() < Duration::from_secs(5) {
            sleep(Duration::from_millis(5));
        }
        assert_eq!(self.processes(), Vec::<String>::new(), "processes");
        for (directory, is_entry) in [
            (
                "run/nacre/containers",
                (|_| true) as fn(&fs::DirEntry) -> bool,
            ),
            ("run/nacre/volumes", |_| true),
            ("sys/fs/cgroup/nacre", |entry| entry.path().is_dir()),
        ] {
            let left: Vec<_> = fs::read_dir(root.join(directory))
                .into_iter()
                .flatten()
                .map(|entry| entry.expect("an entry"))
                .filter(is_entry)
                .map(|entry| entry.path())
                .collect();
            assert_eq!(left, Vec::<PathBuf>::new(), "{directory}");
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let request = ShutDownRequest::default();
        let context = ttrpc::context::with_duration(DEADLINE);
        let _ = self
            .runtime
            .block_on(self.client.shut_down(context, &request));
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(10) {
            if matches!(self.process.try_wait(), Ok(Some(_))) {
                break;
            }
            sleep(Duration::from_millis(2));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
        remove_cgroup(
            &self
                .directory
                .path()
                .file_name()
                .expect("a name")
                .to_string_lossy(),
        );
    }
}

/// A guest's cgroup, wherever this machine has the v2 hierarchy.
fn remove_cgroup(name: &str) {
    for hierarchy in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
        let root = Path::new(hierarchy).join(name);
        for below in ["agent", "nacre", ""] {
            let _ = fs::remove_dir(root.join(below));
        }
    }
}

fn children_of(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    children
        .unwrap_or_default()
        .split_whitespace()
        .map(|pid| pid.parse().expect("a process"))
        .collect()
}

fn make_rootfs(rootfs: &Path) {
    for directory in ["bin", "proc", "sys", "dev", "tmp", "etc", "root"] {
        fs::create_dir_all(rootfs.join(directory)).expect("a directory");
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .expect("busybox; apt install busybox-static");
    fs::copy(busybox, rootfs.join("bin/busybox")).expect("busybox");
    for applet in [
        "sh", "cat", "echo", "id", "sleep", "stty", "mknod", "mkdir", "dd", "head", "grep", "ls",
        "stat", "test", "true", "touch", "hostname", "env", "pwd", "mount", "ps", "kill", "md5sum",
        "rm", "ip", "ln", "chmod", "tail", "seq", "wc", "tr", "yes", "readlink", "sync",
    ] {
        symlink("busybox", rootfs.join("bin").join(applet)).expect("an applet");
    }
    fs::write(
        rootfs.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/tmp:/bin/sh\n",
    )
    .expect("users");
}

/// What a call failed with.
#[derive(Debug)]
pub(crate) struct CallError {
    pub code: Code,
    pub message: String,
}

impl CallError {
    /// Asserts code and a part of the message.
    pub(crate) fn expect(&self, code: Code, message: &str) {
        assert!(
            self.code == code && self.message.contains(message),
            "{code:?} with {message:?} expected, not {self:?}"
        );
    }
}

/// A container with the host's ends of its streams.
pub(crate) struct Container<'a> {
    guest: &'a Guest,
    pub id: String,
    pub stdin: UnixStream,
    pub stdout: UnixStream,
    pub stderr: Option<UnixStream>,
}

/// What a container wrote and how it ended.
#[derive(Debug)]
pub(crate) struct Output {
    pub status: u32,
    pub stdout: String,
    pub stderr: String,
    pub oom_killed: bool,
}

impl<'a> Container<'a> {
    /// Executes the workload.
    pub(crate) fn start(&self) -> Result<(), CallError> {
        let request = StartContainerRequest {
            container_id: self.id.clone(),
            ..StartContainerRequest::default()
        };
        self.guest
            .call(async |agent, context| agent.start_container(context, &request).await)
            .map(drop)
    }

    /// Sends a signal to its first process, or to all.
    pub(crate) fn signal(&self, signal: u32, all: bool) -> Result<(), CallError> {
        let request = SignalContainerRequest {
            container_id: self.id.clone(),
            signal,
            all,
            ..SignalContainerRequest::default()
        };
        self.guest
            .call(async |agent, context| agent.signal_container(context, &request).await)
            .map(drop)
    }

    /// Waits for the end.
    pub(crate) fn wait(&self) -> WaitContainerResponse {
        let request = WaitContainerRequest {
            container_id: self.id.clone(),
            ..WaitContainerRequest::default()
        };
        self.guest
            .call(async |agent, context| agent.wait_container(context, &request).await)
            .expect("to wait")
    }

    /// Removes it.
    pub(crate) fn delete(&self) -> Result<(), CallError> {
        let request = DeleteContainerRequest {
            container_id: self.id.clone(),
            ..DeleteContainerRequest::default()
        };
        self.guest
            .call(async |agent, context| agent.delete_container(context, &request).await)
            .map(drop)
    }

    /// Starts a further process in it, with all its streams.
    pub(crate) fn exec(&self, exec_id: &str, process: &Value) -> Result<Process<'a>, CallError> {
        let terminal = process["terminal"] == json!(true);
        let (stdin_stream, stdin) = self.guest.open_stream();
        let (stdout_stream, stdout) = self.guest.open_stream();
        let (stderr_stream, stderr) = if terminal {
            (0, None)
        } else {
            let (id, stream) = self.guest.open_stream();
            (id, Some(stream))
        };
        let request = ExecRequest {
            container_id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            process: process.to_string().into_bytes(),
            stdio: Some(Stdio {
                stdin_stream,
                stdout_stream,
                stderr_stream,
                terminal,
                ..Stdio::default()
            })
            .into(),
            ..ExecRequest::default()
        };
        self.guest.exec_with(&request)?;
        Ok(Process::new(
            self.guest, &self.id, exec_id, stdin, stdout, stderr,
        ))
    }

    /// Reads stdout until what was read ends with `text`.
    pub(crate) fn read_until(&mut self, text: &str) -> String {
        read_until(&mut self.stdout, text)
    }

    /// Drains the outputs, waits for the end and removes the container.
    pub(crate) fn finish(self) -> Output {
        let stdout = read_all(self.stdout.try_clone().expect("stdout"));
        let stderr = self
            .stderr
            .as_ref()
            .map(|stderr| read_all(stderr.try_clone().expect("stderr")));
        let exit = self.wait();
        let stdout = stdout.join().expect("stdout");
        let stderr = stderr.map(|stderr| stderr.join().expect("stderr"));
        self.delete().expect("to delete the container");
        Output {
            status: exit.exit_status,
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: String::from_utf8_lossy(&stderr.unwrap_or_default()).into_owned(),
            oom_killed: exit.oom_killed,
        }
    }
}

/// A further process of a container with the host's ends of its streams.
pub(crate) struct Process<'a> {
    guest: &'a Guest,
    container_id: String,
    exec_id: String,
    pub stdin: UnixStream,
    pub stdout: UnixStream,
    stderr: Option<UnixStream>,
}

impl<'a> Process<'a> {
    /// A process that an exec has started.
    pub(crate) fn new(
        guest: &'a Guest,
        container_id: &str,
        exec_id: &str,
        stdin: UnixStream,
        stdout: UnixStream,
        stderr: Option<UnixStream>,
    ) -> Self {
        Self {
            guest,
            container_id: container_id.to_owned(),
            exec_id: exec_id.to_owned(),
            stdin,
            stdout,
            stderr,
        }
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: u32) -> Result<(), CallError> {
        let request = SignalContainerRequest {
            container_id: self.container_id.clone(),
            exec_id: self.exec_id.clone(),
            signal,
            ..SignalContainerRequest::default()
        };
        self.guest
            .call(async |agent, context| agent.signal_container(context, &request).await)
            .map(drop)
    }

    /// Waits for its end.
    pub(crate) fn wait(&self) -> Result<WaitContainerResponse, CallError> {
        let request = WaitContainerRequest {
            container_id: self.container_id.clone(),
            exec_id: self.exec_id.clone(),
            ..WaitContainerRequest::default()
        };
        self.guest
            .call(async |agent, context| agent.wait_container(context, &request).await)
    }

    /// Sets the size of its terminal.
    pub(crate) fn resize(&self, size: TerminalSize) -> Result<(), CallError> {
        let request = ResizeTerminalRequest {
            container_id: self.container_id.clone(),
            exec_id: self.exec_id.clone(),
            size: Some(size).into(),
            ..ResizeTerminalRequest::default()
        };
        self.guest
            .call(async |agent, context| agent.resize_terminal(context, &request).await)
            .map(drop)
    }

    /// Has it forgotten.
    pub(crate) fn delete(&self) -> Result<(), CallError> {
        let request = DeleteExecRequest {
            container_id: self.container_id.clone(),
            exec_id: self.exec_id.clone(),
            ..DeleteExecRequest::default()
        };
        self.guest
            .call(async |agent, context| agent.delete_exec(context, &request).await)
            .map(drop)
    }

    /// Reads stdout until what was read ends with `text`.
    pub(crate) fn read_until(&mut self, text: &str) -> String {
        read_until(&mut self.stdout, text)
    }

    /// Drains the outputs, waits for the end and has it forgotten.
    pub(crate) fn finish(self) -> Output {
        let stdout = read_all(self.stdout.try_clone().expect("stdout"));
        let stderr = self
            .stderr
            .as_ref()
            .map(|stderr| read_all(stderr.try_clone().expect("stderr")));
        let exit = self.wait().expect("to wait");
        let stdout = stdout.join().expect("stdout");
        let stderr = stderr.map(|stderr| stderr.join().expect("stderr"));
        self.delete().expect("to delete the process");
        Output {
            status: exit.exit_status,
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: String::from_utf8_lossy(&stderr.unwrap_or_default()).into_owned(),
            oom_killed: exit.oom_killed,
        }
    }
}

fn read_until(stream: &mut UnixStream, text: &str) -> String {
    let mut read = Vec::new();
    let mut byte = [0];
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    while !read.ends_with(text.as_bytes()) {
        let count = stream.read(&mut byte).unwrap_or(0);
        let so_far = String::from_utf8_lossy(&read);
        assert!(count == 1, "{text:?} expected, got {so_far:?}");
        read.push(byte[0]);
    }
    String::from_utf8_lossy(&read).into_owned()
}

fn read_all(mut stream: UnixStream) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        stream
            .read_to_end(&mut bytes)
            .expect("the end of the stream");
        bytes
    })
}

/// A specification as container engines write it, for a command.
pub(crate) fn spec(args: &[&str]) -> Value {
    let capabilities = json!([
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_KILL",
        "CAP_MKNOD",
        "CAP_NET_BIND_SERVICE",
        "CAP_SETFCAP",
        "CAP_SETGID",
        "CAP_SETPCAP",
        "CAP_SETUID",
        "CAP_SYS_CHROOT"
    ]);
    json!({
        "ociVersion": "1.2.0",
        "root": {"path": "/run/nacre/share/rootfs"},
        "process": {
            "args": args,
            "cwd": "/",
            "env": ["PATH=/usr/bin:/bin", "TERM=xterm"],
            "user": {"uid": 0, "gid": 0},
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities
            },
            "noNewPrivileges": true
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}
        ],
        "linux": {
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                {"type": "network"}, {"type": "cgroup"}
            ],
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
            "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"]
        }
    })
}
