//! `ADD`: what plugins are given, and how results go from one to the next.

use nacre_cni::{Error, PortMapping, Protocol, Version};
use serde_json::json;

use crate::world::{NETNS, World, attachment, chain, network, result};

#[test]
fn plugins_run_in_order_and_each_gets_the_result_before_it() {
    let world = World::new();
    world.answering("one", &result("1.1.0", "10.0.0.2/24"));
    world.answering("two", &result("1.1.0", "10.0.0.3/24"));
    world.answering("three", &result("1.1.0", "10.0.0.4/24"));
    let added = world
        .add(&chain("1.1.0", &["one", "two", "three"]))
        .unwrap();
    assert_eq!(added.ips[0].address.to_string(), "10.0.0.4/24");

    assert_eq!(world.log(), ["one ADD", "two ADD", "three ADD"]);
    let calls = world.calls();
    assert_eq!(calls[0].request.get("prevResult"), None);
    assert_eq!(
        calls[1].request["prevResult"],
        result("1.1.0", "10.0.0.2/24")
    );
    assert_eq!(
        calls[2].request["prevResult"],
        result("1.1.0", "10.0.0.3/24")
    );
}

#[test]
fn the_request_has_the_networks_name_and_version_and_the_plugins_own_keys() {
    let world = World::new();
    world.answering("one", &result("1.0.0", "10.0.0.2/24"));
    let plugin = json!([{"type": "one", "bridge": "mynet0", "ipam": {"type": "host-local"}}]);
    world.add(&network("1.0.0", &plugin)).unwrap();
    assert_eq!(
        world.calls()[0].request,
        json!({
            "cniVersion": "1.0.0", "name": "net", "type": "one", "bridge": "mynet0",
            "ipam": {"type": "host-local"},
        })
    );
}

#[test]
fn the_environment_has_the_parameters_and_path_and_nothing_else() {
    let world = World::new();
    world.answering("one", &result("1.0.0", "10.0.0.2/24"));
    let mut attachment = attachment("c1");
    attachment.args.push("IgnoreUnknown", "1").unwrap();
    attachment.args.push("IP", "10.0.0.9").unwrap();
    world
        .cni
        .add(&chain("1.0.0", &["one"]), &attachment)
        .unwrap();

    let call = &world.calls()[0];
    assert_eq!(call.variable("CNI_COMMAND"), Some("ADD"));
    assert_eq!(call.variable("CNI_CONTAINERID"), Some("c1"));
    assert_eq!(call.variable("CNI_IFNAME"), Some("eth0"));
    assert_eq!(call.variable("CNI_NETNS"), Some(NETNS));
    assert_eq!(
        call.variable("CNI_ARGS"),
        Some("IgnoreUnknown=1;IP=10.0.0.9")
    );
    assert_eq!(call.variable("CNI_PATH"), world.path("plugins").to_str());
    assert!(call.variable("PATH").is_some());
    // The shell's own.
    let known = ["PATH", "PWD", "OLDPWD", "SHLVL", "_"];
    let foreign: Vec<_> = call
        .environment
        .lines()
        .filter_map(|line| line.split_once('=').map(|(key, _)| key))
        .filter(|key| !key.starts_with("CNI_") && !known.contains(key))
        .collect();
    assert_eq!(foreign, Vec::<&str>::new());
}

#[test]
fn without_arguments_there_is_no_variable_for_them() {
    let world = World::new();
    world.answering("one", &result("1.0.0", "10.0.0.2/24"));
    world.add(&chain("1.0.0", &["one"])).unwrap();
    assert_eq!(world.calls()[0].variable("CNI_ARGS"), None);
}

#[test]
fn a_capability_reaches_the_plugin_that_declares_it() {
    let world = World::new();
    world.answering("bridge", &result("1.0.0", "10.0.0.2/24"));
    world.answering("portmap", &result("1.0.0", "10.0.0.2/24"));
    let network = network(
        "1.0.0",
        &json!([
            {"type": "bridge"},
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ]),
    );
    let mut attachment = attachment("c1");
    attachment.capabilities.port_mappings = vec![PortMapping {
        host_port: 8080,
        container_port: 80,
        protocol: Protocol::Tcp,
        host_ip: None,
    }];
    world.cni.add(&network, &attachment).unwrap();
    let calls = world.calls();
    assert_eq!(calls[0].request.get("runtimeConfig"), None);
    assert_eq!(
        calls[1].request["runtimeConfig"],
        json!({
            "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
        })
    );
    assert_eq!(calls[1].request.get("capabilities"), None);
}

#[test]
fn results_are_converted_to_the_networks_version() {
    for version in ["0.3.1", "0.4.0"] {
        let world = World::new();
        // A plugin that answers in a newer version than it was asked in.
        world.answering("one", &result("1.0.0", "10.0.0.2/24"));
        world.answering("two", &result(version, "10.0.0.2/24"));
        let added = world.add(&chain(version, &["one", "two"])).unwrap();
        assert_eq!(added.version.as_str(), version);
        let given = &world.calls()[1].request["prevResult"];
        assert_eq!(given["cniVersion"], version);
        assert_eq!(given["ips"][0]["version"], "4");
        let newest = added.to_version(Version::LATEST);
        assert_eq!(
            serde_json::to_value(newest).unwrap(),
            result("1.1.0", "10.0.0.2/24")
        );
    }
}

#[test]
fn a_second_add_without_a_del_is_refused_before_any_plugin_runs() {
    let world = World::new();
    world.answering("one", &result("1.0.0", "10.0.0.2/24"));
    let network = chain("1.0.0", &["one"]);
    world.add(&network).unwrap();
    assert_eq!(
        world.add_error(&network),
        "eth0 of container c1 is on the network \"net\" already; DEL it first"
    );
    assert_eq!(world.log(), ["one ADD"]);
    world.cni.del(&network, &attachment("c1")).unwrap();
    world.add(&network).unwrap();
}

#[test]
fn an_attachment_without_namespace_and_a_network_without_plugins_are_refused() {
    let world = World::new();
    let mut attachment = attachment("c1");
    attachment.netns = None;
    let error = world
        .cni
        .add(&chain("1.0.0", &["one"]), &attachment)
        .unwrap_err();
    assert!(matches!(error, Error::NoNamespace { .. }), "{error}");
    let empty = crate::world::configured(&json!({"cniVersion": "1.1.0", "name": "net"}));
    assert_eq!(
        world.add_error(&empty),
        "the network \"net\" has no plugins"
    );
}

#[test]
fn containers_are_added_beside_one_another() {
    let world = World::new();
    world.answering("one", &result("1.0.0", "10.0.0.2/24"));
    let network = chain("1.0.0", &["one"]);
    std::thread::scope(|scope| {
        for number in 0..8 {
            let (cni, network) = (&world.cni, &network);
            scope.spawn(move || {
                let attachment = attachment(&format!("c{number}"));
                cni.add(network, &attachment).unwrap();
                cni.del(network, &attachment).unwrap();
            });
        }
    });
    assert!(world.cni.attachments().unwrap().is_empty());
}
