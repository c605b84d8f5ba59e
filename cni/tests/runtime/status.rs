//! `STATUS`, `VERSION`, and the choice of a version that all plugins speak.

use nacre_cni::Version;
use serde_json::json;

use crate::world::{World, chain, clean, configured};

/// Answers `VERSION`.
fn speaking(world: &World, name: &str, versions: &str) {
    world.plugin(
        name,
        &format!(
            "test $CNI_COMMAND = VERSION || exit 1\n\
         echo '{{\"cniVersion\": \"1.1.0\", \"supportedVersions\": [{versions}]}}'"
        ),
    );
}

#[test]
fn a_ready_network_is_ready() {
    let world = World::new();
    world.plugin("one", "");
    world.plugin("two", "");
    world.cni.status(&chain("1.1.0", &["one", "two"])).unwrap();
    assert_eq!(world.log(), ["one STATUS", "two STATUS"]);
    assert_eq!(
        world.calls()[0].request,
        json!({
            "cniVersion": "1.1.0", "name": "net", "type": "one"
        })
    );
}

#[test]
fn the_first_plugin_that_is_not_ready_gives_its_code() {
    let world = World::new();
    world.plugin(
        "one",
        "echo '{\"code\": 50, \"msg\": \"no daemon\"}'; exit 1",
    );
    world.plugin("two", "");
    let error = world
        .cni
        .status(&chain("1.1.0", &["one", "two"]))
        .unwrap_err();
    assert_eq!(error.code(), Some(50));
    assert_eq!(
        clean(&error),
        "CNI plugin one failed to STATUS: no daemon (code 50, plugin not available)"
    );
    assert_eq!(world.log(), ["one STATUS"]);
}

#[test]
fn before_1_1_0_nobody_is_asked() {
    let world = World::new();
    world.cni.status(&chain("1.0.0", &["missing"])).unwrap();
}

#[test]
fn a_plugin_tells_its_versions() {
    let world = World::new();
    speaking(&world, "one", r#""0.2.0", "0.4.0", "1.0.0""#);
    let versions = world.cni.versions(&"one".parse().unwrap()).unwrap();
    assert_eq!(versions, ["0.2.0", "0.4.0", "1.0.0"]);
    let call = &world.calls()[0];
    assert_eq!(call.command, "VERSION");
    assert_eq!(call.request, json!({"cniVersion": "1.1.0"}));
}

#[test]
fn an_answer_that_tells_no_versions_is_an_error() {
    let world = World::new();
    world.plugin("one", "echo '{\"cniVersion\": \"1.0.0\"}'");
    let error = world.cni.versions(&"one".parse().unwrap()).unwrap_err();
    let error = clean(&error);
    assert!(
        error.starts_with("CNI plugin one failed to VERSION: its result is not valid"),
        "{error}"
    );
}

#[test]
fn the_highest_version_that_all_speak_is_chosen() {
    let world = World::new();
    speaking(&world, "old", r#""0.3.1", "0.4.0", "1.0.0""#);
    speaking(&world, "new", r#""0.4.0", "1.0.0", "1.1.0", "2.0.0""#);
    let network = configured(&json!({
        "cniVersions": ["0.4.0", "1.0.0", "1.1.0"], "name": "net",
        "plugins": [{"type": "new"}, {"type": "old"}],
    }));
    assert_eq!(network.version, Version::V1_1_0);
    let agreed = world.cni.negotiate(network).unwrap();
    assert_eq!(agreed.version, Version::V1_0_0);
    assert_eq!(agreed.versions, [Version::V0_4_0, Version::V1_0_0]);
}

#[test]
fn a_plugin_too_old_for_the_configuration_is_named() {
    let world = World::new();
    speaking(&world, "old", r#""0.3.1", "0.4.0""#);
    let error = world.cni.negotiate(chain("1.0.0", &["old"])).unwrap_err();
    assert_eq!(
        clean(&error),
        "CNI plugin old failed to VERSION: it speaks CNI 0.3.1, 0.4.0, none of which suits \
         the configuration and the plugins before it"
    );
}
