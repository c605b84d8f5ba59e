use std::fs;

use serde_json::json;
use tempfile::TempDir;

use super::*;

/// A bundle with what `runc spec --bundle` writes in a few more words.
fn config() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "terminal": true,
            "consoleSize": { "height": 24, "width": 80 },
            "user": { "uid": 0, "gid": 0 },
            "args": ["sh"],
            "env": ["PATH=/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": { "bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"] },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "runc",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] },
            { "destination": "/data", "type": "bind", "source": "data", "options": ["rbind", "ro"] },
            { "destination": "/etc/hosts", "source": "hosts", "options": ["bind"] },
        ],
        "linux": {
            "cgroupsPath": "/pods/x",
            "resources": {
                "memory": { "limit": 67_108_864 },
                "cpu": { "quota": 150_000, "period": 100_000 },
                "hugepageLimits": [{ "pageSize": "2MB", "limit": 0 }],
            },
            "namespaces": [
                { "type": "pid" }, { "type": "network", "path": "/run/netns/x" }, { "type": "ipc" },
                { "type": "uts" }, { "type": "mount" }, { "type": "cgroup" },
            ],
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"],
        },
    })
}

fn bundle_with(config: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("rootfs")).unwrap();
    fs::create_dir(dir.path().join("data")).unwrap();
    fs::write(dir.path().join("hosts"), "127.0.0.1 localhost\n").unwrap();
    fs::write(dir.path().join("config.json"), config).unwrap();
    dir
}

fn load(config: &Value) -> Result<Bundle, BundleError> {
    let dir = bundle_with(&config.to_string());
    Bundle::load(dir.path())
}

fn message(result: Result<Bundle, BundleError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn a_bundle_says_what_its_pod_needs() {
    let bundle = load(&config()).unwrap();
    assert!(bundle.terminal());
    let size = bundle.terminal_size().unwrap();
    assert_eq!((size.columns, size.rows), (80, 24));
    assert_eq!(bundle.network_namespace(), Some(Path::new("/run/netns/x")));
    assert_eq!(bundle.cgroup(), Some(Path::new("/pods/x")));
    assert_eq!(bundle.memory_limit(), Some(64 << 20));
    assert_eq!(bundle.cpu_limit(), Some(2));
    assert!(bundle.rootfs().is_dir());
    let kinds: Vec<_> = bundle
        .binds()
        .iter()
        .map(|(index, source)| (*index, source.is_dir()))
        .collect();
    assert_eq!(kinds, [(2, true), (3, false)]);
}

#[test]
fn the_guest_gets_paths_of_the_guest_and_nothing_of_the_host() {
    let guest = load(&config()).unwrap().guest_spec("web").unwrap();
    let guest: Value = serde_json::from_slice(&guest).unwrap();
    assert_eq!(guest["root"]["path"], "/run/nacre/share/web/rootfs");
    assert_eq!(guest["root"]["readonly"], true);
    assert_eq!(
        guest["mounts"][2]["source"],
        "/run/nacre/share/web/mounts/2"
    );
    assert_eq!(
        guest["mounts"][3]["source"],
        "/run/nacre/share/web/mounts/3"
    );
    assert_eq!(guest["mounts"][0]["source"], "proc");
    assert_eq!(guest["mounts"][2]["options"], json!(["rbind", "ro"]));
    assert_eq!(guest["linux"].get("cgroupsPath"), None);
    assert_eq!(guest["linux"]["resources"].get("hugepageLimits"), None);
    let kinds: Vec<_> = guest["linux"]["namespaces"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| &n["type"])
        .collect();
    assert_eq!(kinds, ["pid", "ipc", "uts", "mount", "cgroup"]);
    for kept in [
        "args",
        "env",
        "capabilities",
        "rlimits",
        "noNewPrivileges",
        "cwd",
    ] {
        assert_eq!(guest["process"][kept], config()["process"][kept], "{kept}");
    }
    assert_eq!(
        guest["linux"]["maskedPaths"],
        config()["linux"]["maskedPaths"]
    );
    assert!(!guest.to_string().contains("/run/netns"));
}

#[test]
fn hooks_of_the_container_go_with_it() {
    let mut config = config();
    config["hooks"] = json!({ "startContainer": [{ "path": "/bin/true" }], "poststop": [] });
    let guest = load(&config).unwrap().guest_spec("web").unwrap();
    let guest: Value = serde_json::from_slice(&guest).unwrap();
    assert_eq!(guest["hooks"]["startContainer"][0]["path"], "/bin/true");
    assert_eq!(guest["hooks"].get("poststop"), None);
}

#[test]
fn a_refused_field_is_named_with_its_file() {
    let mut config = config();
    config["linux"]["intelRdt"] = json!({ "closID": "x" });
    let message = message(load(&config));
    assert!(
        message.contains("/config.json: linux.intelRdt: "),
        "{message}"
    );
}

#[test]
fn a_bundle_without_config_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let message = message(Bundle::load(dir.path()));
    assert!(
        message.ends_with("config.json: No such file or directory (os error 2)"),
        "{message}"
    );
}

#[test]
fn broken_json_is_named_with_its_line() {
    let dir = bundle_with("{\n  \"ociVersion\": \"1.0.0\",\n  oops\n}");
    let message = message(Bundle::load(dir.path()));
    assert!(
        message.contains("not a valid OCI specification: key must be a string at line 3"),
        "{message}"
    );
}

#[test]
fn a_field_of_the_wrong_type_is_refused() {
    let mut config = config();
    config["process"]["user"]["uid"] = json!("root");
    let message = message(load(&config));
    assert!(
        message.contains("not a valid OCI specification: invalid type: string \"root\""),
        "{message}"
    );
}

#[test]
fn a_specification_that_fits_no_message_is_refused() {
    let dir = bundle_with(&" ".repeat(usize::try_from(MAX_SPEC).unwrap() + 1));
    let message = message(Bundle::load(dir.path()));
    assert!(
        message.ends_with("config.json: larger than 3 MiB"),
        "{message}"
    );
}

#[test]
fn a_root_that_is_missing_or_a_file_is_refused() {
    for (path, reason) in [("nothing", "No such file"), ("hosts", "not a directory")] {
        let mut config = config();
        config["root"]["path"] = json!(path);
        let message = message(load(&config));
        assert!(message.contains(": root.path: "), "{message}");
        assert!(message.contains(reason), "{message}");
    }
}

#[test]
fn a_source_that_cannot_be_shared_is_refused_by_its_number() {
    for (source, reason) in [
        ("nothing", "No such file"),
        ("/dev/null", "is a device of the host"),
        ("/proc/sys", "is the host's proc"),
        ("/sys", "is the host's sysfs"),
    ] {
        let mut config = config();
        config["mounts"][2]["source"] = json!(source);
        let message = message(load(&config));
        assert!(message.contains(": mounts[2].source: "), "{message}");
        assert!(message.contains(reason), "{message}");
    }
    let mut config = config();
    config["mounts"][3]
        .as_object_mut()
        .unwrap()
        .remove("source");
    assert!(message(load(&config)).ends_with(": mounts[3].source: missing"));
}

#[test]
fn a_directory_with_the_hosts_kernel_below_is_refused_only_with_what_is_below() {
    let mut config = config();
    config["mounts"][2]["source"] = json!("/");
    let message = message(load(&config));
    assert!(message.contains(": mounts[2].source: /: /"), "{message}");
    config["mounts"][2]["options"] = json!(["bind", "ro"]);
    load(&config).unwrap();
}

#[test]
fn a_socket_or_fifo_does_not_work_across_the_share() {
    let mut config = config();
    let dir = bundle_with("");
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    config["mounts"][2]["source"] = json!("socket");
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let message = message(Bundle::load(dir.path()));
    assert!(
        message.contains("mounts[2].source") && message.contains("is a socket"),
        "{message}"
    );
}
