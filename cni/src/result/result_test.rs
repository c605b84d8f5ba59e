use serde_json::{Value, json};

use super::*;

fn read(value: &Value) -> Result<AddResult, String> {
    AddResult::from_json(value.to_string().as_bytes(), Version::V1_1_0).map_err(|e| e.to_string())
}

fn full() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": "cni0", "mac": "00:11:22:33:44:55"},
            {"name": "eth0", "mac": "99:88:77:66:55:44", "mtu": 1450, "sandbox": "/run/netns/blue",
             "socketPath": "/run/vhost.sock", "pciID": "0000:04:00.5"}
        ],
        "ips": [
            {"address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 1},
            {"address": "fd00::5/64", "interface": 1}
        ],
        "routes": [
            {"dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1400, "advmss": 1360, "priority": 100,
             "table": 254, "scope": 0},
            {"dst": "::/0"}
        ],
        "dns": {"nameservers": ["10.1.0.1", "fd00::1"], "domain": "example.org",
                "search": ["a.example.org"], "options": ["ndots:5"]}
    })
}

#[test]
fn everything_is_read_and_written_again() {
    let result = read(&full()).unwrap();
    assert_eq!(result.interfaces[1].mtu, Some(1450));
    assert_eq!(result.ips[1].address.to_string(), "fd00::5/64");
    assert_eq!(result.routes[0].scope, Some(0));
    assert_eq!(result.dns.domain.as_deref(), Some("example.org"));
    assert_eq!(serde_json::to_value(&result).unwrap(), full());
}

#[test]
fn older_versions_get_what_they_know_and_name_the_family() {
    let result = read(&full()).unwrap();
    for version in [Version::V0_3_1, Version::V0_4_0] {
        let older = serde_json::to_value(result.to_version(version)).unwrap();
        assert_eq!(older["cniVersion"], version.as_str());
        assert_eq!(older["ips"][0]["version"], "4");
        assert_eq!(older["ips"][1]["version"], "6");
        assert_eq!(
            older["interfaces"][1],
            json!({
                "name": "eth0", "mac": "99:88:77:66:55:44", "sandbox": "/run/netns/blue"
            })
        );
        assert_eq!(
            older["routes"][0],
            json!({"dst": "0.0.0.0/0", "gw": "10.1.0.1"})
        );
    }
    let newer = serde_json::to_value(result.to_version(Version::V1_0_0)).unwrap();
    assert_eq!(newer["ips"][0].get("version"), None);
    assert_eq!(newer["interfaces"][1].get("mtu"), None);
    assert_eq!(newer["dns"], full()["dns"]);
}

#[test]
fn an_old_result_becomes_a_new_one() {
    let old = json!({
        "cniVersion": "0.3.1",
        "interfaces": [{"name": "eth0", "sandbox": "/run/netns/blue"}],
        "ips": [{"version": "4", "address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 0}],
        "dns": {}
    });
    let result = read(&old).unwrap();
    assert_eq!(result.version, Version::V0_3_1);
    assert_eq!(
        serde_json::to_value(result.to_version(Version::V1_1_0)).unwrap(),
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "eth0", "sandbox": "/run/netns/blue"}],
            "ips": [{"address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 0}]
        })
    );
    assert_eq!(
        result
            .to_version(Version::V1_1_0)
            .to_version(Version::V0_3_1),
        result
    );
}

#[test]
fn what_plugins_leave_out_or_leave_empty_is_not_there() {
    let result = read(&json!({
        "interfaces": [{"name": "eth0", "mac": "", "sandbox": "", "mtu": 0}],
        "ips": null, "routes": null,
        "dns": {"nameservers": null, "domain": ""}
    }))
    .unwrap();
    assert_eq!(result.version, Version::V1_1_0);
    assert_eq!(result.interfaces[0].mac, None);
    assert_eq!(result.interfaces[0].sandbox, None);
    assert_eq!(result.interfaces[0].mtu, None);
    assert_eq!(result.dns, Dns::default());
    assert_eq!(
        AddResult::from_json(b"{}", Version::V0_4_0)
            .unwrap()
            .version,
        Version::V0_4_0
    );
}

#[test]
fn hostile_results_are_refused_and_the_entry_is_named() {
    let interfaces = |entry: Value| json!({"interfaces": [entry]});
    let ips = |entry: Value| json!({"ips": [entry]});
    for (result, words) in [
        (json!("text"), "invalid type"),
        (json!({"cniVersion": "9.9.9"}), "CNI version \"9.9.9\""),
        (json!({"ip4": {"ip": "10.0.0.1/8"}}), "0.2.0"),
        (interfaces(json!({})), "name"),
        (
            interfaces(json!({"name": "a/../b"})),
            "interfaces[0]: interface name",
        ),
        (
            interfaces(json!({"name": "sixteen-bytes-xx"})),
            "interfaces[0]",
        ),
        (
            interfaces(json!({"name": "e", "mac": "none"})),
            "interfaces[0]: \"none\"",
        ),
        (interfaces(json!({"name": "e", "mtu": -1})), "-1"),
        (
            interfaces(json!({"name": "e", "sandbox": "/run/\u{1b}[2J"})),
            "control character",
        ),
        (
            interfaces(json!({"name": "e", "sandbox": "x".repeat(5000)})),
            "longer than 4096",
        ),
        (ips(json!({"address": "10.1.0.5"})), "ips[0]: \"10.1.0.5\""),
        (ips(json!({"address": "300.1.0.5/16"})), "ips[0]"),
        (ips(json!({"address": "10.1.0.5/33"})), "ips[0]"),
        (
            ips(json!({"address": "10.1.0.5/16", "gateway": "gw"})),
            "\"gw\" is not an IP",
        ),
        (
            ips(json!({"address": "10.1.0.5/16", "interface": 0})),
            "not in the list",
        ),
        (
            ips(json!({"address": "10.1.0.5/16", "version": "6"})),
            "family",
        ),
        (
            json!({"routes": [{"dst": "default"}]}),
            "routes[0]: \"default\"",
        ),
        (
            json!({"routes": [{"dst": "::/0", "table": 4_294_967_296_u64}]}),
            "4294967296",
        ),
        (
            json!({"dns": {"nameservers": ["localhost"]}}),
            "dns.nameservers[0]",
        ),
        (json!({"dns": {"search": ["a b"]}}), "dns.search[0]"),
        (
            json!({"dns": {"domain": "a\nnameserver 6.6.6.6"}}),
            "dns.domain[0]",
        ),
        (
            json!({"dns": {"options": ["x".repeat(300)]}}),
            "longer than 255",
        ),
        (
            json!({"routes": vec![json!({"dst": "::/0"}); 5000]}),
            "more than 4096",
        ),
        (
            json!({"ips": vec![json!({"address": "::1/128"}); 300]}),
            "more than 256",
        ),
    ] {
        let error = read(&result).unwrap_err();
        assert!(error.contains(words), "{words}: {error}");
        assert!(!error.contains(char::is_control), "{error:?}");
        assert!(error.len() < 1500);
    }
}

#[test]
fn deep_nesting_is_an_error_and_no_overflow() {
    let deep = format!("{{\"x\": {}", "[".repeat(1 << 20));
    AddResult::from_json(deep.as_bytes(), Version::V1_1_0).unwrap_err();
}
