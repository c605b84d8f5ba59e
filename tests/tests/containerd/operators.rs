//! What an operator sees of pods on their host: metrics, lists, consoles and logs. Values agree
//! with what runs, and a pod that hangs is told of in time.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nacre_tests::crictl::{Container, Pids, Pod};
use nacre_tests::ctr::new_id;
use nacre_tests::shim::Shim;
use nacre_tests::{Running, proc, running, sh, wait_until};
use rustix::process::Signal;
use serde_json::Value;

use crate::calls::{Calls, waiting};
use crate::faults::only;
use crate::setting::{NACRE_ONCE, NACRE_PODS, Setting, Test};

pub(crate) const TESTS: &[Test] = &[
    Test {
        name: "operators_see_metrics_that_agree_with_what_runs",
        places: NACRE_PODS,
        check: agreement,
    },
    Test {
        name: "operators_are_told_in_time_of_a_pod_that_hangs",
        places: NACRE_ONCE,
        check: hanging,
    },
    Test {
        name: "operators_see_what_a_pod_is_runs_and_says",
        places: NACRE_PODS,
        check: looking,
    },
    Test {
        name: "operators_see_a_start_as_a_part_of_its_caller_s_trace",
        places: NACRE_ONCE,
        check: tracing,
    },
];

/// The directory of pods' entries.
const PODS: &str = "/run/nacre-pods";

/// Memory that the container allocates, bytes.
const ALLOCATED: f64 = 32.0 * 1024.0 * 1024.0;

/// Allocates that much, and serves what can be fetched from outside.
const SERVER: &str =
    "dd if=/dev/zero of=/dev/shm/block bs=1M count=32; echo ready; exec httpd -f -p 8080 -h /etc";

/// A server in a pod, ready.
fn server<'a>(pod: &Pod<'a>) -> Container<'a> {
    let server = pod.start(SERVER, Pids::Private);
    wait_until("it is ready", || server.log().contains("stdout ready\n"));
    server
}

/// Runs `vm-run` and returns what it prints.
fn vm_run(words: &[&str]) -> String {
    let mut command = Command::new("vm-run");
    command.args(words);
    Running::to_the_end(command).expect_code(0).text()
}

/// The samples of an exposition.
#[derive(Debug)]
pub(crate) struct Samples(Vec<(String, f64)>);

impl Samples {
    fn scrape(words: &[&str]) -> Self {
        Self::parse(&vm_run(&[&["metrics"], words].concat()))
    }

    /// Once the guest has answered: a slow host's takes its time, and is then told of as such.
    pub(crate) fn with_guest(of_pod: &[(&str, &str)]) -> Self {
        let mut samples = Self::scrape(&[]);
        wait_until("the guest answers a scrape", || {
            samples = Self::scrape(&[]);
            samples.get("nacre_pod_guest_up", of_pod) > 0.0
        });
        samples
    }

    fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let parsed = samples.map(|line| {
            let (series, value) = line.rsplit_once(' ').expect("a sample");
            (series.to_owned(), value.parse().expect("a number"))
        });
        Self(parsed.collect())
    }

    /// The only sample of the metric `name` with all of these labels.
    pub(crate) fn get(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let found = self.find(name, labels);
        assert_eq!(found.len(), 1, "{name} {labels:?}: {found:?} of {self:#?}");
        found[0]
    }

    /// How many there are of a pod.
    fn of(&self, pod: &str) -> usize {
        let label = format!("pod_id=\"{pod}\"");
        let series = self.0.iter().filter(|(series, _)| series.contains(&label));
        series.count()
    }

    fn find(&self, name: &str, labels: &[(&str, &str)]) -> Vec<f64> {
        let is_it = |series: &str| {
            let of_name = series.split('{').next() == Some(name);
            let mut labels = labels.iter();
            of_name && labels.all(|(label, value)| series.contains(&format!("{label}=\"{value}\"")))
        };
        let found = self.0.iter().filter(|(series, _)| is_it(series));
        found.map(|(_, value)| *value).collect()
    }
}

fn agreement(setting: &mut Setting) {
    let pod = Pod::run(setting.containerd, setting.runtime, Pids::Private);
    let server = server(&pod);
    let of_pod = [("pod_id", pod.id()), ("namespace", "test")];
    let of_server = [of_pod[0], of_pod[1], ("container_id", server.id())];

    let before = Samples::with_guest(&of_pod);
    the_pod_is_as_it_was_started(&before, &of_pod);
    let memory = before.get("nacre_container_memory_usage_bytes", &of_server);
    assert!((ALLOCATED..2.0 * ALLOCATED).contains(&memory), "{memory}");
    let processes = server.sh("cat /sys/fs/cgroup/pids.current");
    let pids = before.get("nacre_container_pids", &of_server);
    // The exec that looks is one, too.
    assert!(
        (1.0..=processes.parse().unwrap()).contains(&pids),
        "{pids} of {processes}"
    );

    let counts = "n=0; while [ $n -lt 20000 ]; do n=$((n + 1)); done";
    let _ = server.sh(counts);
    let address = pod.address();
    let fetched = sh(&format!(
        "busybox wget -q -O - http://{address}:8080/greeting"
    ));
    let after = Samples::with_guest(&of_pod);
    let grown =
        |name: &str, labels: &[(&str, &str)]| after.get(name, labels) - before.get(name, labels);
    assert!(grown("nacre_container_cpu_seconds_total", &of_server) > 0.0);
    let of_monitor = [of_pod[0], ("process", "monitor")];
    assert!(grown("nacre_pod_process_cpu_seconds_total", &of_monitor) > 0.0);
    let of_interface = [of_pod[0], ("interface", "eth0")];
    let sent = grown("nacre_pod_network_transmit_bytes_total", &of_interface);
    assert!(sent > fetched.len() as f64, "{sent}");
    assert!(grown("nacre_pod_network_receive_packets_total", &of_interface) >= 1.0);

    lack_of_memory(&server, &of_server);
    pod.remove();
    assert_eq!(vm_run(&["metrics"]), "");
    assert_eq!(proc::names(Path::new(PODS)), Vec::<String>::new());
}

fn the_pod_is_as_it_was_started(samples: &Samples, of_pod: &[(&str, &str)]) {
    for (name, value) in [
        ("nacre_pod_up", 1.0),
        ("nacre_pod_guest_up", 1.0),
        ("nacre_pod_vcpus", 1.0),
        ("nacre_pod_memory_size_bytes", 512.0 * 1024.0 * 1024.0),
        ("nacre_pod_execs", 0.0),
    ] {
        let seen = samples.get(name, of_pod);
        assert!((seen - value).abs() < f64::EPSILON, "{name}: {seen}");
    }
    for phase in ["monitor_up", "kernel_entered", "agent_ready"] {
        let labels = [of_pod[0], ("phase", phase)];
        let took = samples.get("nacre_pod_start_phase_seconds", &labels);
        assert!(took > 0.0, "{phase}: {took}");
    }
    let running = [of_pod[0], ("status", "running")];
    assert!(samples.get("nacre_pod_containers", &running) >= 1.0);
    let resident = samples.get("nacre_pod_memory_resident_bytes", of_pod);
    assert!(resident > ALLOCATED, "{resident}");
    // The monitor's memory is that of the guest and a little more.
    let monitor = [of_pod[0], ("process", "monitor")];
    let of_monitor = samples.get("nacre_pod_process_resident_memory_bytes", &monitor);
    assert!(of_monitor > ALLOCATED, "{of_monitor}");
    let shim = [of_pod[0], ("process", "shim")];
    let of_shim = samples.get("nacre_pod_process_resident_memory_bytes", &shim);
    assert!((1e6..1e8).contains(&of_shim), "{of_shim}");
}

fn lack_of_memory(server: &Container, of_server: &[(&str, &str)]) {
    let limit = 48 << 20;
    let _ = server.crictl(&["update", "--memory", &limit.to_string()]);
    let hog = server.exec(&["sh", "-c", "tail /dev/zero"]);
    assert_ne!(hog.code(), 0, "{hog}");
    let samples = Samples::with_guest(&of_server[..1]);
    let seen = samples.get("nacre_container_memory_limit_bytes", of_server);
    assert!((seen - f64::from(limit)).abs() < f64::EPSILON, "{seen}");
    assert!(samples.get("nacre_container_oom_kills_total", of_server) >= 1.0);
}

fn hanging(setting: &mut Setting) {
    let pod = Pod::run(setting.containerd, setting.runtime, Pids::Private);
    let (shim, monitor) = (only("containerd-shim"), only("nacre-vmm"));
    let other = Pod::run(setting.containerd, setting.runtime, Pids::Private);
    let is =
        |pod: &Pod, name: &str, samples: &Samples| samples.get(name, &[("pod_id", pod.id())]) > 0.0;
    let is_up = |pod: &Pod, samples: &Samples| is(pod, "nacre_pod_up", samples);
    let guest_is_up = |pod: &Pod, samples: &Samples| is(pod, "nacre_pod_guest_up", samples);

    running::kill(shim, Signal::STOP);
    let (samples, took) = timed(&[]);
    assert!(!is_up(&pod, &samples), "{samples:?}");
    assert_eq!(samples.of(pod.id()), 1, "{samples:?}");
    assert!(is_up(&other, &samples), "{samples:?}");
    assert!(samples.of(other.id()) > 20, "{samples:?}");
    assert!(took < Duration::from_secs(30), "{took:?}");
    assert_eq!(state(&pod), "unresponsive");
    running::kill(shim, Signal::CONT);
    wait_until("the shim answers again", || {
        is_up(&pod, &Samples::scrape(&[]))
    });

    running::kill(monitor, Signal::STOP);
    let (samples, took) = timed(&["--timeout=60"]);
    assert!(is_up(&pod, &samples), "{samples:?}");
    assert!(!guest_is_up(&pod, &samples), "{samples:?}");
    assert!(took < Duration::from_secs(50), "{took:?}");
    running::kill(monitor, Signal::CONT);
    wait_until("both guests answer", || {
        let samples = Samples::scrape(&["--timeout=60"]);
        guest_is_up(&pod, &samples) && guest_is_up(&other, &samples)
    });
    other.remove();
    pod.remove();
}

/// A pod's state in the list of all.
fn state(pod: &Pod) -> String {
    let list: Value = serde_json::from_str(&vm_run(&["pods", "--format=json"])).unwrap();
    let mut pods = list.as_array().expect("a list").iter();
    let listed = pods.find(|listed| listed["id"] == pod.id());
    let state = listed.and_then(|listed| listed["state"].as_str());
    state.expect("the pod is in the list").to_owned()
}

fn timed(words: &[&str]) -> (Samples, Duration) {
    let start = Instant::now();
    let samples = Samples::scrape(words);
    (samples, start.elapsed())
}

fn looking(setting: &mut Setting) {
    let pod = Pod::run(setting.containerd, setting.runtime, Pids::Private);
    let server = server(&pod);

    let list: Value = serde_json::from_str(&vm_run(&["pods", "--format=json"])).unwrap();
    let listed = &list[0];
    assert_eq!(
        (&listed["id"], &listed["state"]),
        (&pod.id().into(), &"running".into())
    );
    assert_eq!(listed["containerdNamespace"], "k8s.io");
    let name = format!("test/{}", listed["name"].as_str().expect("a name"));
    assert!(vm_run(&["pods"]).contains(pod.id()));

    let processes = vm_run(&["ps", &name]);
    let rows: Vec<Vec<_>> = processes
        .lines()
        .map(|row| row.split_whitespace().collect())
        .collect();
    let of_server = rows.iter().filter(|row| row[1] == server.id());
    assert_eq!(of_server.count(), 1, "{processes}");
    let json: Value =
        serde_json::from_str(&vm_run(&["ps", "-f", "json", &pod.id()[..12]])).unwrap();
    assert_eq!(
        json.as_array().map(Vec::len),
        Some(rows.len() - 1),
        "{json:#}"
    );
    let mut missing = Command::new("vm-run");
    missing.args(["ps", "nobody"]);
    let missing = Running::to_the_end(missing).expect_code(1);
    assert!(
        missing.stderr.contains("container does not exist"),
        "{missing}"
    );

    assert!(vm_run(&["logs", pod.id()]).contains("pod booted"));
    the_console_is_followed(&pod, &server);
    let served = get(&socket(), "/metrics");
    assert!(served.starts_with("HTTP/1.1 200 OK\r\n"), "{served}");
    let (_, body) = served.split_once("\r\n\r\n").expect("a body");
    assert!(Samples::parse(body).get("nacre_pod_up", &[("pod_id", pod.id())]) > 0.0);
    pod.remove();
}

fn tracing(setting: &mut Setting) {
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const CALL: &str = "b7ad6b7169203331";
    let id = new_id();
    let shim = Shim::new(setting.containerd, setting.runtime, waiting(), &id);
    let mut calls = Calls::new(&shim, &id);
    calls.connection = calls.connection.traced(&format!("00-{TRACE}-{CALL}-01"));
    let before = SystemTime::now();
    calls.create().unwrap();
    let after = SystemTime::now();

    let traces: Value = serde_json::from_str(&vm_run(&["trace", &id])).unwrap();
    let of_pod = &traces["resourceSpans"][0];
    let attributes = of_pod["resource"]["attributes"].to_string();
    assert!(attributes.contains(&id), "{attributes}");
    let spans = of_pod["scopeSpans"][0]["spans"].as_array().unwrap();
    let names: Vec<_> = spans.iter().map(|span| &span["name"]).collect();
    assert_eq!(
        serde_json::json!(names),
        serde_json::json!([
            "start pod",
            "monitor up",
            "kernel entered",
            "agent ready",
            "container created"
        ])
    );
    assert_eq!(spans[0]["parentSpanId"], CALL);
    let at = |span: &Value, name: &str| -> Duration {
        Duration::from_nanos(span[name].as_str().unwrap().parse().unwrap())
    };
    let (mut last, start) = (at(&spans[0], "startTimeUnixNano"), &spans[0]);
    // Seconds as a binary fraction are not exact.
    let slack = Duration::from_millis(1);
    assert!(last + slack > before.duration_since(UNIX_EPOCH).unwrap());
    for span in spans {
        assert_eq!(span["traceId"], TRACE);
    }
    for phase in &spans[1..] {
        assert_eq!(phase["parentSpanId"], start["spanId"]);
        assert_eq!(at(phase, "startTimeUnixNano"), last);
        last = at(phase, "endTimeUnixNano");
    }
    assert_eq!(last, at(start, "endTimeUnixNano"));
    assert!(last < after.duration_since(UNIX_EPOCH).unwrap() + slack);

    calls.kill("", 9, false).unwrap();
    calls.wait("").unwrap();
    calls.delete("").unwrap();
    shim.shut_down(&calls.connection);
}

/// The kernel says on its console whom it has killed for want of memory.
fn the_console_is_followed(pod: &Pod, server: &Container) {
    const SAYS: &str = "Memory cgroup out of memory";
    let mut follow = Command::new("vm-run");
    follow.args(["console", "--follow", "--timeout=60", pod.id()]);
    let mut follower = Running::start(follow);
    let _ = server.crictl(&["update", "--memory", &(48 << 20).to_string()]);
    let hog = server.exec(&["sh", "-c", "tail /dev/zero"]);
    assert_ne!(hog.code(), 0, "{hog}");
    follower.wait_for(SAYS);
    let console = vm_run(&["console", pod.id()]);
    assert!(console.contains(SAYS), "{console}");
    let hostile = |c: char| c.is_control() && c != '\n' && c != '\t';
    assert!(!console.contains(hostile), "{console:?}");
}

/// The socket of the only pod.
fn socket() -> PathBuf {
    let pods = proc::names(Path::new(PODS));
    assert_eq!(pods.len(), 1, "{pods:?}");
    Path::new(PODS).join(&pods[0]).join("socket")
}

fn get(socket: &Path, path: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
