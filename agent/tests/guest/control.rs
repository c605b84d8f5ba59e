//! Pausing, limits, and what a container uses.

use std::io::Read;
use std::time::{Duration, Instant};

use nacre_protocol::agent::{
    ContainerStatsRequest, ContainerStatsResponse, ListProcessesRequest, PauseContainerRequest,
    ProcessDetails, ResumeContainerRequest, UpdateContainerRequest, WaitOutOfMemoryRequest,
};
use serde_json::{Value, json};
use ttrpc::Code;

use crate::Check;
use crate::guest::{CallError, Container, Guest, spec};

pub(crate) fn tests() -> Vec<Check> {
    vec![
        ("a_paused_container_stands_still_and_goes_on", pauses),
        ("a_paused_container_can_be_killed", kill_paused),
        ("the_state_decides_what_may_be_paused", errors_of_pausing),
        ("a_pause_beside_a_kill_ends_soon", pause_beside_a_kill),
        ("processes_are_listed_the_first_one_first", processes),
        ("what_a_container_uses_is_counted", stats),
        ("an_update_leaves_the_rules_of_devices", update_devices),
        (
            "an_update_that_cannot_be_honoured_is_named",
            refused_updates,
        ),
        (
            "limits_of_cpu_memory_and_processes_can_be_changed",
            update_limits,
        ),
        (
            "an_update_that_the_kernel_refuses_changes_no_memory_limit",
            undone,
        ),
        ("kills_for_lack_of_memory_are_told", out_of_memory),
    ]
}

fn pause(guest: &Guest, id: &str) -> Result<(), CallError> {
    let request = PauseContainerRequest {
        container_id: id.to_owned(),
        ..PauseContainerRequest::default()
    };
    guest
        .call(async |agent, context| agent.pause_container(context, &request).await)
        .map(drop)
}

fn resume(guest: &Guest, id: &str) -> Result<(), CallError> {
    let request = ResumeContainerRequest {
        container_id: id.to_owned(),
        ..ResumeContainerRequest::default()
    };
    guest
        .call(async |agent, context| agent.resume_container(context, &request).await)
        .map(drop)
}

fn update(guest: &Guest, id: &str, resources: &Value) -> Result<(), CallError> {
    let request = UpdateContainerRequest {
        container_id: id.to_owned(),
        resources: resources.to_string().into_bytes(),
        ..UpdateContainerRequest::default()
    };
    guest
        .call(async |agent, context| agent.update_container(context, &request).await)
        .map(drop)
}

fn list(guest: &Guest, id: &str) -> Result<Vec<u32>, CallError> {
    let request = ListProcessesRequest {
        container_id: id.to_owned(),
        ..ListProcessesRequest::default()
    };
    guest
        .call(async |agent, context| agent.list_processes(context, &request).await)
        .map(|response| response.pids)
}

fn look(guest: &Guest, id: &str) -> Vec<ProcessDetails> {
    let request = ListProcessesRequest {
        container_id: id.to_owned(),
        details: true,
        ..ListProcessesRequest::default()
    };
    let listed = guest.call(async |agent, context| agent.list_processes(context, &request).await);
    listed.unwrap().processes
}

fn used(guest: &Guest, id: &str) -> Result<ContainerStatsResponse, CallError> {
    let request = ContainerStatsRequest {
        container_id: id.to_owned(),
        ..ContainerStatsRequest::default()
    };
    guest.call(async |agent, context| agent.container_stats(context, &request).await)
}

fn kills(guest: &Guest, id: &str, known: u64) -> Result<u64, CallError> {
    let request = WaitOutOfMemoryRequest {
        container_id: id.to_owned(),
        known,
        ..WaitOutOfMemoryRequest::default()
    };
    guest
        .call(async |agent, context| agent.wait_out_of_memory(context, &request).await)
        .map(|response| response.kills)
}

fn running<'a>(guest: &'a Guest, command: &str) -> Container<'a> {
    let container = guest.create("c", &spec(&["sh", "-c", command])).unwrap();
    container.start().unwrap();
    container
}

fn end(container: Container<'_>) {
    container.signal(9, true).unwrap();
    assert_eq!(container.finish().status, 128 + 9);
}

/// Bytes that come within a short time.
fn arriving(container: &mut Container<'_>) -> usize {
    container
        .stdout
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    container.stdout.read(&mut [0; 4096]).unwrap_or(0)
}

fn pauses(guest: &Guest) {
    let mut container = running(guest, "while :; do echo x; sleep 0.01; done");
    container.read_until("x\n");
    pause(guest, "c").unwrap();
    while arriving(&mut container) > 0 {}
    assert_eq!(arriving(&mut container), 0);
    resume(guest, "c").unwrap();
    container.read_until("x\n");
    pause(guest, "c").unwrap();
    resume(guest, "c").unwrap();
    container.read_until("x\n");
    end(container);
}

fn kill_paused(guest: &Guest) {
    for all in [false, true] {
        let mut container = running(guest, "sleep 99 & echo ready; while :; do sleep 1; done");
        container.read_until("ready\n");
        let exec = container
            .exec("e", &spec(&["sleep", "99"])["process"])
            .unwrap();
        pause(guest, "c").unwrap();
        // Anything else waits until the container goes on.
        container.signal(15, false).unwrap();
        container.signal(9, all).unwrap();
        assert_eq!(container.wait().exit_status, 128 + 9);
        assert_eq!(exec.wait().unwrap().exit_status, 128 + 9);
        container.delete().unwrap();
    }
}

fn errors_of_pausing(guest: &Guest) {
    pause(guest, "c")
        .unwrap_err()
        .expect(Code::NOT_FOUND, "\"c\"");
    resume(guest, "c")
        .unwrap_err()
        .expect(Code::NOT_FOUND, "\"c\"");
    let container = guest.create("c", &spec(&["sleep", "99"])).unwrap();
    pause(guest, "c").unwrap();
    resume(guest, "c").unwrap();
    container.start().unwrap();
    let not_paused = resume(guest, "c").unwrap_err();
    not_paused.expect(Code::FAILED_PRECONDITION, "is not paused");
    pause(guest, "c").unwrap();
    let again = pause(guest, "c").unwrap_err();
    again.expect(Code::FAILED_PRECONDITION, "is paused already");
    let exec = container.exec("e", &spec(&["true"])["process"]);
    let exec = exec.err().unwrap();
    exec.expect(Code::FAILED_PRECONDITION, "is paused");
    let running = container.delete().unwrap_err();
    running.expect(Code::FAILED_PRECONDITION, "is running");
    resume(guest, "c").unwrap();
    let exec = container.exec("e", &spec(&["true"])["process"]);
    assert_eq!(exec.unwrap().finish().status, 0);
    container.signal(9, false).unwrap();
    container.wait();
    let late = pause(guest, "c").unwrap_err();
    late.expect(Code::FAILED_PRECONDITION, "has stopped");
    let late = resume(guest, "c").unwrap_err();
    late.expect(Code::FAILED_PRECONDITION, "has stopped");
    container.delete().unwrap();
}

fn pause_beside_a_kill(guest: &Guest) {
    for round in 0..10 {
        let container = running(guest, "while :; do sleep 0.001; done");
        let began = Instant::now();
        std::thread::scope(|scope| {
            let pausing = scope.spawn(|| pause(guest, "c"));
            std::thread::sleep(Duration::from_micros(300 * round));
            container.signal(9, false).unwrap();
            if let Err(error) = pausing.join().unwrap() {
                error.expect(Code::FAILED_PRECONDITION, "has stopped");
            }
        });
        assert_eq!(container.wait().exit_status, 128 + 9);
        assert!(began.elapsed() < Duration::from_secs(5));
        container.delete().unwrap();
    }
}

fn processes(guest: &Guest) {
    let mut container = running(guest, "sleep 99 & sleep 98 & echo ready; wait");
    container.read_until("ready\n");
    let three = list(guest, "c").unwrap();
    assert_eq!(three.len(), 3, "{three:?}");
    let exec = container
        .exec("e", &spec(&["sleep", "97"])["process"])
        .unwrap();
    let four = list(guest, "c").unwrap();
    assert_eq!((four.len(), four[0]), (4, three[0]), "{four:?}");
    let seen = look(guest, "c");
    let first = seen.iter().find(|process| process.pid == four[0]).unwrap();
    assert!(first.started_at_ns > 0 && first.resident > 0);
    let children = seen.iter().filter(|process| process.parent == first.pid);
    assert_eq!((seen.len(), children.count()), (4, 2));
    assert!(seen.iter().any(|process| process.arguments == "sleep 97"));
    exec.signal(9).unwrap();
    exec.finish();
    container.signal(9, true).unwrap();
    container.wait();
    let late = list(guest, "c").unwrap_err();
    late.expect(Code::FAILED_PRECONDITION, "has stopped");
    container.delete().unwrap();
    list(guest, "c")
        .unwrap_err()
        .expect(Code::NOT_FOUND, "\"c\"");
}

fn stats(guest: &Guest) {
    let mut container = running(
        guest,
        "head -c 10000000 /dev/zero | md5sum; echo ready; sleep 99",
    );
    container.read_until("ready\n");
    let before = used(guest, "c").unwrap();
    let cpu = before.cpu.clone().unwrap();
    assert!(cpu.usage_usec > 1000, "{cpu:?}");
    assert!(
        cpu.usage_usec >= cpu.user_usec.max(cpu.system_usec),
        "{cpu:?}"
    );
    if guest.controllers().contains("memory") {
        let memory = before.memory.clone().unwrap();
        assert!(memory.current > 4096 && memory.max == 0, "{memory:?}");
        assert!(memory.stat["anon"] > 0 && memory.events["oom_kill"] == 0);
        assert!(
            before.pids_current >= 1 && before.pids_max == 0,
            "{before:?}"
        );
    }
    container.signal(9, true).unwrap();
    container.wait();
    // What was used is known until the container is deleted.
    let after = used(guest, "c").unwrap();
    assert!(after.cpu.usage_usec >= cpu.usage_usec);
    container.delete().unwrap();
    used(guest, "c")
        .unwrap_err()
        .expect(Code::NOT_FOUND, "\"c\"");
}

fn update_devices(guest: &Guest) {
    let mut container = running(guest, "mknod /tmp/tun c 10 200; echo ready; sleep 99");
    container.read_until("ready\n");
    let open = spec(&["sh", "-c", "head -c 0 /tmp/tun"])["process"].clone();
    let rule = json!({"allow": true, "type": "c", "major": 10, "minor": 200, "access": "r"});
    update(guest, "c", &json!({"devices": [rule]})).unwrap();
    assert_ne!(container.exec("e", &open).unwrap().finish().status, 0);
    end(container);
}

fn refused_updates(guest: &Guest) {
    update(guest, "c", &json!({}))
        .unwrap_err()
        .expect(Code::NOT_FOUND, "\"c\"");
    let container = guest.create("c", &spec(&["sleep", "99"])).unwrap();
    // A container that has not been started has limits as well.
    update(guest, "c", &json!({})).unwrap();
    container.start().unwrap();
    for (resources, field) in [
        (json!({"cpu": {"cpus": "0"}}), "cpu.cpus"),
        (json!({"memory": {"limit": -7}}), "memory.limit"),
        (
            json!({"unified": {"cgroup.kill": "1"}}),
            "unified[\"cgroup.kill\"]",
        ),
        (json!({"unified": {"no.such": "1"}}), "unified[\"no.such\"]"),
    ] {
        let error = update(guest, "c", &resources).unwrap_err();
        error.expect(
            Code::INVALID_ARGUMENT,
            &format!("linux.resources.{field}: "),
        );
    }
    let broken = UpdateContainerRequest {
        container_id: "c".to_owned(),
        resources: b"{".to_vec(),
        ..UpdateContainerRequest::default()
    };
    let error = guest.call(async |agent, context| agent.update_container(context, &broken).await);
    error
        .unwrap_err()
        .expect(Code::INVALID_ARGUMENT, "linux.resources: ");
    container.signal(9, false).unwrap();
    container.wait();
    let late = update(guest, "c", &json!({})).unwrap_err();
    late.expect(Code::FAILED_PRECONDITION, "has stopped");
    container.delete().unwrap();
}

/// Reads the container's own files of its limits.
fn limits(container: &Container<'_>) -> String {
    let command = "cd /sys/fs/cgroup && cat cpu.max cpu.weight memory.max memory.low pids.max";
    let process = &spec(&["sh", "-c", command])["process"];
    let output = container.exec("e", process).unwrap().finish();
    output.stdout.replace('\n', ",")
}

fn update_limits(guest: &Guest) {
    let container = running(guest, "sleep 99");
    assert_eq!(limits(&container), "max 100000,100,max,0,max,");
    let all = json!({
        "cpu": {"quota": 50000, "period": 200_000, "shares": 2048},
        "memory": {"limit": 64 << 20, "swap": 64 << 20, "reservation": 16 << 20},
        "pids": {"limit": 50}
    });
    update(guest, "c", &all).unwrap();
    assert_eq!(limits(&container), "50000 200000,174,67108864,16777216,50,");
    update(guest, "c", &json!({"cpu": {"quota": 70000}})).unwrap();
    update(guest, "c", &json!({"unified": {"memory.low": "0"}})).unwrap();
    assert_eq!(limits(&container), "70000 200000,174,67108864,0,50,");
    let none = json!({
        "cpu": {"quota": -1}, "memory": {"limit": -1, "swap": -1}, "pids": {"limit": -1}
    });
    update(guest, "c", &none).unwrap();
    assert_eq!(limits(&container), "max 200000,174,max,0,max,");
    let stats = used(guest, "c").unwrap();
    assert_eq!((stats.memory.max, stats.pids_max), (0, 0));
    end(container);
}

fn undone(guest: &Guest) {
    let container = running(guest, "sleep 99");
    let before = limits(&container);
    let half = json!({"memory": {"limit": 64 << 20}, "unified": {"memory.high": "nonsense"}});
    let error = update(guest, "c", &half).unwrap_err();
    error.expect(
        Code::INVALID_ARGUMENT,
        "linux.resources.unified[\"memory.high\"]: ",
    );
    assert_eq!(limits(&container), before);
    end(container);
}

fn out_of_memory(guest: &Guest) {
    let mut limited = spec(&["sh", "-c", "echo ready; read x; tail /dev/zero; sleep 99"]);
    limited["linux"]["resources"]["memory"] = json!({"limit": 16 << 20, "swap": 16 << 20});
    let mut container = guest.create("c", &limited).unwrap();
    let mut other = guest
        .create("other", &spec(&["sh", "-c", "echo ready; sleep 99"]))
        .unwrap();
    container.start().unwrap();
    other.start().unwrap();
    container.read_until("ready\n");
    other.read_until("ready\n");
    std::thread::scope(|scope| {
        let first = scope.spawn(|| kills(guest, "c", 0));
        let others = scope.spawn(|| kills(guest, "other", 0));
        std::thread::sleep(Duration::from_millis(100));
        assert!(!first.is_finished());
        std::io::Write::write_all(&mut &container.stdin, b"go\n").unwrap();
        assert_eq!(first.join().unwrap().unwrap(), 1);
        // It is told again to who does not know yet.
        assert_eq!(kills(guest, "c", 0).unwrap(), 1);
        let second = scope.spawn(|| kills(guest, "c", 1));
        std::thread::sleep(Duration::from_millis(100));
        assert!(!second.is_finished() && !others.is_finished());
        for container in [&container, &other] {
            container.signal(9, true).unwrap();
            assert_eq!(container.wait().exit_status, 128 + 9);
            container.delete().unwrap();
        }
        for waiting in [second, others] {
            waiting
                .join()
                .unwrap()
                .unwrap_err()
                .expect(Code::NOT_FOUND, "container");
        }
    });
    kills(guest, "c", 0)
        .unwrap_err()
        .expect(Code::NOT_FOUND, "\"c\"");
}
