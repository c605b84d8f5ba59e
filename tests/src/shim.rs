//! A shim that is called without containerd, in the way containerd does it:
//! `start` on its command line, then ttrpc on its socket.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use containerd_shim_protos::api::ShutdownRequest;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::ttrpc::{self, Client, Code};

use crate::containerd::{NAMESPACE, Version};
use crate::{Containerd, Running, Runtime, TestBundle, patience, sh};

/// A request that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What kind of refusal.
    pub code: Code,
    /// The words for it.
    pub message: String,
}

/// What `start` is told beside its command line.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// `MAX_SHIM_VERSION`.
    pub max_version: Option<&'static str>,
    /// Standard input.
    pub stdin: Vec<u8>,
}

/// A shim of one bundle.
#[derive(Debug)]
pub struct Shim<'a> {
    containerd: &'a Containerd,
    runtime: Runtime,
    id: String,
    bundle: TestBundle,
    /// Its log, which it writes to a fifo in the bundle.
    log: Running,
}

impl<'a> Shim<'a> {
    /// Prepares what containerd prepares. The bundle is to have its own root file
    /// system; its configuration is written.
    #[must_use]
    pub fn new(containerd: &'a Containerd, runtime: Runtime, bundle: TestBundle, id: &str) -> Self {
        bundle.write();
        let log = bundle.path().join("log");
        sh(&format!("mkfifo -m 0700 {}", log.display()));
        let mut reader = Command::new("cat");
        reader.arg(&log);
        Self {
            containerd,
            runtime,
            id: id.to_owned(),
            bundle,
            log: Running::start(reader),
        }
    }

    /// Its bundle.
    #[must_use]
    pub fn bundle(&self) -> &TestBundle {
        &self.bundle
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        self.log.said()
    }

    /// Its program with an action; events are to go to containerd.
    fn program(&self, action: &str) -> Command {
        let socket = self.containerd.socket();
        let mut command = self.containerd.program(self.runtime.shim());
        command
            .current_dir(self.bundle.path())
            .args(["-namespace", NAMESPACE, "-id", &self.id, "-publish-binary"])
            .arg(self.containerd.program("containerd").get_program())
            .arg("-address")
            .arg(&socket)
            .arg(action)
            .env("TTRPC_ADDRESS", format!("{}.ttrpc", socket.display()))
            .env("GRPC_ADDRESS", &socket)
            .env("NAMESPACE", NAMESPACE);
        command
    }

    /// Calls its program with an action.
    ///
    /// # Panics
    /// When there is no such program.
    #[must_use]
    pub fn call_program(&self, action: &str, caller: &Caller) -> Output {
        let mut command = self.program(action);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(version) = caller.max_version {
            command.env("MAX_SHIM_VERSION", version);
        }
        let mut child = command.spawn().expect("the shim in PATH");
        // One that does not read it has ended before.
        let _ = child.stdin.take().unwrap().write_all(&caller.stdin);
        child.wait_with_output().unwrap()
    }

    /// Calls `start` and kills it just before its answer. Returns the address that it would have
    /// told.
    ///
    /// # Panics
    /// When it does not come to that.
    #[must_use]
    pub fn kill_start_before_its_answer(&self) -> String {
        // Nobody reads, and there is no space: it waits.
        let (_reader, full) = rustix::pipe::pipe().unwrap();
        let size = rustix::pipe::fcntl_setpipe_size(&full, 4096).unwrap();
        rustix::io::write(&full, &vec![0; size]).unwrap();
        let mut command = self.program("start");
        command.stdin(Stdio::null()).stdout(full);
        let mut start = command.spawn().expect("the shim in PATH");
        let told = self.bundle.path().join("address");
        crate::wait_until("start answers", || told.exists());
        start.kill().unwrap();
        start.wait().unwrap();
        std::fs::read_to_string(told).unwrap()
    }

    /// Starts it as this containerd does and connects to it.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn connect(&self) -> Connection {
        let caller = Caller {
            max_version: Some("2"),
            ..Caller::default()
        };
        let output = self.call_program("start", &caller);
        assert!(
            output.status.success(),
            "{}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        let reply = String::from_utf8(output.stdout).expect("text");
        let task = match self.containerd.version() {
            Version::One => "containerd.task.v2.Task",
            Version::Two => "containerd.task.v3.Task",
        };
        Connection::new(&address(&reply), task)
    }

    /// Has it shut down and waits until its socket is gone.
    pub fn shut_down(self, connection: &Connection) {
        let request = ShutdownRequest {
            id: self.id.clone(),
            ..ShutdownRequest::default()
        };
        // It may be gone before its answer is.
        let _ = connection.task::<_, containerd_shim_protos::api::Empty>("Shutdown", &request);
        self.wait_until_gone(connection);
    }

    /// Waits until its socket is gone.
    pub fn wait_until_gone(self, connection: &Connection) {
        crate::wait_until("the shim is gone", || !connection.path().exists());
    }
}

impl Drop for Shim<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the shim\n{}", self.log());
        }
    }
}

/// The address in a reply that is JSON or nothing but the address.
#[must_use]
pub fn address(reply: &str) -> String {
    let json = serde_json::from_str::<serde_json::Value>(reply).ok();
    let address = json.and_then(|json| Some(json["address"].as_str()?.to_owned()));
    address.unwrap_or_else(|| reply.trim().to_owned())
}

/// A connection to a shim.
#[derive(Clone)]
pub struct Connection {
    client: Client,
    address: String,
    task: &'static str,
    trace_parent: Option<String>,
}

impl Connection {
    /// Connects; calls of [`Connection::task`] go to the service `task`.
    ///
    /// # Panics
    /// When nobody serves there.
    #[must_use]
    pub fn new(address: &str, task: &'static str) -> Self {
        Self {
            client: Client::connect(address).unwrap_or_else(|error| panic!("{address}: {error}")),
            address: address.to_owned(),
            task,
            trace_parent: None,
        }
    }

    /// Makes all calls a part of somebody's trace, as containerd does when it keeps one:
    /// `parent` is `traceparent` of W3C's Trace Context.
    #[must_use]
    pub fn traced(mut self, parent: &str) -> Self {
        self.trace_parent = Some(parent.to_owned());
        self
    }

    /// The socket's path.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.address.trim_start_matches("unix://").into()
    }

    /// Calls a method of the Task service.
    ///
    /// # Errors
    /// The shim's.
    pub fn task<Q: Message, A: Message>(&self, method: &str, request: &Q) -> Result<A, Refusal> {
        self.call(self.task, method, request)
    }

    /// Calls a method.
    ///
    /// # Errors
    /// The shim's.
    ///
    /// # Panics
    /// When there is no answer in time, or none that can be read.
    pub fn call<Q: Message, A: Message>(
        &self,
        service: &str,
        method: &str,
        request: &Q,
    ) -> Result<A, Refusal> {
        let metadata = self
            .trace_parent
            .iter()
            .map(|parent| ttrpc::proto::KeyValue {
                key: "traceparent".into(),
                value: parent.clone(),
                ..Default::default()
            });
        let request = ttrpc::Request {
            metadata: metadata.collect(),
            service: service.to_owned(),
            method: method.to_owned(),
            timeout_nano: i64::try_from(patience().as_nanos()).unwrap(),
            payload: request.write_to_bytes().unwrap(),
            ..ttrpc::Request::default()
        };
        match self.client.request(request) {
            Ok(response) => Ok(A::parse_from_bytes(&response.payload).expect("an answer")),
            Err(ttrpc::Error::RpcStatus(status)) => Err(Refusal {
                code: status.code(),
                message: status.message,
            }),
            Err(error) => panic!("{method}: {error}"),
        }
    }
}
