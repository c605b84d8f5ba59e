//! Each call of the Task service: its good answer, and the refusal that it names
//! when it comes too early, twice, too late, or for what is not there.

use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest, StartRequest,
    StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse, Status,
    UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::ttrpc::Code;
use nacre_tests::TestBundle;
use nacre_tests::shim::{Connection, Refusal, Shim};
use serde_json::json;

/// The calls for one container, each with what the tests vary.
#[derive(Clone)]
pub(crate) struct Calls {
    pub(crate) connection: Connection,
    pub(crate) id: String,
    pub(crate) bundle: String,
}

const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

type Answer<T> = Result<T, Refusal>;

impl Calls {
    pub(crate) fn new(shim: &Shim, id: &str) -> Self {
        Self {
            connection: shim.connect(),
            id: id.to_owned(),
            bundle: shim.bundle().path().to_str().unwrap().to_owned(),
        }
    }

    /// The same calls for a container that was never made.
    pub(crate) fn of_nobody(&self) -> Self {
        Self {
            id: "nobody".into(),
            ..self.clone()
        }
    }

    pub(crate) fn create(&self) -> Answer<CreateTaskResponse> {
        self.connection.task(
            "Create",
            &CreateTaskRequest {
                id: self.id.clone(),
                bundle: self.bundle.clone(),
                ..Default::default()
            },
        )
    }

    pub(crate) fn start(&self, exec: &str) -> Answer<StartResponse> {
        self.connection.task(
            "Start",
            &StartRequest {
                id: self.id.clone(),
                exec_id: exec.into(),
                ..Default::default()
            },
        )
    }

    pub(crate) fn state(&self, exec: &str) -> Answer<StateResponse> {
        self.connection.task(
            "State",
            &StateRequest {
                id: self.id.clone(),
                exec_id: exec.into(),
                ..Default::default()
            },
        )
    }

    pub(crate) fn delete(&self, exec: &str) -> Answer<DeleteResponse> {
        self.connection.task(
            "Delete",
            &DeleteRequest {
                id: self.id.clone(),
                exec_id: exec.into(),
                ..Default::default()
            },
        )
    }

    pub(crate) fn wait(&self, exec: &str) -> Answer<WaitResponse> {
        self.connection.task(
            "Wait",
            &WaitRequest {
                id: self.id.clone(),
                exec_id: exec.into(),
                ..Default::default()
            },
        )
    }

    pub(crate) fn kill(&self, exec: &str, signal: u32, all: bool) -> Answer<Empty> {
        self.connection.task(
            "Kill",
            &KillRequest {
                id: self.id.clone(),
                exec_id: exec.into(),
                signal,
                all,
                ..Default::default()
            },
        )
    }

    /// Adds a process of its own that runs a line of shell.
    pub(crate) fn exec(&self, exec: &str, script: &str) -> Answer<Empty> {
        let process = json!({
            "user": { "uid": 0, "gid": 0 }, "cwd": "/", "env": ["PATH=/bin"],
            "args": ["sh", "-c", script], "noNewPrivileges": true
        });
        self.exec_as(exec, PROCESS, &process.to_string())
    }

    /// Adds a process whose program is not there.
    pub(crate) fn exec_missing(&self, exec: &str) -> Answer<Empty> {
        let process = json!({
            "user": { "uid": 0, "gid": 0 }, "cwd": "/", "env": ["PATH=/bin"],
            "args": ["/bin/missing"], "noNewPrivileges": true
        });
        self.exec_as(exec, PROCESS, &process.to_string())
    }

    /// Adds a process whose specification may be anything.
    pub(crate) fn exec_as(&self, exec: &str, type_url: &str, spec: &str) -> Answer<Empty> {
        self.connection.task(
            "Exec",
            &ExecProcessRequest {
                id: self.id.clone(),
                exec_id: exec.into(),
                spec: Some(any(type_url, spec)).into(),
                ..Default::default()
            },
        )
    }

    pub(crate) fn pids(&self) -> Answer<PidsResponse> {
        self.connection.task(
            "Pids",
            &PidsRequest {
                id: self.id.clone(),
                ..Default::default()
            },
        )
    }

    pub(crate) fn pause(&self) -> Answer<Empty> {
        self.connection.task(
            "Pause",
            &PauseRequest {
                id: self.id.clone(),
                ..Default::default()
            },
        )
    }

    pub(crate) fn resume(&self) -> Answer<Empty> {
        self.connection.task(
            "Resume",
            &ResumeRequest {
                id: self.id.clone(),
                ..Default::default()
            },
        )
    }

    /// Sets resources, given as JSON.
    pub(crate) fn update(&self, resources: &str) -> Answer<Empty> {
        let type_url = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";
        self.connection.task(
            "Update",
            &UpdateTaskRequest {
                id: self.id.clone(),
                resources: Some(any(type_url, resources)).into(),
                ..Default::default()
            },
        )
    }

    pub(crate) fn stats(&self) -> Answer<StatsResponse> {
        self.connection.task(
            "Stats",
            &StatsRequest {
                id: self.id.clone(),
                ..Default::default()
            },
        )
    }

    pub(crate) fn connect(&self) -> Answer<ConnectResponse> {
        self.connection.task(
            "Connect",
            &ConnectRequest {
                id: self.id.clone(),
                ..Default::default()
            },
        )
    }

    pub(crate) fn resize(&self, exec: &str) -> Answer<Empty> {
        self.connection.task(
            "ResizePty",
            &ResizePtyRequest {
                id: self.id.clone(),
                exec_id: exec.into(),
                width: 80,
                height: 24,
                ..Default::default()
            },
        )
    }

    pub(crate) fn close_input(&self, exec: &str) -> Answer<Empty> {
        self.connection.task(
            "CloseIO",
            &CloseIORequest {
                id: self.id.clone(),
                exec_id: exec.into(),
                stdin: true,
                ..Default::default()
            },
        )
    }

    pub(crate) fn checkpoint(&self) -> Answer<Empty> {
        self.connection.task(
            "Checkpoint",
            &CheckpointTaskRequest {
                id: self.id.clone(),
                path: self.bundle.clone(),
                ..Default::default()
            },
        )
    }

    pub(crate) fn status(&self, exec: &str) -> Status {
        self.state(exec).unwrap().status.enum_value().unwrap()
    }
}

fn any(type_url: &str, value: &str) -> Any {
    Any {
        type_url: type_url.into(),
        value: value.into(),
        ..Default::default()
    }
}

/// A bundle whose process waits; TERM ends it with status 9.
pub(crate) fn waiting() -> TestBundle {
    TestBundle::sh("trap 'exit 9' TERM; while true; do sleep 0.1; done")
}

/// What a row expects of a call.
pub(crate) type Expected = Result<(), Code>;

/// Calls and what they are to answer, one after the other. All of them are made;
/// what was answered otherwise is told at the end.
pub(crate) struct Table {
    /// runc's shim refuses in the same places, but often without saying what kind
    /// of refusal it is.
    any_code: bool,
    wrong: Vec<String>,
}

impl Table {
    pub(crate) fn new(any_code: bool) -> Self {
        Self {
            any_code,
            wrong: Vec::new(),
        }
    }

    pub(crate) fn row<T>(&mut self, what: &str, answer: Answer<T>, expected: Expected) {
        let is_right = match (&answer, expected) {
            (Ok(_), Ok(())) => true,
            (Err(refusal), Err(code)) => refusal.code == code || self.any_code,
            _ => false,
        };
        if !is_right {
            let answer = answer.map(|_| ());
            self.wrong
                .push(format!("{what}: {answer:?} instead of {expected:?}"));
        }
    }

    pub(crate) fn fact(&mut self, what: &str, is_so: bool) {
        if !is_so {
            self.wrong.push(format!("not so: {what}"));
        }
    }

    pub(crate) fn assert_right(self) {
        assert!(self.wrong.is_empty(), "{:#?}", self.wrong);
    }
}
