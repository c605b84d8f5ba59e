//! The shim itself, called without containerd: the forms of its first reply, and
//! what it answers to each call in each state of a container.

use std::path::Path;

use containerd_shim_protos::api::Status;
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::ttrpc::Code;
use nacre_tests::containerd::NAMESPACE;
use nacre_tests::ctr::new_id;
use nacre_tests::shim::{Caller, Shim, address};
use nacre_tests::{count, proc, wait_until};

use crate::calls::{Calls, Table, waiting};
use crate::setting::{EVERYWHERE, NACRE, ONE_VERSION, Setting, Test};

pub(crate) const TESTS: &[Test] = &[
    Test {
        name: "a_shim_replies_to_start_in_the_form_that_its_caller_knows",
        places: EVERYWHERE,
        check: bootstrap,
    },
    Test {
        name: "a_start_that_is_killed_before_its_answer_leaves_no_shim",
        places: NACRE,
        check: unanswered,
    },
    Test {
        name: "each_call_answers_as_its_interface_says",
        places: EVERYWHERE,
        check: each_call,
    },
    Test {
        name: "calls_during_a_kill_come_back",
        places: ONE_VERSION,
        check: during_a_kill,
    },
    Test {
        name: "execs_let_a_shim_not_grow",
        places: ONE_VERSION,
        check: many_execs,
    },
];

fn bootstrap(setting: &mut Setting) {
    let id = new_id();
    let shim = Shim::new(setting.containerd, setting.runtime, waiting(), &id);
    let mut addresses = Vec::new();
    for (max_version, version) in [(None, None), (Some("2"), Some(2)), (Some("3"), Some(3))] {
        let caller = Caller {
            max_version,
            ..Caller::default()
        };
        let output = shim.call_program("start", &caller);
        let reply = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{max_version:?}: {output:?}");
        let said = serde_json::from_str::<serde_json::Value>(&reply).ok();
        // runc's knows but one form.
        if setting.runtime.is_nacre() {
            let said = said.and_then(|said| said["version"].as_i64());
            assert_eq!(said, version, "{reply}");
        }
        addresses.push(address(&reply));
    }
    if setting.runtime.is_nacre() {
        addresses.push(by_message(&shim, &id));
    }
    // A second start of one that runs leads to the same one.
    assert!(
        addresses.iter().all(|other| *other == addresses[0]),
        "{addresses:?}"
    );
    let calls = Calls::new(&shim, &id);
    let connected = calls.connect().unwrap();
    assert_ne!(connected.shim_pid, 0, "{connected:?}");
    shim.shut_down(&calls.connection);
}

/// containerd does not know that there was a shim, so nobody would clean up after it.
fn unanswered(setting: &mut Setting) {
    let id = new_id();
    let shim = Shim::new(setting.containerd, setting.runtime, waiting(), &id);
    let address = shim.kill_start_before_its_answer();
    let socket = address.strip_prefix("unix://").unwrap();
    wait_until("nothing is left of it", || {
        proc::named("containerd-shim").is_empty() && !Path::new(socket).exists()
    });
    wait_until("its log says why", || {
        shim.log().contains("without handing over")
    });
}

/// As containerd 2.3 asks.
fn by_message(shim: &Shim, id: &str) -> String {
    let params = BootstrapParams {
        instance_id: id.into(),
        namespace: NAMESPACE.into(),
        ..BootstrapParams::default()
    };
    let caller = Caller {
        max_version: Some("2"),
        stdin: params.write_to_bytes().unwrap(),
    };
    let output = shim.call_program("start", &caller);
    let result = BootstrapResult::parse_from_bytes(&output.stdout).expect("a message");
    assert_eq!((result.version, result.protocol.as_str()), (3, "ttrpc"));
    result.address
}

fn each_call(setting: &mut Setting) {
    let id = new_id();
    let shim = Shim::new(setting.containerd, setting.runtime, waiting(), &id);
    let calls = Calls::new(&shim, &id);
    let mut table = Table::new(!setting.runtime.is_nacre());
    unknown(&calls.of_nobody(), &mut table);
    created(&calls, &mut table);
    running(&calls, &mut table);
    executed(&calls, &mut table);
    // runc's shim of 1.7 counts such execs wrongly, and ends by it.
    if setting.runtime.is_nacre() {
        refused_starts(&calls, &mut table);
    }
    paused(&calls, &mut table);
    stopped(&calls, &mut table);
    unknown(&calls, &mut table);
    table.assert_right();
    shim.shut_down(&calls.connection);
}

fn unknown(calls: &Calls, table: &mut Table) {
    let gone = Err(Code::NOT_FOUND);
    table.row("State of nobody", calls.state(""), gone);
    table.row("Start of nobody", calls.start(""), gone);
    table.row("Delete of nobody", calls.delete(""), gone);
    table.row("Wait for nobody", calls.wait(""), gone);
    table.row("Kill of nobody", calls.kill("", 9, false), gone);
    table.row("Kill of all of nobody", calls.kill("", 9, true), gone);
    table.row("Exec in nobody", calls.exec("e", "true"), gone);
    table.row("Pids of nobody", calls.pids(), gone);
    table.row("Pause of nobody", calls.pause(), gone);
    table.row("Resume of nobody", calls.resume(), gone);
    table.row("Update of nobody", calls.update("{}"), gone);
    table.row("Stats of nobody", calls.stats(), gone);
    table.row("ResizePty of nobody", calls.resize(""), gone);
    table.row("CloseIO of nobody", calls.close_input(""), gone);
}

fn created(calls: &Calls, table: &mut Table) {
    let answer = calls.create();
    table.fact(
        "Create gives a process",
        answer.as_ref().is_ok_and(|made| made.pid > 0),
    );
    table.row("Create", answer, Ok(()));
    table.row("Create twice", calls.create(), Err(Code::ALREADY_EXISTS));
    table.fact("created", calls.status("") == Status::CREATED);
    table.row(
        "Pause before start",
        calls.pause(),
        Err(Code::FAILED_PRECONDITION),
    );
    table.row(
        "Resume before start",
        calls.resume(),
        Err(Code::FAILED_PRECONDITION),
    );
    table.row("Pids before start", calls.pids(), Ok(()));
    let answer = calls.start("");
    table.fact(
        "Start gives the process",
        answer.as_ref().is_ok_and(|made| made.pid > 0),
    );
    table.row("Start", answer, Ok(()));
}

fn running(calls: &Calls, table: &mut Table) {
    let early = Err(Code::FAILED_PRECONDITION);
    table.fact("running", calls.status("") == Status::RUNNING);
    table.row("Start twice", calls.start(""), early);
    table.row(
        "Create of one that runs",
        calls.create(),
        Err(Code::ALREADY_EXISTS),
    );
    table.row("Delete of one that runs", calls.delete(""), early);
    table.row("Resume of one that runs", calls.resume(), early);
    let pids = calls.pids();
    table.fact(
        "Pids has one",
        pids.as_ref().is_ok_and(|pids| {
            pids.processes.iter().all(|one| one.pid > 0) && !pids.processes.is_empty()
        }),
    );
    table.row("Pids", pids, Ok(()));
    let stats = calls.stats();
    let kind = stats.as_ref().map(|stats| stats.stats.type_url.clone());
    table.fact(
        "Stats are of cgroup v2",
        kind == Ok("io.containerd.cgroups.v2.Metrics".into()),
    );
    table.row("Stats", stats, Ok(()));
    table.row(
        "Update",
        calls.update(r#"{"memory":{"limit":67108864},"pids":{"limit":100}}"#),
        Ok(()),
    );
    table.row(
        "Update with what is none",
        calls.update("no JSON"),
        Err(Code::INVALID_ARGUMENT),
    );
    let connected = calls.connect();
    table.fact(
        "Connect knows both",
        connected
            .as_ref()
            .is_ok_and(|both| both.shim_pid > 0 && both.task_pid > 0),
    );
    table.row("Connect", connected, Ok(()));
    table.row("CloseIO", calls.close_input(""), Ok(()));
    table.row("CloseIO twice", calls.close_input(""), Ok(()));
    table.row("Checkpoint", calls.checkpoint(), Err(Code::UNIMPLEMENTED));
    table.row(
        "Kill with no signal there is",
        calls.kill("", 999, false),
        Err(Code::INVALID_ARGUMENT),
    );
}

fn executed(calls: &Calls, table: &mut Table) {
    let (gone, early) = (Err(Code::NOT_FOUND), Err(Code::FAILED_PRECONDITION));
    table.row("State of no exec", calls.state("e"), gone);
    table.row("Kill of no exec", calls.kill("e", 9, false), gone);
    table.row("Delete of no exec", calls.delete("e"), gone);
    table.row("Wait for no exec", calls.wait("e"), gone);
    table.row(
        "Exec of what is none",
        calls.exec_as("bad", "x", "no JSON"),
        Err(Code::INVALID_ARGUMENT),
    );
    table.row("State after it", calls.state("bad"), gone);
    table.row("Exec", calls.exec("e", "sleep 1; exit 7"), Ok(()));
    table.row(
        "Exec twice",
        calls.exec("e", "true"),
        Err(Code::ALREADY_EXISTS),
    );
    table.fact("exec created", calls.status("e") == Status::CREATED);
    table.row("Start of exec", calls.start("e"), Ok(()));
    table.row("Delete of an exec that runs", calls.delete("e"), early);
    let ended = calls.wait("e");
    table.fact(
        "exec ended with 7",
        ended.as_ref().is_ok_and(|ended| ended.exit_status == 7),
    );
    table.row("Wait for exec", ended, Ok(()));
    table.fact("exec stopped", calls.status("e") == Status::STOPPED);
    table.row("Kill of an ended exec", calls.kill("e", 9, false), gone);
    let deleted = calls.delete("e");
    table.fact(
        "deleted with 7",
        deleted
            .as_ref()
            .is_ok_and(|deleted| deleted.exit_status == 7),
    );
    table.row("Delete of exec", deleted, Ok(()));
    table.row("Delete of exec twice", calls.delete("e"), gone);
    table.row("Exec of the same name", calls.exec("e", "true"), Ok(()));
    table.row("Delete of one never started", calls.delete("e"), Ok(()));
}

fn refused_starts(calls: &Calls, table: &mut Table) {
    table.row("Start of no exec", calls.start("r"), Err(Code::NOT_FOUND));
    table.row("Exec to start twice", calls.exec("r", "sleep 1"), Ok(()));
    table.row("Start once", calls.start("r"), Ok(()));
    table.row(
        "Start twice",
        calls.start("r"),
        Err(Code::FAILED_PRECONDITION),
    );
    table.row("Wait for it", calls.wait("r"), Ok(()));
    table.row(
        "Start after its end",
        calls.start("r"),
        Err(Code::FAILED_PRECONDITION),
    );
    table.row("Delete of it", calls.delete("r"), Ok(()));
    table.row("Exec of a missing program", calls.exec_missing("m"), Ok(()));
    table.row(
        "Start of a missing program",
        calls.start("m"),
        Err(Code::INVALID_ARGUMENT),
    );
    table.row("Delete of a missing program", calls.delete("m"), Ok(()));
}

fn paused(calls: &Calls, table: &mut Table) {
    let early = Err(Code::FAILED_PRECONDITION);
    table.row("Pause", calls.pause(), Ok(()));
    table.fact("paused", calls.status("") == Status::PAUSED);
    table.row("Pause twice", calls.pause(), early);
    table.row("Start of one paused", calls.start(""), early);
    table.row("Exec in one paused", calls.exec("p", "true"), early);
    table.row("Delete of one paused", calls.delete(""), early);
    table.row("Stats of one paused", calls.stats(), Ok(()));
    table.row("Resume", calls.resume(), Ok(()));
    table.row("Resume twice", calls.resume(), early);
    table.fact("running again", calls.status("") == Status::RUNNING);
}

fn stopped(calls: &Calls, table: &mut Table) {
    let late = Err(Code::FAILED_PRECONDITION);
    let waiting = calls.clone();
    let waiter = std::thread::spawn(move || waiting.wait(""));
    table.row("Kill", calls.kill("", 15, false), Ok(()));
    let ended = waiter.join().unwrap();
    table.fact(
        "ended with 9",
        ended.as_ref().is_ok_and(|ended| ended.exit_status == 9),
    );
    table.row("Wait", ended, Ok(()));
    let again = calls.wait("");
    table.fact(
        "again with 9",
        again.as_ref().is_ok_and(|ended| ended.exit_status == 9),
    );
    table.row("Wait twice", again, Ok(()));
    let state = calls.state("");
    table.fact(
        "stopped with 9",
        state
            .as_ref()
            .is_ok_and(|state| state.exit_status == 9 && state.status == Status::STOPPED.into()),
    );
    table.row(
        "Kill after the end",
        calls.kill("", 9, false),
        Err(Code::NOT_FOUND),
    );
    table.row("Start after the end", calls.start(""), late);
    table.row("Pause after the end", calls.pause(), late);
    table.row("Resume after the end", calls.resume(), late);
    table.row("Exec after the end", calls.exec("x", "true"), late);
    let deleted = calls.delete("");
    table.fact(
        "deleted with 9",
        deleted
            .as_ref()
            .is_ok_and(|deleted| deleted.exit_status == 9 && deleted.exited_at.seconds > 0),
    );
    table.row("Delete", deleted, Ok(()));
}

/// Every call at once with the kill: none may hang, whatever it answers.
fn during_a_kill(setting: &mut Setting) {
    let id = new_id();
    let shim = Shim::new(setting.containerd, setting.runtime, waiting(), &id);
    let calls = Calls::new(&shim, &id);
    calls.create().unwrap();
    calls.start("").unwrap();
    std::thread::scope(|scope| {
        let others: [fn(&Calls); 13] = [
            |calls| drop(calls.state("")),
            |calls| drop(calls.connect()),
            |calls| drop(calls.start("")),
            |calls| drop(calls.resize("")),
            |calls| drop(calls.close_input("")),
            |calls| {
                drop(
                    calls
                        .kill("during", 9, false)
                        .and_then(|_| calls.delete("during")),
                )
            },
            |calls| drop(calls.stats()),
            |calls| drop(calls.pids()),
            |calls| drop(calls.pause().and_then(|_| calls.resume())),
            |calls| drop(calls.update("{}")),
            |calls| {
                drop(
                    calls
                        .exec("during", "true")
                        .and_then(|_| calls.start("during")),
                )
            },
            |calls| drop(calls.kill("", 9, true)),
            |calls| assert_eq!(calls.wait("").unwrap().exit_status, 137),
        ];
        for other in others {
            let calls = &calls;
            scope.spawn(move || (0..4).for_each(|_| other(calls)));
        }
        // Another one may have been first.
        let _ = calls.kill("", 9, false);
        // A pause may have come before the kill, and holds its effect back.
        let _ = calls.resume();
    });
    assert_eq!(calls.wait("").unwrap().exit_status, 137);
    let _ = calls.delete("during");
    assert_eq!(calls.delete("").unwrap().exit_status, 137);
    shim.shut_down(&calls.connection);
}

fn many_execs(setting: &mut Setting) {
    const WARM_UP: usize = 10;
    // KiB; a thousand execs that leave 4 KiB each are more.
    const GROWTH: u64 = 2 << 10;
    let id = new_id();
    let shim = Shim::new(setting.containerd, setting.runtime, waiting(), &id);
    let calls = Calls::new(&shim, &id);
    calls.create().unwrap();
    calls.start("").unwrap();
    if setting.runtime.is_nacre() {
        needs_no_process_of_the_host(&calls);
    }
    let pid = calls.connect().unwrap().shim_pid;
    let mut before = None;
    for number in 0..count(50, 1000) {
        if number == WARM_UP {
            before = Some((proc::own_anonymous_kib(pid), proc::descriptors(pid).len()));
        }
        let exec = format!("e{number}");
        calls.exec(&exec, "exit 3").unwrap();
        calls.start(&exec).unwrap();
        assert_eq!(calls.wait(&exec).unwrap().exit_status, 3);
        assert_eq!(calls.delete(&exec).unwrap().exit_status, 3);
    }
    let (memory, descriptors) = before.unwrap();
    let now = (proc::own_anonymous_kib(pid), proc::descriptors(pid).len());
    // A garbage collector keeps what it likes, descriptors included.
    if setting.runtime.is_nacre() {
        assert!(now.0 < memory + GROWTH, "{memory} KiB, then {now:?}");
        assert!(
            now.1 <= descriptors + 2,
            "{descriptors} descriptors, then {now:?}"
        );
    }
    calls.kill("", 9, false).unwrap();
    assert_eq!(calls.wait("").unwrap().exit_status, 137);
    calls.delete("").unwrap();
    shim.shut_down(&calls.connection);
}

fn needs_no_process_of_the_host(calls: &Calls) {
    let of_users = || {
        let mut all = proc::all();
        all.retain(|pid| !proc::is_kernels(*pid));
        all
    };
    let before = of_users();
    calls.exec("idle", "exec sleep 1000").unwrap();
    calls.start("idle").unwrap();
    wait_until("no process has come", || of_users() == before);
    calls.kill("idle", 9, false).unwrap();
    assert_eq!(calls.wait("idle").unwrap().exit_status, 137);
    calls.delete("idle").unwrap();
}
