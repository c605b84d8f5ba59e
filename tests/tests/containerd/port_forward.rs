//! `crictl port-forward`, which is what `kubectl port-forward` asks of a node: a port of the
//! host leads to the localhost of a pod.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::Command;

use nacre_tests::crictl::{Container, Pids, Pod};
use nacre_tests::{Ended, Running, sh, wait_until};

use crate::setting::{NACRE_ONCE, POD_KINDS, PODS, Setting, Test};

pub(crate) const TESTS: &[Test] = &[
    Test {
        name: "ports_of_a_pods_localhost_are_forwarded",
        places: PODS,
        check: forwarded,
    },
    Test {
        name: "nothing_but_localhost_is_forwarded",
        places: NACRE_ONCE,
        check: only_localhost,
    },
    Test {
        name: "a_forwarded_connection_ends_with_its_pod",
        places: POD_KINDS,
        check: ends_with_its_pod,
    },
];

/// Serves the same files on a localhost of each family, and nowhere else.
const SERVES: &str = "mkdir /tmp/files && cd /tmp/files && echo hello >small \
     && dd if=/dev/urandom of=large bs=1M count=16 2>/dev/null \
     && httpd -p 127.0.0.1:8080 && httpd -p [::1]:8081 && echo serves && exec sleep 10000";

fn start_server<'a>(pod: &Pod<'a>) -> Container<'a> {
    let server = pod.start(SERVES, Pids::Private);
    wait_until("it serves", || server.log() == "stdout serves\n");
    server
}

fn get(url: &str, before: &[&str]) -> Ended {
    let mut words = before.to_vec();
    words.extend(["busybox", "wget", "-T", "20", "-q", "-O", "-", url]);
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    Running::to_the_end(command)
}

fn forwarded(setting: &mut Setting) {
    let pod = Pod::run(setting.containerd, setting.runtime, Pids::Private);
    let server = start_server(&pod);
    let forward = pod.forward(&[8080, 8081, 8082]);
    let url = |port| format!("http://127.0.0.1:{}", forward.port(port));
    let sum = server.sh("sha256sum </tmp/files/large");
    for port in [8080, 8081] {
        let fetched = sh(&format!(
            "busybox wget -q -O - {}/large | sha256sum",
            url(port)
        ));
        assert_eq!(fetched.trim_end(), sum, "port {port}");
    }
    std::thread::scope(|scope| {
        for _ in 0..8 {
            let small = format!("{}/small", url(8080));
            scope.spawn(move || assert_eq!(get(&small, &[]).text(), "hello\n"));
        }
    });
    // Where nobody listens, this connection ends, and perhaps crictl, but not the pod.
    assert_ne!(get(&format!("{}/small", url(8082)), &[]).code(), 0);
    drop(forward);
    let again = pod.forward(&[8080]);
    let small = format!("http://127.0.0.1:{}/small", again.port(8080));
    assert_eq!(get(&small, &[]).expect_code(0).text(), "hello\n");
    pod.remove();
}

fn only_localhost(setting: &mut Setting) {
    let pod = Pod::run(setting.containerd, setting.runtime, Pids::Private);
    let _server = start_server(&pod);
    let network = format!("--net={}", pod.network_namespace().display());
    let inside = ["nsenter", &network];
    let get = |address: &str| get(&format!("http://{address}/small"), &inside);
    assert_eq!(get("127.0.0.1:8080").expect_code(0).text(), "hello\n");
    assert_eq!(get("[::1]:8081").expect_code(0).text(), "hello\n");
    assert_ne!(get(&format!("{}:8080", pod.address())).code(), 0);
    pod.remove();
}

fn ends_with_its_pod(setting: &mut Setting) {
    let pod = Pod::run(setting.containerd, setting.runtime, Pids::Private);
    // It keeps the connection, and says nothing.
    let server = pod.start("sleep 10000 | nc -l -p 9090", Pids::Private);
    wait_until("it listens", || {
        server.sh("netstat -ltn | grep -c :9090 || true") == "1"
    });
    let forward = pod.forward(&[9090]);
    let port = forward.port(9090);
    let mut connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
    connection.write_all(b"hello\n").unwrap();
    wait_until("it is connected", || server.log() == "stdout hello\n");
    connection.set_nonblocking(true).unwrap();
    let silent = connection.read(&mut [0]).unwrap_err();
    assert_eq!(silent.kind(), ErrorKind::WouldBlock);

    pod.remove();
    wait_until("the connection has ended", || {
        match connection.read(&mut [0]) {
            Ok(len) => len == 0,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        }
    });
    assert_ne!(get(&format!("http://127.0.0.1:{port}/"), &[]).code(), 0);
}
