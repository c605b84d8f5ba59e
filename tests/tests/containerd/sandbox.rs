//! The Sandbox API of the shim itself, call by call. What containerd does with it
//! is what the tests of [`crate::pods`] say of `nacre-sandbox`.

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest,
    PlatformResponse, SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest,
    SandboxStatusResponse, ShutdownSandboxRequest, ShutdownSandboxResponse, StartSandboxRequest,
    StartSandboxResponse, StopSandboxRequest, StopSandboxResponse, WaitSandboxRequest,
    WaitSandboxResponse,
};
use containerd_shim_protos::ttrpc::Code;
use nacre_tests::TestBundle;
use nacre_tests::ctr::new_id;
use nacre_tests::proc;
use nacre_tests::shim::{Connection, Refusal, Shim};

use crate::calls::{Calls, Table, waiting};
use crate::setting::{NACRE, NACRE_ONCE, Setting, Test};

pub(crate) const TESTS: &[Test] = &[
    Test {
        name: "each_call_of_the_sandbox_api_answers_as_it_says",
        places: NACRE,
        check: each_call,
    },
    Test {
        name: "calls_of_the_sandbox_api_during_its_stop_come_back",
        places: NACRE_ONCE,
        check: during_the_stop,
    },
];

/// The calls for one sandbox.
struct Sandbox<'a> {
    connection: &'a Connection,
    id: String,
    bundle: String,
}

type Answer<T> = Result<T, Refusal>;

impl Sandbox<'_> {
    fn call<Q: Message, A: Message>(&self, method: &str, request: &Q) -> Answer<A> {
        self.connection
            .call("containerd.runtime.sandbox.v1.Sandbox", method, request)
    }

    fn create(&self) -> Answer<CreateSandboxResponse> {
        self.call(
            "CreateSandbox",
            &CreateSandboxRequest {
                sandbox_id: self.id.clone(),
                bundle_path: self.bundle.clone(),
                ..Default::default()
            },
        )
    }

    fn start(&self) -> Answer<StartSandboxResponse> {
        self.call(
            "StartSandbox",
            &StartSandboxRequest {
                sandbox_id: self.id.clone(),
                ..Default::default()
            },
        )
    }

    fn platform(&self) -> Answer<PlatformResponse> {
        self.call(
            "Platform",
            &PlatformRequest {
                sandbox_id: self.id.clone(),
                ..Default::default()
            },
        )
    }

    fn stop(&self) -> Answer<StopSandboxResponse> {
        self.call(
            "StopSandbox",
            &StopSandboxRequest {
                sandbox_id: self.id.clone(),
                timeout_secs: 30,
                ..Default::default()
            },
        )
    }

    fn wait(&self) -> Answer<WaitSandboxResponse> {
        self.call(
            "WaitSandbox",
            &WaitSandboxRequest {
                sandbox_id: self.id.clone(),
                ..Default::default()
            },
        )
    }

    fn status(&self) -> Answer<SandboxStatusResponse> {
        self.call(
            "SandboxStatus",
            &SandboxStatusRequest {
                sandbox_id: self.id.clone(),
                verbose: true,
                ..Default::default()
            },
        )
    }

    fn ping(&self) -> Answer<PingResponse> {
        self.call(
            "PingSandbox",
            &PingRequest {
                sandbox_id: self.id.clone(),
                ..Default::default()
            },
        )
    }

    fn metrics(&self) -> Answer<SandboxMetricsResponse> {
        self.call(
            "SandboxMetrics",
            &SandboxMetricsRequest {
                sandbox_id: self.id.clone(),
                ..Default::default()
            },
        )
    }

    fn shut_down(&self) -> Answer<ShutdownSandboxResponse> {
        self.call(
            "ShutdownSandbox",
            &ShutdownSandboxRequest {
                sandbox_id: self.id.clone(),
                ..Default::default()
            },
        )
    }
}

impl<'a> Sandbox<'a> {
    fn of(calls: &'a Calls) -> Self {
        Self {
            connection: &calls.connection,
            id: calls.id.clone(),
            bundle: calls.bundle.clone(),
        }
    }
}

/// Every call at once with the stop: none may hang, whatever it answers.
fn during_the_stop(setting: &mut Setting) {
    let id = new_id();
    let shim = Shim::new(setting.containerd, setting.runtime, waiting(), &id);
    let calls = Calls::new(&shim, &id);
    let sandbox = Sandbox::of(&calls);
    sandbox.create().unwrap();
    sandbox.start().unwrap();
    let container = Calls {
        id: "in-it".into(),
        ..calls.clone()
    };
    container.create().unwrap();
    container.start("").unwrap();
    std::thread::scope(|scope| {
        let others: [fn(&Sandbox, &Calls); 10] = [
            |sandbox, _| drop(sandbox.create()),
            |sandbox, _| drop(sandbox.start()),
            |sandbox, _| drop(sandbox.platform()),
            |sandbox, _| drop(sandbox.status()),
            |sandbox, _| drop(sandbox.ping()),
            |sandbox, _| drop(sandbox.metrics()),
            |sandbox, _| drop(sandbox.stop().unwrap()),
            |sandbox, _| drop(sandbox.wait().unwrap()),
            |_, container| drop(container.kill("", 9, true)),
            |_, container| drop(container.wait("").unwrap()),
        ];
        for other in others {
            let (sandbox, container) = (&sandbox, &container);
            scope.spawn(move || (0..4).for_each(|_| other(sandbox, container)));
        }
    });
    assert_eq!(sandbox.wait().unwrap().exit_status, 0);
    assert!(proc::named("nacre-vmm").is_empty());
    assert_eq!(container.delete("").unwrap().exit_status, 137);
    sandbox.shut_down().unwrap();
    shim.wait_until_gone(&calls.connection);
}

fn each_call(setting: &mut Setting) {
    let id = new_id();
    let bundle = TestBundle::sh("exit 4");
    let shim = Shim::new(setting.containerd, setting.runtime, bundle, &id);
    let calls = Calls::new(&shim, &id);
    let sandbox = Sandbox::of(&calls);
    let mut table = Table::new(false);
    unknown(&sandbox, &mut table);
    created(&sandbox, &mut table);
    running(&sandbox, &mut table);
    outlives_its_containers(&sandbox, &calls, &mut table);
    stopped(&sandbox, &mut table);
    table.assert_right();
    sandbox.shut_down().unwrap();
    shim.wait_until_gone(&calls.connection);
}

fn unknown(sandbox: &Sandbox, table: &mut Table) {
    let gone = Err(Code::NOT_FOUND);
    table.row("Start of none", sandbox.start(), gone);
    table.row("Stop of none", sandbox.stop(), gone);
    table.row("Wait for none", sandbox.wait(), gone);
    table.row("Status of none", sandbox.status(), gone);
    table.row("Ping of none", sandbox.ping(), gone);
    table.row("Platform of none", sandbox.platform(), gone);
    table.row("Metrics of none", sandbox.metrics(), gone);
}

fn created(sandbox: &Sandbox, table: &mut Table) {
    table.row("Create", sandbox.create(), Ok(()));
    table.row("Create twice", sandbox.create(), Err(Code::ALREADY_EXISTS));
    table.row("Ping before start", sandbox.ping(), Ok(()));
    table.row(
        "Metrics before start",
        sandbox.metrics(),
        Err(Code::FAILED_PRECONDITION),
    );
    let platform = sandbox.platform();
    let (os, architecture) = platform.as_ref().map_or(("", ""), |answer| {
        (
            answer.platform.os.as_str(),
            answer.platform.architecture.as_str(),
        )
    });
    table.fact("a Linux", (os, architecture) == ("linux", "amd64"));
    table.fact("no machine yet", proc::named("nacre-vmm").is_empty());
}

fn running(sandbox: &Sandbox, table: &mut Table) {
    let started = sandbox.start();
    table.fact(
        "Start says since when",
        started
            .as_ref()
            .is_ok_and(|started| started.pid > 0 && started.created_at.seconds > 0),
    );
    table.row("Start", started, Ok(()));
    table.fact("one machine", proc::named("nacre-vmm").len() == 1);
    table.row(
        "Start twice",
        sandbox.start(),
        Err(Code::FAILED_PRECONDITION),
    );
    table.row(
        "Create of one that runs",
        sandbox.create(),
        Err(Code::ALREADY_EXISTS),
    );
    table.row("Ping", sandbox.ping(), Ok(()));
    table.row("Metrics", sandbox.metrics(), Ok(()));
    let status = sandbox.status();
    table.fact(
        "ready",
        status.as_ref().is_ok_and(|status| {
            status.state == "SANDBOX_READY"
                && status.pid > 0
                && status.created_at.seconds > 0
                && !status.info.is_empty()
        }),
    );
    table.row("Status", status, Ok(()));
}

/// The machine belongs to the sandbox: a container comes, goes and comes again.
fn outlives_its_containers(sandbox: &Sandbox, calls: &Calls, table: &mut Table) {
    for round in ["first", "second"] {
        let container = Calls {
            id: round.into(),
            ..calls.clone()
        };
        table.row("Create in it", container.create(), Ok(()));
        table.row("Start in it", container.start(""), Ok(()));
        let ended = container.wait("");
        table.fact(
            round,
            ended.as_ref().is_ok_and(|ended| ended.exit_status == 4),
        );
        table.row("Delete in it", container.delete(""), Ok(()));
        table.row("Ping after it", sandbox.ping(), Ok(()));
        table.fact("still one machine", proc::named("nacre-vmm").len() == 1);
    }
}

fn stopped(sandbox: &Sandbox, table: &mut Table) {
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| sandbox.wait());
        table.row("Stop", sandbox.stop(), Ok(()));
        table.row("Wait", waiter.join().unwrap(), Ok(()));
    });
    table.row("Stop twice", sandbox.stop(), Ok(()));
    table.row("Wait after it", sandbox.wait(), Ok(()));
    table.row("Ping after it", sandbox.ping(), Err(Code::UNAVAILABLE));
    table.row(
        "Start after it",
        sandbox.start(),
        Err(Code::FAILED_PRECONDITION),
    );
    table.row(
        "Metrics after it",
        sandbox.metrics(),
        Err(Code::FAILED_PRECONDITION),
    );
    table.fact("no machine", proc::named("nacre-vmm").is_empty());
    let status = sandbox.status();
    table.fact(
        "not ready",
        status
            .as_ref()
            .is_ok_and(|status| status.state == "SANDBOX_NOTREADY" && status.exited_at.seconds > 0),
    );
    table.row("Status after it", status, Ok(()));
}
