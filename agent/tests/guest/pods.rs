//! What the containers of a pod share, and what they do not.

use std::time::{Duration, Instant};

use nacre_protocol::agent::{CreateContainerRequest, PidNamespace, SetUpPodRequest};
use serde_json::{Value, json};
use ttrpc::Code;

use crate::Check;
use crate::guest::{Container, Guest, spec};

pub(crate) fn tests() -> Vec<Check> {
    vec![
        ("containers_share_the_pods_pid_namespace", shared),
        ("orphans_of_a_shared_namespace_are_reaped", orphans),
        ("the_parked_process_gives_nothing_away", parked),
        (
            "a_kill_of_all_stays_within_its_container",
            kill_stays_within,
        ),
        (
            "what_a_container_leaves_running_ends_with_its_first_process",
            left_running,
        ),
        ("a_container_can_hold_the_pods_pid_namespace", held),
        ("the_holders_state_decides_who_may_join", errors_of_holding),
        ("a_pid_namespace_must_be_asked_for", required),
        (
            "without_entries_ipc_and_host_name_are_the_pods",
            ipc_and_uts,
        ),
        ("with_an_entry_ipc_is_the_containers", own_ipc),
        ("an_identifier_is_free_for_the_next_container", restart),
        ("a_slow_creation_keeps_nobody_from_killing", slow_creation),
    ]
}

/// A specification that lists no PID namespace, nor any that the pod has.
fn podlike(command: &str) -> Value {
    let mut spec = spec(&["sh", "-c", command]);
    spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "cgroup"}]);
    spec
}

fn run<'a>(guest: &'a Guest, id: &str, command: &str, pid: PidNamespace) -> Container<'a> {
    let mut container = guest.create_in(id, &podlike(command), pid).unwrap();
    container.start().unwrap();
    container.read_until("ready\n");
    container
}

fn sh(container: &Container<'_>, command: &str) -> String {
    let process = &spec(&["sh", "-c", command])["process"];
    container.exec("sh", process).unwrap().finish().stdout
}

fn end(container: Container<'_>) {
    container.signal(9, true).unwrap();
    assert_eq!(container.finish().status, 128 + 9);
}

const IDLE: &str = "echo ready; while :; do sleep 0.1; done";

fn shared(guest: &Guest) {
    let a = run(guest, "a", "echo ready; exec sleep 4711", PidNamespace::POD);
    let b = run(guest, "b", IDLE, PidNamespace::POD);
    let own = guest
        .create("own", &spec(&["sh", "-c", "ps; echo $$"]))
        .unwrap();
    assert!(sh(&b, "ps").contains("sleep 4711"));
    let same = "readlink /proc/self/ns/pid";
    assert_eq!(sh(&a, same), sh(&b, same));
    assert!(
        sh(&b, "for p in /proc/[0-9]*; do readlink $p/ns/mnt; done")
            .lines()
            .count()
            > 1
    );
    own.start().unwrap();
    let alone = own.finish().stdout;
    assert!(
        !alone.contains("4711") && alone.ends_with("\n1\n"),
        "{alone}"
    );
    end(a);
    end(b);
}

fn orphans(guest: &Guest) {
    let command = "for n in 1 2 3; do (sleep 0.1 &); done; echo ready; read x";
    let a = run(guest, "a", command, PidNamespace::POD);
    let limit = Instant::now() + Duration::from_secs(10);
    while !sh(&a, "grep -l sleep /proc/[0-9]*/comm").is_empty() {
        assert!(Instant::now() < limit);
    }
    let dead = sh(&a, "grep -l '^State:.Z' /proc/[0-9]*/status");
    assert_eq!(dead, "");
    end(a);
}

/// Whatever a container may, the process that holds the namespace has no files to
/// give and cannot be ended from within.
fn parked(guest: &Guest) {
    let mut spec = podlike(
        "ls -a /proc/1/root | wc -l; touch /proc/1/root/x; ls /proc/1/fd | tr '\\n' ' '; \
         grep -E '^(Uid|CapEff|CapPrm|CapBnd|NoNewPrivs)' /proc/1/status | tr -d '\\t'; \
         kill -9 1; kill -15 1; kill -0 1 && echo alive",
    );
    let all = json!(["CAP_SYS_PTRACE", "CAP_KILL", "CAP_DAC_OVERRIDE"]);
    spec["process"]["capabilities"] = json!({"bounding": all, "effective": all, "permitted": all});
    let container = guest.create_in("c", &spec, PidNamespace::POD).unwrap();
    container.start().unwrap();
    let output = container.finish();
    let nothing = "0000000000000000";
    assert_eq!(
        output.stdout,
        format!(
            "2\n0 1 2 Uid:65534655346553465534\nCapPrm:{nothing}\nCapEff:{nothing}\n\
             CapBnd:{nothing}\nNoNewPrivs:1\nalive\n"
        ),
        "{output:?}"
    );
    assert!(
        output.stderr.contains("Read-only file system"),
        "{output:?}"
    );
}

fn kill_stays_within(guest: &Guest) {
    let command = "sleep 97 & echo ready; while :; do sleep 0.1; done";
    let a = run(guest, "a", command, PidNamespace::POD);
    let b = run(guest, "b", command, PidNamespace::POD);
    let exec = b.exec("e", &spec(&["sleep", "96"])["process"]).unwrap();
    // It is not the first process of its namespace, which ignores such signals.
    a.signal(15, true).unwrap();
    assert_eq!(a.finish().status, 128 + 15);
    assert!(sh(&b, "ps").contains("sleep 97"));
    exec.signal(9).unwrap();
    assert_eq!(exec.finish().status, 128 + 9);
    end(b);
}

fn left_running(guest: &Guest) {
    let a = run(
        guest,
        "a",
        "sleep 95 & echo ready; read x; exit 6",
        PidNamespace::POD,
    );
    let b = run(guest, "b", IDLE, PidNamespace::POD);
    let exec = a.exec("e", &spec(&["sleep", "94"])["process"]).unwrap();
    std::io::Write::write_all(&mut &a.stdin, b"go\n").unwrap();
    assert_eq!(exec.wait().unwrap().exit_status, 128 + 9);
    // Its output ends, too: the background process had it.
    assert_eq!(a.finish().status, 6);
    // Nothing of it has been the first process of a PID namespace.
    let left = sh(&b, "ps");
    assert!(
        !left.contains("sleep 95") && !left.contains("sleep 94"),
        "{left}"
    );
    end(b);
}

fn held(guest: &Guest) {
    let pause = run(
        guest,
        "pause",
        "echo ready; exec sleep 93",
        PidNamespace::POD_INIT,
    );
    let a = run(guest, "a", IDLE, PidNamespace::POD);
    assert!(sh(&a, "cat /proc/1/cmdline | tr '\\0' ' '").contains("sleep 93"));
    a.signal(9, false).unwrap();
    assert_eq!(a.finish().status, 128 + 9);
    let a = run(guest, "a", IDLE, PidNamespace::POD);
    // A namespace ends with its first process.
    pause.signal(9, false).unwrap();
    assert_eq!(pause.wait().exit_status, 128 + 9);
    assert_eq!(a.finish().status, 128 + 9);
    pause.delete().unwrap();
}

fn errors_of_holding(guest: &Guest) {
    let create = |id: &str, pid| guest.create_in(id, &podlike("sleep 99"), pid);
    let pause = create("pause", PidNamespace::POD_INIT).unwrap();
    let second = create("second", PidNamespace::POD_INIT).err().unwrap();
    second.expect(Code::FAILED_PRECONDITION, "pid_namespace: ");
    pause.signal(9, false).unwrap();
    pause.wait();
    for pid in [PidNamespace::POD, PidNamespace::POD_INIT] {
        let late = create("late", pid).err().unwrap();
        late.expect(Code::FAILED_PRECONDITION, "PID namespace");
    }
    pause.delete().unwrap();
    // A holder that could not be created holds nothing.
    let failed = guest.create_in("x", &spec(&["nope"]), PidNamespace::POD_INIT);
    failed.err().unwrap().expect(Code::INVALID_ARGUMENT, "nope");
    let pause = create("pause", PidNamespace::POD_INIT).unwrap();
    pause.signal(9, false).unwrap();
    pause.wait();
    pause.delete().unwrap();
    // Once a process is parked, no container can become the holder.
    let a = create("a", PidNamespace::POD).unwrap();
    let late = create("pause", PidNamespace::POD_INIT).err().unwrap();
    late.expect(Code::FAILED_PRECONDITION, "pid_namespace: ");
    a.signal(9, false).unwrap();
    a.wait();
    a.delete().unwrap();
}

fn required(guest: &Guest) {
    let error = guest.create("c", &podlike("true")).err().unwrap();
    error.expect(
        Code::INVALID_ARGUMENT,
        "linux.namespaces: a pid namespace is required",
    );
    let request = CreateContainerRequest {
        container_id: "c".to_owned(),
        spec: podlike("true").to_string().into_bytes(),
        pid_namespace: protobuf::EnumOrUnknown::from_i32(7),
        ..CreateContainerRequest::default()
    };
    let error = guest.create_with(&request).unwrap_err();
    error.expect(Code::INVALID_ARGUMENT, "pid_namespace: ");
}

fn now_ns() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(now.unwrap().as_nanos()).unwrap()
}

fn ipc_and_uts(guest: &Guest) {
    let request = SetUpPodRequest {
        // The clock has no namespace: this is the machine's, which must stay right.
        realtime_ns: now_ns(),
        hostname: "the-pod".to_owned(),
        ..SetUpPodRequest::default()
    };
    guest
        .call(async |agent, context| agent.set_up_pod(context, &request).await)
        .unwrap();
    let with_shm = |command: &str| {
        let mut spec = podlike(command);
        spec["mounts"][3] = json!({
            "destination": "/dev/shm", "type": "bind", "source": "/dev/shm",
            "options": ["rbind", "nosuid", "nodev", "noexec"]
        });
        spec
    };
    let write = with_shm(
        "hostname; echo -n shared >/dev/shm/x; touch /dev/mqueue/queue; echo ready; \
         while :; do sleep 0.1; done",
    );
    let mut a = guest.create_in("a", &write, PidNamespace::POD).unwrap();
    a.start().unwrap();
    assert_eq!(a.read_until("ready\n"), "the-pod\nready\n");
    let read =
        with_shm("hostname; cat /dev/shm/x; ls /dev/mqueue; rm /dev/mqueue/queue /dev/shm/x");
    let b = guest.create_in("b", &read, PidNamespace::POD).unwrap();
    b.start().unwrap();
    assert_eq!(b.finish().stdout, "the-pod\nsharedqueue\n");
    // A host name of its own needs a namespace of its own.
    let mut named = with_shm("true");
    named["hostname"] = json!("other");
    let error = guest
        .create_in("c", &named, PidNamespace::POD)
        .err()
        .unwrap();
    error.expect(Code::INVALID_ARGUMENT, "hostname: ");
    named["hostname"] = json!("the-pod");
    let same = guest.create_in("c", &named, PidNamespace::POD).unwrap();
    same.start().unwrap();
    assert_eq!(same.finish().status, 0);
    end(a);
}

fn own_ipc(guest: &Guest) {
    let mut a = guest
        .create(
            "a",
            &spec(&["sh", "-c", "touch /dev/mqueue/queue; echo ready; sleep 99"]),
        )
        .unwrap();
    a.start().unwrap();
    a.read_until("ready\n");
    assert_eq!(guest.sh("ls /dev/mqueue").stdout, "");
    end(a);
}

fn restart(guest: &Guest) {
    for round in 0..5 {
        let command = format!("echo ready; exit {round}");
        let a = run(guest, "a", &command, PidNamespace::POD);
        assert_eq!(a.finish().status, round);
        let own = guest.create("a", &spec(&["sh", "-c", "exit 3"])).unwrap();
        own.start().unwrap();
        assert_eq!(own.finish().status, 3);
    }
}

fn slow_creation(guest: &Guest) {
    let victim = guest.create("victim", &spec(&["sleep", "99"])).unwrap();
    victim.start().unwrap();
    std::thread::scope(|scope| {
        let creations: Vec<_> = (0..6)
            .map(|n| {
                scope.spawn(move || {
                    // A stream that does not come holds the creation up.
                    let request = CreateContainerRequest {
                        container_id: format!("slow-{n}"),
                        spec: spec(&["true"]).to_string().into_bytes(),
                        stdio: Some(nacre_protocol::agent::Stdio {
                            stdout_stream: 4711,
                            ..nacre_protocol::agent::Stdio::default()
                        })
                        .into(),
                        pid_namespace: PidNamespace::POD.into(),
                        ..CreateContainerRequest::default()
                    };
                    let error = guest.create_with(&request).unwrap_err();
                    error.expect(Code::FAILED_PRECONDITION, "4711");
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(200));
        let began = Instant::now();
        victim.signal(9, false).unwrap();
        assert_eq!(victim.wait().exit_status, 128 + 9);
        victim.delete().unwrap();
        let next = guest
            .create_in("next", &podlike("exit 5"), PidNamespace::POD)
            .unwrap();
        next.start().unwrap();
        assert_eq!(next.finish().status, 5);
        assert!(began.elapsed() < Duration::from_secs(5));
        for creation in creations {
            creation.join().unwrap();
        }
    });
}
