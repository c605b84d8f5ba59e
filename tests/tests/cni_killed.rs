//! A `vm-run` on a CNI network that is killed, and what the next one makes of it.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use nacre_tests::cni::{Bridge, Networks, State, assert_as_before, slide, slide_and_more};
use nacre_tests::{Clean, TestBundle, proc, sh, wait_until};
use rustix::process::Signal;
use serde_json::json;

fn endless() -> TestBundle {
    TestBundle::sh("echo ready; cat >/dev/null")
}

fn namespaces() -> Vec<String> {
    let names = sh("ls /run/netns");
    let ours = names.lines().filter(|name| name.starts_with("nacre-"));
    // Those of tests have another form.
    ours.filter(|name| !name.starts_with("nacre-test"))
        .map(Into::into)
        .collect()
}

#[test]
fn what_a_killed_one_leaves_is_collected_and_a_running_one_keeps_what_it_has() {
    let bundle = endless();
    let _clean = Clean::slate();
    let _bridge = Bridge::none_yet();
    let networks = Networks::new().with(&slide_and_more());
    let pod = TestBundle::new(&["true"]);
    let published = ["--net=cni", "-p", "8080:80"];
    let _ = networks.run(&pod, &published).expect_code(0);
    let before = State::now();

    let mut running = networks.start(&bundle, &["--net=cni", "--ip=10.10.0.77"]);
    running.wait_for("ready");
    let alone = State::now();
    let kill_one = || {
        let monitors = proc::named("nacre-vmm").len();
        let killed = networks.start(&bundle, &published);
        wait_until("its monitor runs", || {
            proc::named("nacre-vmm").len() > monitors
        });
        killed.signal(Signal::KILL);
        let _ = killed.wait();
        let left = State::now();
        assert!(!left.since(&alone).is_empty(), "nothing was left");
        assert_eq!(namespaces().len(), 2, "{:?}", left.since(&alone));
    };

    kill_one();
    let collected = networks.collect().expect_code(0);
    assert_eq!(collected.text().lines().count(), 1, "{collected}");
    assert!(
        collected
            .text()
            .starts_with("removed what was left of nacre-"),
        "{collected}"
    );
    assert_as_before(&alone);
    let nothing = networks.collect().expect_code(0);
    assert_eq!(nothing.text(), "");

    kill_one();
    // The published port is free again for the next one.
    let _ = networks.run(&pod, &published).expect_code(0);
    assert_as_before(&alone);

    sh("ping -c 1 -W 20 10.10.0.77");
    let _ = running.wait().expect_code(0);
    assert_as_before(&before);
}

/// Says that it was asked, and takes its time with it.
fn slow(seconds: u32, asked: &str) -> String {
    format!(
        "#!/bin/sh
         request=$(cat)
         [ \"$CNI_COMMAND\" = ADD ] || exit 0
         touch {asked}
         sleep {seconds}
         printf '%s' \"$request\" | jq .prevResult"
    )
}

#[test]
fn an_add_that_is_cut_off_is_undone() {
    let bundle = endless();
    let _clean = Clean::slate();
    let _bridge = Bridge::none_yet();
    let mut bridge = slide();
    bridge.as_object_mut().unwrap().remove("cniVersion");
    let network = json!({
        "cniVersion": "1.0.0", "name": "mynet", "plugins": [bridge, { "type": "slow" }]
    });
    let networks = Networks::new().with(&network);
    let asked = networks.path("asked");
    let script = |seconds| slow(seconds, &asked.display().to_string());
    let networks = networks.with_plugin("slow", &script(0));
    let _ = networks
        .run(&TestBundle::new(&["true"]), &["--net=cni"])
        .expect_code(0);
    let before = State::now();

    let networks = networks.with_plugin("slow", &script(60));
    std::fs::remove_file(&asked).unwrap();
    let killed = networks.start(&bundle, &["--net=cni"]);
    wait_until("the plugin is asked", || asked.exists());
    killed.signal(Signal::KILL);
    let _ = killed.wait();
    wait_until("its plugin is gone", || {
        proc::named("slow").is_empty() && proc::named("bridge").is_empty()
    });
    assert!(!State::now().since(&before).is_empty(), "nothing was left");
    let collected = networks.collect().expect_code(0);
    assert!(collected.text().contains("removed"), "{collected}");
    assert_as_before(&before);

    // A signal that asks for the end waits for the plugins, and leaves nothing.
    let networks = networks.with_plugin("slow", &script(2));
    std::fs::remove_file(&asked).unwrap();
    let ended = networks.start(&bundle, &["--net=cni"]);
    wait_until("the plugin is asked", || asked.exists());
    std::thread::sleep(Duration::from_millis(100));
    ended.signal(Signal::TERM);
    let _ = ended.wait().expect_code(143);
    assert_as_before(&before);
}
