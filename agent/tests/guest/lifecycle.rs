//! Create, start, signal, wait, delete.

use std::time::{Duration, Instant};

use nacre_protocol::agent::{
    Address, GuestStatsRequest, Interface, Ipv6, Neighbour, PolicyRule, Route, RouteMetric,
    SetUpPodRequest, ShutDownRequest, WaitContainerRequest,
};
use serde_json::json;
use ttrpc::Code;

use crate::Check;
use crate::guest::{Guest, spec};

pub(crate) fn tests() -> Vec<Check> {
    vec![
        ("a_container_runs_and_its_status_is_its_own", runs),
        ("a_signal_reaches_the_first_process", signals_first),
        ("a_signal_to_all_reaches_every_process", signals_all),
        ("a_real_time_signal_ends_with_its_status", real_time_signal),
        (
            "a_created_container_can_be_killed_before_its_start",
            kill_created,
        ),
        (
            "a_hanging_call_keeps_nobody_from_killing",
            kill_beside_hanging_call,
        ),
        ("a_running_container_is_not_deleted", delete_running),
        (
            "the_state_of_a_container_decides_its_errors",
            errors_of_state,
        ),
        ("an_exit_status_can_be_asked_for_again", wait_again),
        ("fifty_containers_leave_nothing_behind", many_leave_nothing),
        ("containers_run_side_by_side", side_by_side),
        ("the_pod_is_set_up_once_and_again", set_up),
        ("an_interface_is_made_as_the_host_has_it", interface),
        ("after_the_shutdown_every_call_is_refused", shut_down),
    ]
}

fn runs(guest: &Guest) {
    let output = guest.sh("echo out; echo err >&2; exit 7");
    assert_eq!(
        (
            output.status,
            output.stdout.as_str(),
            output.stderr.as_str()
        ),
        (7, "out\n", "err\n")
    );
    assert!(!output.oom_killed);
}

fn signals_first(guest: &Guest) {
    let script = "trap 'echo caught; exit 3' USR1; echo ready; while :; do sleep 0.05; done";
    let mut container = guest.create("c", &spec(&["sh", "-c", script])).unwrap();
    container.start().unwrap();
    container.read_until("ready\n");
    container.signal(10, false).unwrap();
    let output = container.finish();
    assert_eq!((output.status, output.stdout.as_str()), (3, "caught\n"));
}

fn signals_all(guest: &Guest) {
    let script = "(trap 'echo child; exit' USR1; echo ready; while :; do sleep 0.05; done) & \
                  trap 'echo parent' USR1; wait; wait; exit 4";
    let mut container = guest.create("c", &spec(&["sh", "-c", script])).unwrap();
    container.start().unwrap();
    container.read_until("ready\n");
    container.signal(10, true).unwrap();
    let output = container.finish();
    assert!(output.stdout.contains("child\n"), "{output:?}");
    assert!(output.stdout.contains("parent\n"), "{output:?}");
    let mut container = guest
        .create("k", &spec(&["sh", "-c", "sleep 99 & echo ready; wait"]))
        .unwrap();
    container.start().unwrap();
    container.read_until("ready\n");
    container.signal(9, true).unwrap();
    assert_eq!(container.finish().status, 128 + 9);
}

fn real_time_signal(guest: &Guest) {
    let output = guest.sh("sh -c 'kill -40 $$'; exit $?");
    assert_eq!(output.status, 128 + 40);
    let mut container = guest
        .create(
            "c",
            &spec(&["sh", "-c", "trap '' TERM; echo ready; exec sleep 99"]),
        )
        .unwrap();
    container.start().unwrap();
    container.read_until("ready\n");
    container.signal(64, false).unwrap();
    container.signal(9, false).unwrap();
    assert_eq!(container.finish().status, 128 + 9);
}

fn kill_created(guest: &Guest) {
    let container = guest.create("c", &spec(&["true"])).unwrap();
    container.signal(9, false).unwrap();
    assert_eq!(container.wait().exit_status, 128 + 9);
    container
        .start()
        .unwrap_err()
        .expect(Code::FAILED_PRECONDITION, "has stopped");
    container.delete().unwrap();
}

fn kill_beside_hanging_call(guest: &Guest) {
    guest.add_file("hook", "#!/bin/sh\nsleep 99\n", 0o755);
    let mut hanging = spec(&["true"]);
    hanging["hooks"] = json!({"startContainer": [{"path": "/hook"}]});
    let hanging = guest.create("hanging", &hanging).unwrap();
    let other = guest.create("other", &spec(&["sleep", "99"])).unwrap();
    other.start().unwrap();
    std::thread::scope(|scope| {
        let start = scope.spawn(|| hanging.start());
        std::thread::sleep(Duration::from_millis(300));
        let began = Instant::now();
        other.signal(9, false).unwrap();
        assert_eq!(other.wait().exit_status, 128 + 9);
        // The container whose start hangs can be killed as well.
        hanging.signal(9, true).unwrap();
        assert_eq!(hanging.wait().exit_status, 128 + 9);
        assert!(began.elapsed() < Duration::from_secs(5));
        let _ = start.join().unwrap();
    });
    hanging.delete().unwrap();
    other.delete().unwrap();
}

fn delete_running(guest: &Guest) {
    let container = guest.create("c", &spec(&["sleep", "99"])).unwrap();
    let refused = container.delete().unwrap_err();
    refused.expect(Code::FAILED_PRECONDITION, "is running");
    container.start().unwrap();
    let refused = container.delete().unwrap_err();
    refused.expect(Code::FAILED_PRECONDITION, "is running");
    container.signal(9, false).unwrap();
    container.wait();
    container.delete().unwrap();
    container
        .delete()
        .unwrap_err()
        .expect(Code::NOT_FOUND, "\"c\"");
}

fn errors_of_state(guest: &Guest) {
    let container = guest.create("c", &spec(&["sleep", "99"])).unwrap();
    let taken = guest.create("c", &spec(&["true"])).err().unwrap();
    taken.expect(Code::ALREADY_EXISTS, "\"c\"");
    container.start().unwrap();
    let again = container.start().unwrap_err();
    again.expect(Code::FAILED_PRECONDITION, "started already");
    container
        .signal(65, false)
        .unwrap_err()
        .expect(Code::INVALID_ARGUMENT, "signal");
    container.signal(9, false).unwrap();
    container.wait();
    let late = container.signal(15, false).unwrap_err();
    late.expect(Code::FAILED_PRECONDITION, "has stopped");
    container.delete().unwrap();
    for id in ["", ".hidden", "a/b"] {
        let refused = guest.create(id, &spec(&["true"])).err().unwrap();
        refused.expect(Code::INVALID_ARGUMENT, "container_id");
    }
}

fn wait_again(guest: &Guest) {
    let container = guest.create("c", &spec(&["sh", "-c", "exit 5"])).unwrap();
    container.start().unwrap();
    let first = container.wait();
    assert_eq!(first.exit_status, 5);
    assert!(first.exited_at_ns > 1_500_000_000_000_000_000);
    assert_eq!(container.wait(), first);
    container.delete().unwrap();
    let request = WaitContainerRequest {
        container_id: "c".to_owned(),
        ..WaitContainerRequest::default()
    };
    let gone = guest.call(async |agent, context| agent.wait_container(context, &request).await);
    gone.unwrap_err().expect(Code::NOT_FOUND, "\"c\"");
}

fn many_leave_nothing(guest: &Guest) {
    guest.sh("true");
    let settled = guest.descriptors();
    for _ in 0..50 {
        assert_eq!(guest.sh("sleep 0 & exit 1").status, 1);
    }
    let limit = Instant::now() + Duration::from_secs(5);
    while guest.descriptors() > settled && Instant::now() < limit {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(guest.descriptors() <= settled);
}

fn side_by_side(guest: &Guest) {
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..8_u32)
            .map(|n| {
                scope.spawn(move || {
                    let command = format!("sleep 0.1; echo {n}; exit {n}");
                    let container = guest
                        .create(&format!("c{n}"), &spec(&["sh", "-c", &command]))
                        .unwrap();
                    container.start().unwrap();
                    let output = container.finish();
                    assert_eq!((output.status, output.stdout), (n, format!("{n}\n")));
                })
            })
            .collect();
        for run in runs {
            run.join().unwrap();
        }
    });
}

fn set_up(guest: &Guest) {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let request = SetUpPodRequest {
        realtime_ns: i64::try_from(now.as_nanos()).unwrap(),
        entropy: vec![1; 64],
        hostname: "pod-7".to_owned(),
        cpus: 1,
        resolv_conf: "nameserver 10.0.0.10\n".to_owned(),
        hosts: "192.0.2.1 of-pod\n".to_owned(),
        sysctls: [("net.ipv4.ip_unprivileged_port_start", "77")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        ..SetUpPodRequest::default()
    };
    for _ in 0..2 {
        let response = guest.call(async |agent, context| agent.set_up_pod(context, &request).await);
        assert!(!response.unwrap().kernel_release.is_empty());
    }
    let mut spec = spec(&[
        "sh",
        "-c",
        "hostname; cat /etc/resolv.conf /etc/hosts /etc/hostname \
         /proc/sys/net/ipv4/ip_unprivileged_port_start; ip addr show lo",
    ]);
    spec["linux"]["namespaces"] = json!([{"type": "pid"}, {"type": "mount"}]);
    for file in ["resolv.conf", "hosts", "hostname"] {
        spec["mounts"].as_array_mut().unwrap().push(json!({
            "destination": format!("/etc/{file}"), "type": "bind",
            "source": format!("/run/nacre/{file}"), "options": ["bind", "ro"]
        }));
    }
    let output = guest.run(&spec);
    let seen = "pod-7\nnameserver 10.0.0.10\n192.0.2.1 of-pod\npod-7\n77\n";
    assert!(output.stdout.starts_with(seen), "{output:?}");
    for foreign in ["vm.swappiness", "net.ipv4.no_such_parameter"] {
        let request = SetUpPodRequest {
            sysctls: [(foreign.to_owned(), "1".to_owned())].into(),
            ..request.clone()
        };
        let refused = guest.call(async |agent, context| agent.set_up_pod(context, &request).await);
        refused.unwrap_err().expect(Code::INVALID_ARGUMENT, foreign);
    }
    assert!(output.stdout.contains("127.0.0.1"), "{output:?}");
    let request = GuestStatsRequest::default();
    let stats = guest.call(async |agent, context| agent.guest_stats(context, &request).await);
    let stats = stats.unwrap();
    assert!(stats.memory_total > stats.memory_available && stats.cpus_online > 0);
    assert!((1 << 20..64 << 20).contains(&stats.agent_rss), "{stats:?}");
}

/// `RTAX_ADVMSS` of linux/rtnetlink.h.
const RTAX_ADVMSS: u32 = 8;

fn metric(kind: u32, value: u32) -> RouteMetric {
    RouteMetric {
        kind,
        value,
        ..RouteMetric::default()
    }
}

fn rule(priority: u32, source: &str, table: u32) -> PolicyRule {
    PolicyRule {
        priority,
        source: source.to_owned(),
        destination: "0.0.0.0/0".to_owned(),
        table,
        ..PolicyRule::default()
    }
}

fn words<'a>(words: impl Iterator<Item = &'a str>) -> String {
    words.collect::<Vec<_>>().join(" ")
}

fn interface(guest: &Guest) {
    let mac = [2, 0, 0, 0, 0, 7];
    guest.ip("link add name probe0 address 02:00:00:00:00:07 type bridge");
    let route = |destination: &str, gateway: &str, scope| Route {
        destination: destination.to_owned(),
        gateway: gateway.to_owned(),
        scope,
        ..Route::default()
    };
    let address = |text: &str| Address {
        address: text.to_owned(),
        ..Address::default()
    };
    let mut request = SetUpPodRequest {
        interfaces: vec![Interface {
            name: "eth0".to_owned(),
            mac: mac.to_vec(),
            mtu: 1400,
            addresses: vec![
                address("10.1.2.3/24"),
                Address {
                    no_prefix_route: true,
                    ..address("10.4.0.3/16")
                },
                address("fd00::3/64"),
            ],
            ipv6: Some(Ipv6 {
                accept_ra: 2,
                ..Ipv6::default()
            })
            .into(),
            routes: vec![
                route("0.0.0.0/0", "169.254.1.1", 0),
                route("169.254.1.1/32", "", 253),
                route("::/0", "fd00::1", 0),
                Route {
                    table: 1000,
                    ..route("10.9.0.0/16", "10.1.2.1", 0)
                },
                Route {
                    metrics: vec![metric(RTAX_ADVMSS, 1300)],
                    ..route("10.8.0.0/16", "10.1.2.1", 0)
                },
            ],
            neighbours: vec![Neighbour {
                address: "169.254.1.1".to_owned(),
                mac: vec![2, 0, 0, 0, 0, 9],
                ..Neighbour::default()
            }],
            ..Interface::default()
        }],
        policy_rules: vec![
            // Instead of the kernel's own, which asks the same table first.
            rule(5, "0.0.0.0/0", 255),
            rule(7, "10.1.2.3/32", 1000),
            rule(8, "10.1.2.4/32", 1000),
            rule(32766, "0.0.0.0/0", 254),
        ],
        ..SetUpPodRequest::default()
    };
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    request.realtime_ns = i64::try_from(now.as_nanos()).unwrap();
    let set_up = |request: &SetUpPodRequest| {
        guest.call(async |agent, context| agent.set_up_pod(context, request).await)
    };
    for _ in 0..2 {
        set_up(&request).unwrap();
    }
    // What is planned no more goes; what somebody in the guest has made does not.
    guest.ip("rule add priority 100 from 10.7.0.0/16 lookup 1000");
    request.policy_rules.remove(2);
    set_up(&request).unwrap();
    let output = guest
        .sh(
            r#"ip addr show eth0; ip route; ip route show table 1000; ip -6 route; ip neigh
            awk '$2 == "0000080A" { print "advertised:", $9 }' /proc/net/route
            cat /proc/sys/net/ipv6/conf/eth0/accept_ra; ip rule"#,
        )
        .stdout;
    let rules = output.split_once("\n2\n").unwrap().1;
    let rules: Vec<_> = rules
        .lines()
        .map(str::split_whitespace)
        .map(words)
        .collect();
    assert_eq!(
        rules,
        [
            "5: from all lookup local",
            "7: from 10.1.2.3 lookup 1000",
            "100: from 10.7.0.0/16 lookup 1000",
            "32766: from all lookup main",
        ]
    );
    assert!(!output.contains("10.4.0.0/16"), "{output}");
    assert!(!output.contains("fe80"), "{output}");
    for expected in [
        "inet 10.4.0.3/16",
        "10.9.0.0/16 via 10.1.2.1 dev eth0",
        // As an MTU, which is longer by the headers.
        "advertised: 1340",
        "mtu 1400",
        "inet 10.1.2.3/24",
        "inet6 fd00::3/64",
        "default via 169.254.1.1 dev eth0",
        "169.254.1.1 dev eth0 scope link",
        "default via fd00::1 dev eth0",
        "169.254.1.1 dev eth0 lladdr 02:00:00:00:00:09",
    ] {
        assert!(output.contains(expected), "{expected:?} is not in {output}");
    }
    assert!(!output.contains("tentative"), "{output}");
    request.interfaces[0].mac = vec![2, 0, 0, 0, 0, 99];
    set_up(&request)
        .unwrap_err()
        .expect(Code::FAILED_PRECONDITION, "02:00:00:00:00:63");
}

fn shut_down(guest: &Guest) {
    let container = guest.create("c", &spec(&["sleep", "99"])).unwrap();
    container.start().unwrap();
    let request = ShutDownRequest::default();
    guest
        .call(async |agent, context| agent.shut_down(context, &request).await)
        .unwrap();
    let limit = Instant::now() + Duration::from_secs(10);
    while !guest.has_ended() {
        assert!(Instant::now() < limit, "the guest does not go down");
        std::thread::sleep(Duration::from_millis(2));
    }
}
