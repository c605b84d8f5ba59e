//! Further processes in a running container.

use std::io::Write;
use std::net::Shutdown;
use std::time::{Duration, Instant};

use nacre_protocol::agent::{DeleteExecRequest, ExecRequest, Stdio, TerminalSize};
use serde_json::{Value, json};
use ttrpc::Code;

use crate::Check;
use crate::confinement::{MASKED, masking_profile};
use crate::guest::{Container, Guest, Process, spec};

pub(crate) fn tests() -> Vec<Check> {
    vec![
        ("an_exec_runs_in_the_containers_namespaces", namespaces),
        ("an_exec_has_its_own_streams_and_status", streams_and_status),
        ("an_exec_is_what_its_process_says", confined),
        ("an_exec_has_the_containers_seccomp_profile", seccomp),
        (
            "an_exec_may_have_a_rule_that_masks_an_argument",
            masked_argument,
        ),
        ("an_exec_has_the_containers_cgroup_and_devices", cgroup),
        ("an_exec_may_have_a_terminal", terminal),
        ("an_exec_of_a_user_owns_its_stdio", stdio_of_user),
        (
            "an_exec_without_streams_has_the_containers_null_device",
            no_streams,
        ),
        ("an_exec_does_not_trust_the_workloads_files", hostile_files),
        ("a_command_that_cannot_be_executed_is_told", failures),
        ("what_an_exec_cannot_have_is_refused_by_name", refused),
        ("an_exec_needs_a_container_that_has_not_ended", needs_life),
        ("an_exec_id_is_taken_until_it_is_deleted", identifiers),
        ("a_signal_to_an_exec_hits_only_it", signals),
        ("an_exec_ends_with_the_first_process", ends_with_init),
        ("deleting_a_container_forgets_its_execs", forgotten),
        ("execs_beside_each_other_and_a_kill", beside_a_kill),
        ("three_hundred_execs_leave_nothing_behind", many),
        ("an_exec_into_a_divided_cgroup", divided_cgroup),
    ]
}

/// A container that runs until it is killed.
fn idle(guest: &Guest) -> Container<'_> {
    run(
        guest,
        &spec(&["sh", "-c", "echo ready; while :; do sleep 0.1; done"]),
    )
}

fn run<'a>(guest: &'a Guest, spec: &Value) -> Container<'a> {
    let mut container = guest.create("c", spec).unwrap();
    container.start().unwrap();
    container.read_until("ready\n");
    container
}

fn end(container: Container<'_>) {
    container.signal(9, false).unwrap();
    assert_eq!(container.finish().status, 128 + 9);
}

/// The `process` of an exec, as an engine makes it from the container's.
fn process(command: &str) -> Value {
    spec(&["sh", "-c", command])["process"].clone()
}

fn namespaces(guest: &Guest) {
    let mut spec = spec(&[
        "sh",
        "-c",
        "hostname; for n in mnt pid ipc uts cgroup net; do readlink /proc/self/ns/$n; done; \
         echo ready; while :; do sleep 0.1; done",
    ]);
    spec["hostname"] = json!("inside");
    let mut container = guest.create("c", &spec).unwrap();
    container.start().unwrap();
    let inits = container.read_until("ready\n");
    let output = container
        .exec(
            "e",
            &process(
                "hostname; for n in mnt pid ipc uts cgroup net; do readlink /proc/self/ns/$n; done",
            ),
        )
        .unwrap()
        .finish();
    assert_eq!(output.stdout, inits.trim_end_matches("ready\n"));
    let seen = container
        .exec(
            "e",
            &process("ps | grep -c 'sh -c echo\\|hostname'; echo $PPID"),
        )
        .unwrap()
        .finish();
    // It sees the first process, and its own parent is not of this world.
    assert!(seen.stdout.ends_with("\n0\n"), "{seen:?}");
    end(container);
}

fn streams_and_status(guest: &Guest) {
    let container = idle(guest);
    let mut exec = container
        .exec("e", &process("cat; echo err >&2; exit 7"))
        .unwrap();
    exec.stdin.write_all(b"to the exec\n").unwrap();
    exec.stdin.shutdown(Shutdown::Write).unwrap();
    let output = exec.finish();
    assert_eq!(
        (
            output.status,
            output.stdout.as_str(),
            output.stderr.as_str()
        ),
        (7, "to the exec\n", "err\n")
    );
    let burst = container
        .exec("e", &process("seq 1 1200000"))
        .unwrap()
        .finish();
    let expected: String = (1..=1_200_000).map(|n| format!("{n}\n")).collect();
    assert!(burst.stdout == expected, "{} bytes", burst.stdout.len());
    let killed = container
        .exec("e", &process("kill -40 $$"))
        .unwrap()
        .finish();
    assert_eq!(killed.status, 128 + 40);
    // The agent's ignored SIGPIPE is not inherited.
    let killed = container
        .exec("e", &process("kill -13 $$"))
        .unwrap()
        .finish();
    assert_eq!(killed.status, 128 + 13);
    end(container);
}

fn confined(guest: &Guest) {
    let container = idle(guest);
    let mut web = process(
        "id -u; id -g; id -G; umask; ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj; pwd; \
         echo $HOME $A; grep -E 'Cap(Prm|Eff|Bnd|Amb)|NoNewPrivs|SigBlk' /proc/self/status; \
         ls /proc/self/fd | tr '\\n' ' '",
    );
    web["user"] = json!({"uid": 1000, "gid": 1001, "umask": 0o027, "additionalGids": [5, 42]});
    web["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 512, "hard": 1024}]);
    web["oomScoreAdj"] = json!(77);
    web["cwd"] = json!("/tmp");
    web["env"] = json!(["PATH=/bin", "A=b=c"]);
    let set = json!(["CAP_CHOWN", "CAP_KILL"]);
    web["capabilities"] = json!({"bounding": set, "effective": set, "permitted": set});
    let expected = |capabilities: &str, privileges: &str| {
        format!(
            "1000\n1001\n1001 5 42\n0027\n512\n1024\n77\n/tmp\n/tmp b=c\n\
             SigBlk:\t0000000000000000\n{capabilities}\
             NoNewPrivs:\t{privileges}\n0 1 2 3 "
        )
    };
    let none = "0000000000000000";
    let all = "0000000000000021";
    let sets = format!("CapPrm:\t{none}\nCapEff:\t{none}\nCapBnd:\t{all}\nCapAmb:\t{none}\n");
    let output = container.exec("e", &web).unwrap().finish();
    assert_eq!(output.stdout, expected(&sets, "1"), "{output:?}");
    // Ambient ones are kept by a user that is not root.
    web["capabilities"]["inheritable"] = set.clone();
    web["capabilities"]["ambient"] = json!(["CAP_KILL"]);
    web["noNewPrivileges"] = json!(false);
    let kill = "0000000000000020";
    let sets = format!("CapPrm:\t{kill}\nCapEff:\t{kill}\nCapBnd:\t{all}\nCapAmb:\t{kill}\n");
    let output = container.exec("e", &web).unwrap().finish();
    assert_eq!(output.stdout, expected(&sets, "0"), "{output:?}");
    // None given is none had, for root as well; nothing of the agent's is left.
    let mut root =
        process("grep -c 0000000000000000 /proc/self/status; cat /proc/self/oom_score_adj");
    root["capabilities"] = Value::Null;
    let output = container.exec("e", &root).unwrap().finish();
    assert!(output.stdout.ends_with("\n0\n"), "{output:?}");
    let zero = output
        .stdout
        .lines()
        .next()
        .unwrap()
        .parse::<u32>()
        .unwrap();
    assert!(zero >= 5, "{output:?}");
    end(container);
}

fn seccomp(guest: &Guest) {
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]
    });
    let mut with_profile = spec(&["sh", "-c", "echo ready; while :; do sleep 0.1; done"]);
    with_profile["linux"]["seccomp"] = profile;
    let container = run(guest, &with_profile);
    for no_new_privileges in [json!(true), json!(false), Value::Null] {
        for uid in [0, 1000] {
            let mut exec = process("grep -E 'Seccomp:|CapEff' /proc/self/status; mkdir /tmp/x");
            exec["noNewPrivileges"] = no_new_privileges.clone();
            exec["user"] = json!({"uid": uid, "gid": uid});
            exec["capabilities"] = json!({});
            let output = container.exec("e", &exec).unwrap().finish();
            assert_eq!(
                output.stdout, "CapEff:\t0000000000000000\nSeccomp:\t2\n",
                "{output:?}"
            );
            let refused = output.stderr.contains("Function not implemented");
            assert!(refused, "{output:?}");
        }
    }
    end(container);
}

fn masked_argument(guest: &Guest) {
    let mut masked = spec(&["sh", "-c", "echo ready; while :; do sleep 0.1; done"]);
    masked["linux"]["seccomp"] = masking_profile();
    let container = run(guest, &masked);
    for _ in 0..2 {
        let output = container.exec("e", &process(MASKED)).unwrap().finish();
        assert_eq!(output.stdout, "17\n18\n", "{output:?}");
    }
    end(container);
}

fn cgroup(guest: &Guest) {
    let container = idle(guest);
    let output = container
        .exec("e", &process(
            "tail -n 1 /proc/self/cgroup; mknod /tmp/disk b 8 0 && cat /tmp/disk; cat /dev/null",
        ))
        .unwrap()
        .finish();
    assert_eq!(output.stdout, "0::/\n", "{output:?}");
    assert!(
        output.stderr.contains("Operation not permitted"),
        "{output:?}"
    );
    // It is one of the container's processes.
    let sleeping = container.exec("e", &process("exec sleep 99")).unwrap();
    container.signal(15, true).unwrap();
    assert_eq!(sleeping.finish().status, 128 + 15);
    end(container);
}

fn terminal(guest: &Guest) {
    let container = idle(guest);
    let script = "stty size; stat -c %u $(readlink /proc/self/fd/0); read line; echo got:$line; \
                  stty size; echo x >/dev/tty; test -t 2 && exit 3";
    let mut tty = process(script);
    tty["terminal"] = json!(true);
    tty["user"] = json!({"uid": 1000, "gid": 1000});
    let (stream_id, stream) = guest.open_stream();
    let size = |columns, rows| TerminalSize {
        columns,
        rows,
        ..TerminalSize::default()
    };
    let request = ExecRequest {
        container_id: "c".to_owned(),
        exec_id: "e".to_owned(),
        process: tty.to_string().into_bytes(),
        stdio: Some(Stdio {
            stdin_stream: stream_id,
            stdout_stream: stream_id,
            terminal: true,
            terminal_size: Some(size(100, 30)).into(),
            ..Stdio::default()
        })
        .into(),
        ..ExecRequest::default()
    };
    guest.exec_with(&request).unwrap();
    let mut exec = Process::new(guest, "c", "e", stream.try_clone().unwrap(), stream, None);
    exec.read_until("30 100\r\n1000\r\n");
    exec.resize(size(132, 43)).unwrap();
    exec.stdin.write_all(b"hello\n").unwrap();
    let output = exec.finish();
    let end_of_output = "got:hello\r\n43 132\r\nx\r\n";
    assert!(output.stdout.ends_with(end_of_output), "{output:?}");
    assert_eq!(output.status, 3);
    let plain = container.exec("e", &process("sleep 99")).unwrap();
    let refused = plain.resize(size(80, 25)).unwrap_err();
    refused.expect(Code::FAILED_PRECONDITION, "no terminal");
    plain.signal(9).unwrap();
    plain.finish();
    end(container);
}

fn no_streams(guest: &Guest) {
    let container = idle(guest);
    let command = "test \"$(cat)\" = '' && echo x && echo y >&2 && \
                   test $(stat -L -c %d:%i /proc/$$/fd/1) = $(stat -c %d:%i /dev/null) && exit 5";
    let request = ExecRequest {
        container_id: "c".to_owned(),
        exec_id: "e".to_owned(),
        process: process(command).to_string().into_bytes(),
        ..ExecRequest::default()
    };
    guest.exec_with(&request).unwrap();
    let (stdin, _) = std::os::unix::net::UnixStream::pair().unwrap();
    let (stdout, _) = std::os::unix::net::UnixStream::pair().unwrap();
    let exec = Process::new(guest, "c", "e", stdin, stdout, None);
    assert_eq!(exec.finish().status, 5);
    end(container);
}

fn stdio_of_user(guest: &Guest) {
    let container = idle(guest);
    let mut exec = process("echo again >/dev/stdout; echo error >/dev/stderr");
    exec["user"] = json!({"uid": 1000, "gid": 1000});
    let output = container.exec("e", &exec).unwrap().finish();
    assert_eq!(
        (output.stdout.as_str(), output.stderr.as_str()),
        ("again\n", "error\n")
    );
    end(container);
}

/// The workload mounts over its `/proc` and `/sys`, and plants what an exec could
/// stumble over.
fn hostile_files(guest: &Guest) {
    let script = "mount -t tmpfs none /proc && mount -t tmpfs none /sys && \
                  mount -t tmpfs none /dev/pts && mknod /dev/pts/ptmx p && \
                  mkdir -p /proc/self/fd /proc/self/attr /proc/thread-self/fd && \
                  for n in 0 1 2 3 4 5 6 7 8 9; do ln -s /bin/busybox /proc/self/fd/$n; done && \
                  echo 5 >/proc/self/oom_score_adj && rm /etc/passwd && mknod /etc/passwd p && \
                  echo ready; while :; do sleep 0.1; done";
    let mut hostile = spec(&["sh", "-c", script]);
    let all = json!(["CAP_SYS_ADMIN", "CAP_MKNOD", "CAP_DAC_OVERRIDE"]);
    hostile["process"]["capabilities"] =
        json!({"bounding": all, "effective": all, "permitted": all});
    let container = run(guest, &hostile);
    let mut exec = process("echo $HOME; cat /proc/self/oom_score_adj; echo fine");
    exec["oomScoreAdj"] = json!(88);
    let output = container.exec("e", &exec).unwrap().finish();
    assert_eq!(output.stdout, "/\n5\nfine\n", "{output:?}");
    let mut tty = process("true");
    tty["terminal"] = json!(true);
    let refused = container.exec("e", &tty).err().unwrap();
    refused.expect(Code::INVALID_ARGUMENT, "process.terminal: /dev/pts/ptmx");
    end(container);
}

fn failures(guest: &Guest) {
    guest.add_file("bin/data", "text", 0o644);
    guest.add_file("bin/text", "just text", 0o755);
    guest.add_file("bin/orphan", "#!/no/such/interpreter\n", 0o755);
    let container = idle(guest);
    for (command, message) in [
        (
            "nope",
            r#"exec: "nope": executable file not found in $PATH"#,
        ),
        (
            "/bin/nope",
            r#"exec: "/bin/nope": no such file or directory"#,
        ),
        ("data", r#"exec: "data": permission denied"#),
        ("/etc", r#"exec: "/etc": is a directory"#),
        ("text", r#"exec: "text": exec format error"#),
        ("orphan", r#"exec: "orphan": no such file or directory"#),
        (
            "/proc/self/fd/3",
            r#"exec: "/proc/self/fd/3": permission denied"#,
        ),
        (
            "/proc/self/fd/4",
            r#"exec: "/proc/self/fd/4": no such file or directory"#,
        ),
    ] {
        let mut exec = process("");
        exec["args"] = json!([command]);
        let error = container.exec("e", &exec).err().unwrap();
        error.expect(Code::INVALID_ARGUMENT, message);
    }
    let mut exec = process("true");
    exec["cwd"] = json!("/no/such");
    let error = container.exec("e", &exec).err().unwrap();
    error.expect(Code::INVALID_ARGUMENT, "process.cwd: \"/no/such\": ");
    // What has failed has taken no identifier.
    let output = container.exec("e", &process("exit 0")).unwrap().finish();
    assert_eq!(output.status, 0);
    end(container);
}

fn refused(guest: &Guest) {
    let container = idle(guest);
    for (field, value) in [
        ("args", json!([])),
        ("cwd", json!("relative")),
        ("apparmorProfile", json!("x")),
        ("selinuxLabel", json!("x")),
        (
            "ioPriority",
            json!({"class": "IOPRIO_CLASS_IDLE", "priority": -1}),
        ),
        (
            "scheduler",
            json!({"policy": "SCHED_FIFO", "priority": 100}),
        ),
        ("terminal", json!(true)),
    ] {
        let (stdout_stream, _) = guest.open_stream();
        let mut exec = process("true");
        exec[field] = value;
        let request = ExecRequest {
            container_id: "c".to_owned(),
            exec_id: "e".to_owned(),
            process: exec.to_string().into_bytes(),
            stdio: Some(Stdio {
                stdout_stream,
                ..Stdio::default()
            })
            .into(),
            ..ExecRequest::default()
        };
        let error = guest.exec_with(&request).unwrap_err();
        error.expect(Code::INVALID_ARGUMENT, &format!("process.{field}: "));
    }
    let exec = |process: &str, stdout_stream, exec_id: &str| ExecRequest {
        container_id: "c".to_owned(),
        exec_id: exec_id.to_owned(),
        process: process.as_bytes().to_vec(),
        stdio: Some(Stdio {
            stdout_stream,
            ..Stdio::default()
        })
        .into(),
        ..ExecRequest::default()
    };
    let error = guest.exec_with(&exec("{", 0, "e")).unwrap_err();
    error.expect(Code::INVALID_ARGUMENT, "process: ");
    let error = guest.exec_with(&exec("{}", 0, "a/b")).unwrap_err();
    error.expect(Code::INVALID_ARGUMENT, "exec_id: ");
    let error = guest.exec_with(&exec("{}", 4711, "e")).unwrap_err();
    error.expect(Code::FAILED_PRECONDITION, "stream 4711 has not been opened");
    end(container);
}

fn needs_life(guest: &Guest) {
    let created = guest.create("c", &spec(&["sleep", "99"])).unwrap();
    let early = created.exec("early", &process("echo early")).unwrap();
    assert_eq!(early.finish().stdout, "early\n");
    created.start().unwrap();
    created.signal(9, false).unwrap();
    created.wait();
    let refused = created.exec("e", &process("true")).err().unwrap();
    refused.expect(Code::FAILED_PRECONDITION, "has stopped");
    created.delete().unwrap();
    let gone = guest.exec_with(&ExecRequest {
        container_id: "c".to_owned(),
        exec_id: "e".to_owned(),
        ..ExecRequest::default()
    });
    gone.unwrap_err().expect(Code::NOT_FOUND, "container \"c\"");
}

fn identifiers(guest: &Guest) {
    let container = idle(guest);
    let exec = container.exec("e", &process("sleep 99")).unwrap();
    let taken = container.exec("e", &process("true")).err().unwrap();
    taken.expect(Code::ALREADY_EXISTS, "process \"e\" of container \"c\"");
    let running = exec.delete().unwrap_err();
    running.expect(Code::FAILED_PRECONDITION, "is running");
    exec.signal(9).unwrap();
    assert_eq!(exec.wait().unwrap().exit_status, 128 + 9);
    // Known until it is deleted, and as often as asked.
    assert_eq!(exec.wait().unwrap().exit_status, 128 + 9);
    let late = exec.signal(9).unwrap_err();
    late.expect(Code::FAILED_PRECONDITION, "has stopped");
    let taken = container.exec("e", &process("true")).err().unwrap();
    taken.expect(Code::ALREADY_EXISTS, "\"e\"");
    exec.delete().unwrap();
    for gone in [
        exec.delete().unwrap_err(),
        exec.signal(9).unwrap_err(),
        exec.wait().unwrap_err(),
        exec.resize(TerminalSize::default()).unwrap_err(),
    ] {
        gone.expect(Code::NOT_FOUND, "process \"e\" of container \"c\"");
    }
    end(container);
}

fn signals(guest: &Guest) {
    let container = idle(guest);
    let script = "trap 'echo caught; exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    let mut one = container.exec("one", &process(script)).unwrap();
    let mut two = container.exec("two", &process(script)).unwrap();
    one.read_until("ready\n");
    two.read_until("ready\n");
    one.signal(15).unwrap();
    let output = one.finish();
    assert_eq!((output.status, output.stdout.as_str()), (3, "caught\n"));
    // The other one and the container go on.
    assert_eq!(
        container
            .exec("x", &process("exit 4"))
            .unwrap()
            .finish()
            .status,
        4
    );
    two.signal(15).unwrap();
    assert_eq!(two.finish().status, 3);
    end(container);
}

fn ends_with_init(guest: &Guest) {
    let container = idle(guest);
    let exec = container
        .exec("e", &process("trap '' TERM; while :; do sleep 1; done"))
        .unwrap();
    container.signal(9, false).unwrap();
    assert_eq!(container.wait().exit_status, 128 + 9);
    assert_eq!(exec.wait().unwrap().exit_status, 128 + 9);
    assert_eq!(exec.finish().status, 128 + 9);
    container.delete().unwrap();
}

fn forgotten(guest: &Guest) {
    let container = idle(guest);
    let exec = container.exec("e", &process("exit 5")).unwrap();
    assert_eq!(exec.wait().unwrap().exit_status, 5);
    end(container);
    let gone = exec.wait().unwrap_err();
    gone.expect(Code::NOT_FOUND, "container \"c\"");
    // The same identifiers are free for the next.
    let container = idle(guest);
    assert_eq!(
        container
            .exec("e", &process("exit 6"))
            .unwrap()
            .finish()
            .status,
        6
    );
    end(container);
}

fn beside_a_kill(guest: &Guest) {
    let container = idle(guest);
    std::thread::scope(|scope| {
        let execs: Vec<_> = (0..12)
            .map(|n| {
                let container = &container;
                scope.spawn(move || {
                    let exec = container.exec(&format!("e{n}"), &process("sleep 99"));
                    match exec {
                        Ok(exec) => exec.wait().map_or(137, |exit| exit.exit_status),
                        Err(error) => {
                            error.expect(Code::FAILED_PRECONDITION, "");
                            137
                        }
                    }
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(15));
        container.signal(9, false).unwrap();
        let began = Instant::now();
        for exec in execs {
            assert_eq!(exec.join().unwrap(), 128 + 9);
        }
        assert!(began.elapsed() < Duration::from_secs(20));
    });
    container.wait();
    container.delete().unwrap();
}

fn many(guest: &Guest) {
    let container = idle(guest);
    container.exec("e", &process("true")).unwrap().finish();
    let settled = guest.descriptors();
    for _ in 0..300 {
        let output = container
            .exec("e", &process("sleep 0 & exit 1"))
            .unwrap()
            .finish();
        assert_eq!(output.status, 1);
    }
    let limit = Instant::now() + Duration::from_secs(5);
    while guest.descriptors() > settled && Instant::now() < limit {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(guest.descriptors() <= settled);
    let delete = DeleteExecRequest {
        container_id: "c".to_owned(),
        exec_id: "e".to_owned(),
        ..DeleteExecRequest::default()
    };
    let gone = guest.call(async |agent, context| agent.delete_exec(context, &delete).await);
    gone.unwrap_err().expect(Code::NOT_FOUND, "\"e\"");
    end(container);
}

/// A cgroup that gives its controllers to those below holds no process itself.
fn divided_cgroup(guest: &Guest) {
    let script = "mkdir /sys/fs/cgroup/init && echo 0 >/sys/fs/cgroup/init/cgroup.procs && \
                  for c in $(cat /sys/fs/cgroup/cgroup.controllers); do \
                  echo +$c >/sys/fs/cgroup/cgroup.subtree_control; done; \
                  echo ready; while :; do sleep 0.1; done";
    let mut divided = spec(&["sh", "-c", script]);
    divided["mounts"][6]["options"] = json!(["nosuid"]);
    let container = run(guest, &divided);
    let output = container
        .exec("e", &process("tail -n 1 /proc/self/cgroup"))
        .unwrap()
        .finish();
    let controllers = guest.controllers();
    let expected = if controllers.is_empty() {
        "0::/\n"
    } else {
        "0::/init\n"
    };
    assert_eq!(output.stdout, expected, "{output:?}");
    end(container);
}
