//! `CHECK`.

use nacre_cni::Error;
use serde_json::json;

use crate::world::{NETNS, World, attachment, chain, clean, configured, id, result};

#[test]
fn plugins_are_asked_in_order_with_the_last_result_and_the_parameters_of_add() {
    let world = World::new();
    world.answering("one", &result("0.4.0", "10.0.0.2/24"));
    world.answering("two", &result("0.4.0", "10.0.0.3/24"));
    let network = chain("0.4.0", &["one", "two"]);
    let mut full = attachment("c1");
    full.args.push("K", "V").unwrap();
    world.cni.add(&network, &full).unwrap();
    world.cni.check(&network, &id("c1")).unwrap();
    assert_eq!(world.log()[2..], ["one CHECK", "two CHECK"]);
    for call in &world.calls()[2..] {
        assert_eq!(
            call.request["prevResult"]["ips"][0]["address"],
            "10.0.0.3/24"
        );
        assert_eq!(call.variable("CNI_ARGS"), Some("K=V"));
        assert_eq!(call.variable("CNI_NETNS"), Some(NETNS));
    }
}

#[test]
fn the_first_complaint_is_the_answer() {
    let world = World::new();
    world.plugin("one", "test $CNI_COMMAND = ADD && echo '{}' && exit 0; echo '{\"code\": 100, \"msg\": \"veth is gone\"}'; exit 1");
    world.answering("two", &json!({}));
    let network = chain("1.0.0", &["one", "two"]);
    world.add(&network).unwrap();
    let error = world.cni.check(&network, &id("c1")).unwrap_err();
    assert_eq!(
        clean(&error),
        "CNI plugin one failed to CHECK: veth is gone (code 100)"
    );
    assert_eq!(world.log()[2..], ["one CHECK"]);
}

#[test]
fn what_was_not_added_or_was_deleted_is_not_checked() {
    let world = World::new();
    world.answering("one", &json!({}));
    let network = chain("1.0.0", &["one"]);
    let error = world.cni.check(&network, &id("c1")).unwrap_err();
    assert_eq!(
        clean(&error),
        "eth0 of container c1 is not on the network \"net\""
    );
    world.add(&network).unwrap();
    world.cni.del(&network, &attachment("c1")).unwrap();
    assert!(matches!(
        world.cni.check(&network, &id("c1")),
        Err(Error::NotAdded { .. })
    ));
    assert_eq!(world.log(), ["one ADD", "one DEL"]);
}

#[test]
fn a_network_that_disables_it_is_not_asked() {
    let world = World::new();
    world.plugin(
        "one",
        "test $CNI_COMMAND = ADD && echo '{}' && exit 0; exit 1",
    );
    let network = configured(&json!({
        "cniVersion": "1.0.0", "name": "net", "disableCheck": true,
        "plugins": [{"type": "one"}],
    }));
    world.add(&network).unwrap();
    world.cni.check(&network, &id("c1")).unwrap();
    assert_eq!(world.log(), ["one ADD"]);
}

#[test]
fn version_0_3_1_has_no_check() {
    let world = World::new();
    world.answering("one", &json!({}));
    let network = chain("0.3.1", &["one"]);
    world.add(&network).unwrap();
    let error = world.cni.check(&network, &id("c1")).unwrap_err();
    assert_eq!(
        clean(&error),
        "CHECK is not in CNI 0.3.1, the version of the network \"net\""
    );
}
