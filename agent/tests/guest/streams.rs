//! Bytes in and out of containers.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use nacre_protocol::agent::{CreateContainerRequest, ResizeTerminalRequest, Stdio, TerminalSize};
use serde_json::json;
use ttrpc::Code;

use crate::Check;
use crate::guest::{Guest, spec};

pub(crate) fn tests() -> Vec<Check> {
    vec![
        ("stdin_ends_when_the_host_half_closes", stdin_ends),
        ("a_burst_before_the_exit_arrives_whole", burst),
        ("a_slow_reader_gets_every_byte", slow_reader),
        (
            "a_container_that_closed_its_stdin_is_not_disturbed",
            closed_stdin,
        ),
        ("without_streams_stdio_is_the_null_device", no_streams),
        (
            "an_output_that_the_host_closes_breaks_the_pipe",
            closed_stdout,
        ),
        ("a_user_may_open_its_stdio_anew", reopened_stdio),
        ("a_terminal_is_one_with_a_size", terminal),
        ("a_terminal_belongs_to_its_user", terminal_of_user),
        (
            "a_process_without_a_terminal_has_none_to_resize",
            no_terminal,
        ),
    ]
}

fn stdin_ends(guest: &Guest) {
    let mut container = guest
        .create("c", &spec(&["sh", "-c", "cat; echo end"]))
        .unwrap();
    container.start().unwrap();
    container.stdin.write_all(b"one\ntwo\n").unwrap();
    container.stdin.shutdown(Shutdown::Write).unwrap();
    assert_eq!(container.finish().stdout, "one\ntwo\nend\n");
}

fn burst(guest: &Guest) {
    let output = guest.sh("seq 1 1200000");
    let expected: String = (1..=1_200_000).map(|n| format!("{n}\n")).collect();
    assert!(expected.len() > 8 << 20);
    assert!(output.stdout == expected, "{} bytes", output.stdout.len());
    assert_eq!(output.status, 0);
}

fn slow_reader(guest: &Guest) {
    const SIZE: usize = 64 << 20;
    let command = format!("yes 0123456789abcde | head -c {SIZE}; echo done >&2");
    let mut container = guest.create("c", &spec(&["sh", "-c", &command])).unwrap();
    container.start().unwrap();
    let mut chunk = vec![0; 256 << 10];
    let mut received = 0;
    let mut stderr = container.stderr.take().unwrap();
    stderr.set_nonblocking(true).unwrap();
    while received < SIZE {
        if received < 2 << 20 {
            std::thread::sleep(Duration::from_millis(20));
            let early = stderr.read(&mut [0; 8]);
            assert!(early.is_err(), "the container did not wait for its reader");
        }
        let count = container.stdout.read(&mut chunk).unwrap();
        assert!(count > 0, "the stream ended after {received} bytes");
        for (index, byte) in chunk[..count].iter().enumerate() {
            assert_eq!(*byte, b"0123456789abcde\n"[(received + index) % 16]);
        }
        received += count;
    }
    assert_eq!(container.finish().status, 0);
}

fn closed_stdin(guest: &Guest) {
    let command = "exec 0<&-; echo closed; sleep 0.2; echo alive; exit 9";
    let mut container = guest.create("c", &spec(&["sh", "-c", command])).unwrap();
    container.start().unwrap();
    container.read_until("closed\n");
    container
        .stdin
        .set_write_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let block = vec![0; 1 << 20];
    let refused = (0..64).any(|_| container.stdin.write_all(&block).is_err());
    assert!(refused, "the host is not told");
    let output = container.finish();
    assert_eq!((output.status, output.stdout.as_str()), (9, "alive\n"));
}

fn no_streams(guest: &Guest) {
    let request = CreateContainerRequest {
        container_id: "c".to_owned(),
        spec: spec(&[
            "sh",
            "-c",
            "test \"$(cat)\" = '' && echo x && echo y >&2 && exit 5",
        ])
        .to_string()
        .into_bytes(),
        ..CreateContainerRequest::default()
    };
    guest.create_with(&request).unwrap();
    let container = guest.adopt("c");
    container.start().unwrap();
    assert_eq!(container.finish().status, 5);
}

fn closed_stdout(guest: &Guest) {
    // The first process of a PID namespace is not ended by SIGPIPE; others are,
    // as the agent's ignored SIGPIPE is not inherited.
    let command = "yes; echo $? >&2";
    let container = guest.create("c", &spec(&["sh", "-c", command])).unwrap();
    container.start().unwrap();
    container.stdout.shutdown(Shutdown::Both).unwrap();
    let output = container.finish();
    assert_eq!(output.stderr, format!("{}\n", 128 + 13));
}

fn reopened_stdio(guest: &Guest) {
    let mut spec = spec(&[
        "sh",
        "-c",
        "echo again >/dev/stdout; echo error >/dev/stderr",
    ]);
    spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let output = guest.run(&spec);
    assert_eq!(
        (output.stdout.as_str(), output.stderr.as_str()),
        ("again\n", "error\n")
    );
}

fn terminal(guest: &Guest) {
    let script = "stty size; read line; echo got:$line; stty size; test -t 2 && exit 3";
    let mut spec = spec(&["sh", "-c", script]);
    spec["process"]["terminal"] = json!(true);
    let (stream_id, stream) = guest.open_stream();
    let request = CreateContainerRequest {
        container_id: "c".to_owned(),
        spec: spec.to_string().into_bytes(),
        stdio: Some(Stdio {
            stdin_stream: stream_id,
            stdout_stream: stream_id,
            terminal: true,
            terminal_size: Some(size(100, 30)).into(),
            ..Stdio::default()
        })
        .into(),
        ..CreateContainerRequest::default()
    };
    guest.create_with(&request).unwrap();
    let mut container = guest.adopt("c");
    container.stdout = stream.try_clone().unwrap();
    container.stdin = stream;
    container.start().unwrap();
    container.read_until("30 100\r\n");
    let request = ResizeTerminalRequest {
        container_id: "c".to_owned(),
        size: Some(size(132, 43)).into(),
        ..ResizeTerminalRequest::default()
    };
    guest
        .call(async |agent, context| agent.resize_terminal(context, &request).await)
        .unwrap();
    container.stdin.write_all(b"hello\n").unwrap();
    let output = container.finish();
    assert!(
        output.stdout.ends_with("got:hello\r\n43 132\r\n"),
        "{output:?}"
    );
    assert_eq!(output.status, 3);
}

fn size(columns: u32, rows: u32) -> TerminalSize {
    TerminalSize {
        columns,
        rows,
        ..TerminalSize::default()
    }
}

fn terminal_of_user(guest: &Guest) {
    let mut spec = spec(&[
        "sh",
        "-c",
        "echo x >/dev/tty; stat -c %u $(readlink /proc/self/fd/0)",
    ]);
    spec["process"]["terminal"] = json!(true);
    spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let output = guest.run(&spec);
    assert_eq!(output.stdout, "x\r\n1000\r\n", "{output:?}");
}

fn no_terminal(guest: &Guest) {
    let container = guest.create("c", &spec(&["sleep", "99"])).unwrap();
    let request = ResizeTerminalRequest {
        container_id: "c".to_owned(),
        size: Some(size(80, 25)).into(),
        ..ResizeTerminalRequest::default()
    };
    let refused = guest.call(async |agent, context| agent.resize_terminal(context, &request).await);
    refused
        .unwrap_err()
        .expect(Code::FAILED_PRECONDITION, "no terminal");
    container.signal(9, false).unwrap();
    container.wait();
    container.delete().unwrap();
}
