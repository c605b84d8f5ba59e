//! `DEL`, and how a failed `ADD` is undone.

use std::fs;

use nacre_cni::Error;
use serde_json::json;

use crate::world::{NETNS, World, attachment, chain, clean, id, network, result};

/// Succeeds with a result on `ADD`, and fails on `DEL` as long as a file is there.
fn stubborn(world: &World, name: &str) {
    let flag = world.path("stubborn");
    fs::write(&flag, "").unwrap();
    world.plugin(
        name,
        &format!(
            "if test $CNI_COMMAND = DEL -a -e {}; then\n\
             echo '{{\"code\": 101, \"msg\": \"device busy\"}}'; exit 1; fi\n\
             test $CNI_COMMAND = DEL || echo '{{}}'",
            flag.display()
        ),
    );
}

#[test]
fn plugins_run_in_reverse_and_all_get_the_last_result_of_add() {
    let world = World::new();
    world.answering("one", &result("1.1.0", "10.0.0.2/24"));
    world.answering("two", &result("1.1.0", "10.0.0.3/24"));
    let network = chain("1.1.0", &["one", "two"]);
    world.add(&network).unwrap();
    world.cni.del(&network, &attachment("c1")).unwrap();
    assert_eq!(world.log(), ["one ADD", "two ADD", "two DEL", "one DEL"]);
    for call in &world.calls()[2..] {
        assert_eq!(call.request["prevResult"], result("1.1.0", "10.0.0.3/24"));
        assert_eq!(call.variable("CNI_NETNS"), Some(NETNS));
    }
    assert!(!world.cache_file("c1").exists());
}

#[test]
fn version_0_3_1_has_no_result_on_del() {
    let world = World::new();
    world.answering("one", &result("0.3.1", "10.0.0.2/24"));
    let network = chain("0.3.1", &["one"]);
    world.add(&network).unwrap();
    world.cni.del(&network, &attachment("c1")).unwrap();
    assert_eq!(world.calls()[1].request.get("prevResult"), None);
}

#[test]
fn del_gets_what_add_got_even_if_the_configuration_has_changed() {
    let world = World::new();
    world.answering("one", &result("1.0.0", "10.0.0.2/24"));
    let before = network(
        "1.0.0",
        &json!([
            {"type": "one", "bridge": "old", "capabilities": {"aliases": true}}
        ]),
    );
    let mut full = attachment("c1");
    full.args.push("K", "V").unwrap();
    full.capabilities.aliases = vec!["db".into()];
    world.cni.add(&before, &full).unwrap();

    let after = chain("1.1.0", &["other"]);
    world.cni.del(&after, &attachment("c1")).unwrap();
    let call = &world.calls()[1];
    assert_eq!(
        (call.plugin.as_str(), call.command.as_str()),
        ("one", "DEL")
    );
    assert_eq!(call.request["bridge"], "old");
    assert_eq!(call.request["cniVersion"], "1.0.0");
    assert_eq!(call.request["runtimeConfig"], json!({"aliases": ["db"]}));
    assert_eq!(call.variable("CNI_ARGS"), Some("K=V"));
}

#[test]
fn del_may_be_repeated_and_needs_no_add() {
    let world = World::new();
    world.answering("one", &result("1.0.0", "10.0.0.2/24"));
    let network = chain("1.0.0", &["one"]);
    world.cni.del(&network, &attachment("c1")).unwrap();
    world.cni.del(&network, &attachment("c1")).unwrap();
    assert_eq!(world.log(), ["one DEL", "one DEL"]);
    assert_eq!(world.calls()[0].request.get("prevResult"), None);
}

#[test]
fn a_namespace_that_is_gone_is_not_named_on_del() {
    let world = World::new();
    world.answering("one", &result("1.0.0", "10.0.0.2/24"));
    let network = chain("1.0.0", &["one"]);
    // A file of this kind is what stays when the namespace mounted on it goes.
    let leftover = world.path("netns");
    fs::write(&leftover, "").unwrap();
    for path in [leftover, world.path("missing")] {
        let mut attachment = attachment("c1");
        attachment.netns = Some(path.clone());
        world.cni.add(&network, &attachment).unwrap();
        world.cni.del(&network, &attachment).unwrap();
        let calls = world.calls();
        let [.., add, del] = calls.as_slice() else {
            panic!("{calls:?}")
        };
        assert_eq!(add.variable("CNI_NETNS"), path.to_str());
        assert_eq!(del.variable("CNI_NETNS"), None);
    }
}

#[test]
fn an_error_halts_del_and_it_can_be_tried_again() {
    let world = World::new();
    world.answering("one", &result("1.0.0", "10.0.0.2/24"));
    stubborn(&world, "two");
    let network = chain("1.0.0", &["one", "two"]);
    world.add(&network).unwrap();
    let error = world.cni.del(&network, &attachment("c1")).unwrap_err();
    assert_eq!(
        clean(&error),
        "CNI plugin two failed to DEL: device busy (code 101)"
    );
    assert_eq!(world.log(), ["one ADD", "two ADD", "two DEL"]);
    assert!(world.cache_file("c1").exists());

    fs::remove_file(world.path("stubborn")).unwrap();
    world.cni.del(&network, &attachment("c1")).unwrap();
    assert_eq!(world.log()[3..], ["two DEL", "one DEL"]);
    assert!(!world.cache_file("c1").exists());
}

#[test]
fn a_plugin_that_does_not_know_the_container_has_nothing_to_remove() {
    let world = World::new();
    world.plugin("one", "echo '{\"code\": 3, \"msg\": \"unknown\"}'; exit 1");
    world
        .cni
        .del(&chain("1.0.0", &["one"]), &attachment("c1"))
        .unwrap();
}

#[test]
fn a_failed_add_is_undone_in_reverse_with_the_last_good_result() {
    let world = World::new();
    world.answering("one", &result("1.0.0", "10.0.0.2/24"));
    world.answering("two", &result("1.0.0", "10.0.0.3/24"));
    world.plugin(
        "bad",
        "test $CNI_COMMAND = DEL && exit 0; echo '{\"code\": 7, \"msg\": \"no\"}'; exit 1",
    );
    world.answering("never", &json!({}));
    let network = chain("1.0.0", &["one", "two", "bad", "never"]);
    assert_eq!(
        world.add_error(&network),
        "CNI plugin bad failed to ADD: no (code 7, invalid network configuration)"
    );
    assert_eq!(
        world.log(),
        [
            "one ADD", "two ADD", "bad ADD", "bad DEL", "two DEL", "one DEL"
        ]
    );
    for call in &world.calls()[3..] {
        assert_eq!(call.request["prevResult"], result("1.0.0", "10.0.0.3/24"));
    }
    assert!(world.cni.attachments().unwrap().is_empty());
}

#[test]
fn what_was_never_executed_is_not_undone() {
    let world = World::new();
    world.answering("one", &result("1.0.0", "10.0.0.2/24"));
    world.add_error(&chain("1.0.0", &["one", "missing"]));
    assert_eq!(world.log(), ["one ADD", "one DEL"]);
    assert!(world.cni.attachments().unwrap().is_empty());
}

#[test]
fn a_plugin_that_misses_what_it_never_made_is_asked_a_second_time() {
    let world = World::new();
    let asked = world.path("asked");
    world.plugin(
        "one",
        &format!(
            "test $CNI_COMMAND = DEL -a -e {0} && exit 0\n\
             test $CNI_COMMAND = DEL && touch {0}\n\
             echo '{{\"code\": 999, \"msg\": \"no such chain\"}}'; exit 1",
            asked.display()
        ),
    );
    assert_eq!(
        world.add_error(&chain("1.0.0", &["one"])),
        "CNI plugin one failed to ADD: no such chain (code 999)"
    );
    assert_eq!(world.log(), ["one ADD", "one DEL", "one DEL"]);
    assert!(world.cni.attachments().unwrap().is_empty());
}

#[test]
fn undoing_goes_on_after_an_error_and_what_is_left_is_remembered() {
    let world = World::new();
    world.answering("one", &result("1.0.0", "10.0.0.2/24"));
    stubborn(&world, "two");
    world.plugin(
        "bad",
        "test $CNI_COMMAND = DEL && exit 0; echo '{\"code\": 11, \"msg\": \"later\"}'; exit 1",
    );
    let network = chain("1.0.0", &["one", "two", "bad"]);
    let error = world.add(&network).unwrap_err();
    assert!(matches!(error, Error::NotUndone { .. }));
    assert_eq!(error.code(), Some(11));
    assert_eq!(
        clean(&error),
        "CNI plugin bad failed to ADD: later (code 11, try again later); undoing it failed, \
         too: CNI plugin two failed to DEL: device busy (code 101)"
    );
    assert_eq!(
        world.log()[3..],
        ["bad DEL", "two DEL", "two DEL", "one DEL"]
    );
    let left = world.cni.attachments().unwrap();
    assert_eq!(left.len(), 1);
    assert!(!left[0].entry.as_ref().unwrap().complete);

    fs::remove_file(world.path("stubborn")).unwrap();
    world.cni.gc(&network, Vec::new).unwrap();
    assert!(world.cni.attachments().unwrap().is_empty());
    assert!(
        world
            .cni
            .attachment(&network.name, &id("c1"))
            .unwrap()
            .is_none()
    );
}
