//! `GC`.

use std::fs;

use nacre_cni::Error;
use serde_json::json;

use crate::world::{World, attachment, chain, clean, configured, files, id, result};

#[test]
fn stale_attachments_are_deleted_and_plugins_told_who_is_valid() {
    let world = World::new();
    world.answering("one", &result("1.1.0", "10.0.0.2/24"));
    world.answering("two", &result("1.1.0", "10.0.0.2/24"));
    let network = chain("1.1.0", &["one", "two"]);
    for container in ["c1", "c2", "c3"] {
        world.cni.add(&network, &attachment(container)).unwrap();
    }
    world.cni.gc(&network, || vec![id("c2"), id("c9")]).unwrap();

    assert_eq!(
        world.log()[6..],
        [
            "two DEL", "one DEL", "two DEL", "one DEL", "one GC", "two GC"
        ]
    );
    let calls = world.calls();
    assert_eq!(calls[6].variable("CNI_CONTAINERID"), Some("c1"));
    assert_eq!(
        calls[6].request["prevResult"],
        result("1.1.0", "10.0.0.2/24")
    );
    assert_eq!(calls[8].variable("CNI_CONTAINERID"), Some("c3"));
    for call in &calls[10..] {
        assert_eq!(
            call.request["cni.dev/valid-attachments"],
            json!([
                {"containerID": "c2", "ifname": "eth0"}, {"containerID": "c9", "ifname": "eth0"}
            ])
        );
        assert_eq!(call.variable("CNI_CONTAINERID"), None);
        assert!(call.variable("CNI_PATH").is_some());
    }
    assert_eq!(files(&world.path("cache")), ["lock", "net:c2:eth0"]);
}

#[test]
fn other_networks_are_left_alone() {
    let world = World::new();
    world.answering("one", &json!({}));
    let other = configured(&json!({"cniVersion": "1.0.0", "name": "other", "type": "one"}));
    world.cni.add(&other, &attachment("c1")).unwrap();
    world.cni.gc(&chain("1.0.0", &["one"]), Vec::new).unwrap();
    assert_eq!(files(&world.path("cache")), ["lock", "other:c1:eth0"]);
}

#[test]
fn before_1_1_0_only_del_is_used() {
    let world = World::new();
    world.answering("one", &json!({}));
    let network = chain("1.0.0", &["one"]);
    world.add(&network).unwrap();
    world.cni.gc(&network, Vec::new).unwrap();
    assert_eq!(world.log(), ["one ADD", "one DEL"]);
}

#[test]
fn a_network_that_disables_it_is_left_alone() {
    let world = World::new();
    world.answering("one", &json!({}));
    let network = configured(&json!({
        "cniVersion": "1.1.0", "name": "net", "disableGC": true, "plugins": [{"type": "one"}],
    }));
    world.add(&network).unwrap();
    world.cni.gc(&network, Vec::new).unwrap();
    assert_eq!(world.log(), ["one ADD"]);
}

#[test]
fn it_goes_on_after_errors_and_tells_all_of_them() {
    let world = World::new();
    for name in ["one", "two"] {
        world.plugin(
            name,
            &format!(
                "test $CNI_COMMAND = ADD && echo '{{}}' && exit 0\n\
             echo '{{\"code\": 100, \"msg\": \"{name} cannot\"}}'; exit 1"
            ),
        );
    }
    let network = chain("1.1.0", &["one", "two"]);
    world.add(&network).unwrap();
    let error = world.cni.gc(&network, Vec::new).unwrap_err();
    assert!(
        matches!(&error, Error::Several(errors) if errors.len() == 4),
        "{error}"
    );
    assert_eq!(
        clean(&error),
        "CNI plugin two failed to DEL: two cannot (code 100); \
         CNI plugin one failed to DEL: one cannot (code 100); \
         CNI plugin one failed to GC: one cannot (code 100); \
         CNI plugin two failed to GC: two cannot (code 100)"
    );
    let deleted: Vec<_> = world.log()[2..].to_vec();
    assert_eq!(
        deleted,
        [
            "two DEL", "two DEL", "one DEL", "one DEL", "one GC", "two GC"
        ]
    );
    assert!(world.cache_file("c1").exists());
}

#[test]
fn a_damaged_entry_is_collected_with_what_its_name_says() {
    let world = World::new();
    world.answering("one", &json!({}));
    let network = chain("1.0.0", &["one"]);
    world.add(&network).unwrap();
    fs::write(world.cache_file("c1"), "").unwrap();
    world.cni.gc(&network, Vec::new).unwrap();
    let call = &world.calls()[1];
    assert_eq!(call.command, "DEL");
    assert_eq!(call.variable("CNI_CONTAINERID"), Some("c1"));
    assert_eq!(files(&world.path("cache")), ["lock"]);
}
