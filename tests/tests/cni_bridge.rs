//! `vm-run --net cni` on the network that introductions to CNI begin with: a bridge with
//! a gateway, masquerading and hairpins, and published ports.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use nacre_tests::cni::{
    Bridge, HOST, Networks, OUTSIDE, Outside, State, ask, assert_as_before, slide, slide_and_more,
};
use nacre_tests::{Clean, TestBundle, count, wait_until};

/// Serves on port 80, says its address and `ready`, and when its input ends, asks itself by
/// the published port of the host.
fn server() -> TestBundle {
    let script = format!(
        "(while true; do echo hello | nc -l -p 80; done) 2>/dev/null &
         ip -o -4 address show dev eth0 | sed 's/.*inet \\([^/]*\\).*/address \\1/'
         cat /etc/resolv.conf
         echo ready; cat >/dev/null
         echo hairpin: $({})",
        ask(HOST, 8080)
    );
    TestBundle::sh(&script).with_capabilities(&["CAP_NET_RAW", "CAP_NET_BIND_SERVICE"])
}

fn client(script: &str) -> TestBundle {
    TestBundle::new(&["sh", "-euc", script]).with_capabilities(&["CAP_NET_RAW"])
}

fn address(said: &str) -> String {
    let line = said.lines().find_map(|line| line.strip_prefix("address "));
    line.unwrap().into()
}

#[test]
fn pods_on_a_bridge_reach_one_another_and_the_outside_and_are_reached() {
    let _clean = Clean::slate();
    let _bridge = Bridge::none_yet();
    let networks = Networks::new().with(&slide_and_more());
    let outside = Outside::new();
    // The first one makes what stays: the bridge, and the chains of portmap.
    let published = ["--net=cni", "-p", "8080:80"];
    let _ = networks.run(&client("true"), &published).expect_code(0);
    let before = State::now();

    let bundle = server();
    let mut first = networks.start(&bundle, &["--net=cni", "-p", "8080:80", "--dns=192.0.2.53"]);
    first.wait_for("ready");
    let said = first.said();
    assert!(said.contains("nameserver 192.0.2.53"), "{said}");
    let address = address(&said);
    assert!(address.starts_with("10.10."), "{said}");

    let second = client(&format!(
        "ip address show dev eth0
         ping -c 2 -W 20 {address} >/dev/null; echo pinged
         echo neighbour: $({})
         echo outside: $({})",
        ask(&address, 80),
        ask(OUTSIDE, 9000)
    ));
    let wishes = [
        "--net=cni:mynet",
        "--ip=10.10.0.77",
        "--mac=02:00:00:00:00:77",
    ];
    let ended = networks.run(&second, &wishes).expect_code(0);
    let text = ended.text();
    for there in [" 10.10.0.77/16 ", " 02:00:00:00:00:77 "] {
        assert!(text.contains(there), "{there}: {ended}");
    }
    for line in [
        "pinged",
        "neighbour: hello",
        // Masqueraded: nobody there knows a way to 10.10.0.0/16.
        "outside: asked by 192.0.2.1",
    ] {
        ended.assert_line(line);
    }
    assert_eq!(outside.ask(8080), "hello\n");

    let ended = first.wait().expect_code(0);
    ended.assert_line("hairpin: hello");
    assert_as_before(&before);
}

/// BusyBox has no server for it; that of the host runs with the host's libraries.
#[test]
fn a_port_of_udp_is_published() {
    let _clean = Clean::slate();
    let _bridge = Bridge::none_yet();
    let networks = Networks::new().with(&slide_and_more());
    let outside = Outside::new();
    let published = ["--net=cni", "-p", "8053:5300/udp"];
    let _ = networks.run(&client("true"), &published).expect_code(0);
    let before = State::now();

    let server = "/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 --library-path /usr/lib/x86_64-linux-gnu \
                  /usr/bin/socat UDP-RECVFROM:5300,fork SYSTEM:'read said; echo heard $said' & \
                  echo ready; cat >/dev/null; kill $!";
    let usr = Path::new("/usr");
    let bundle = TestBundle::sh(server).with_bind(usr, "/usr", &["bind", "ro"]);
    let mut running = networks.start(&bundle, &published);
    running.wait_for("ready");
    let answer = |port: u16| {
        let ask = format!("echo hello | socat -t 3 - UDP:{HOST}:{port}");
        outside
            .namespace()
            .sh(&format!("{ask} 2>/dev/null || true"))
    };
    // What was sent before it listened is lost.
    wait_until("it answers", || answer(8053) == "heard hello\n");
    assert_eq!(answer(8054), "", "a port that is not published");
    let _ = running.wait().expect_code(0);
    assert_eq!(answer(8053), "", "its pod has ended");
    assert_as_before(&before);
}

#[test]
fn rounds_leave_the_host_as_it_was() {
    let _clean = Clean::slate();
    let _bridge = Bridge::none_yet();
    let networks = Networks::new().with(&slide());
    let pod = client("ping -c 1 -W 20 10.10.0.1 >/dev/null; echo pinged");
    networks
        .run(&pod, &["--net=cni"])
        .expect_code(0)
        .assert_line("pinged");
    let before = State::now();
    for round in 0..count(2, 100) {
        networks
            .run(&pod, &["--net=cni:mynet"])
            .expect_code(0)
            .assert_line("pinged");
        println!("round {round}");
        assert_as_before(&before);
    }
}

#[test]
fn what_the_network_would_not_do_is_refused() {
    let _clean = Clean::slate();
    let networks = Networks::new().with(&slide());
    let before = State::now();
    let pod = client("true");
    for (options, refusal) in [
        (
            &["--net=cni", "-p", "8080:80"][..],
            "vm-run: --publish: no plugin of the network \"mynet\" has the capability portMappings",
        ),
        (
            &["--net=cni", "--ip=10.10.0.7"],
            "vm-run: --ip: no plugin of the network \"mynet\" has the capability ips",
        ),
        (
            &["--net=cni:other"],
            "vm-run: there is no network \"other\"",
        ),
        (
            &["-p", "8080:80"],
            "vm-run: --publish is for the plugins of a CNI network",
        ),
    ] {
        let ended = networks.run(&pod, options).expect_code(1);
        assert!(ended.stderr.starts_with(refusal), "{options:?}: {ended}");
        assert_eq!(ended.stderr.lines().count(), 1, "{ended}");
    }
    assert_as_before(&before);
}
