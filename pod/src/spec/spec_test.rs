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

/// As [`load`], of a container "web" whose files are in the share.
fn load_shared(config: &Value) -> Bundle {
    let bundle = load(config).unwrap();
    bundle.rootfs().set_place("web/rootfs".to_owned());
    for (number, source) in bundle.shared() {
        source.set_place(format!(".volumes/{number}"));
    }
    bundle
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
        .shared()
        .map(|(index, source)| (index, source.is_dir()))
        .collect();
    assert_eq!(kinds, [(2, true), (3, false)]);
}

#[test]
fn the_guest_gets_paths_of_the_guest_and_nothing_of_the_host() {
    let guest = load_shared(&config()).guest_spec(&[]).unwrap();
    let guest: Value = serde_json::from_slice(&guest).unwrap();
    assert_eq!(guest["root"]["path"], "/run/nacre/share/web/rootfs");
    assert_eq!(guest["root"]["readonly"], true);
    assert_eq!(guest["mounts"][2]["source"], "/run/nacre/share/.volumes/2");
    assert_eq!(guest["mounts"][3]["source"], "/run/nacre/share/.volumes/3");
    assert_eq!(guest["mounts"][0]["source"], "proc");
    let options = guest["mounts"][2]["options"].as_array().unwrap();
    assert!(options.ends_with(&[json!("rbind"), json!("ro")]));
    assert_eq!(guest["linux"].get("cgroupsPath"), None);
    let limits = json!([{ "pageSize": "2MB", "limit": 0 }]);
    assert_eq!(guest["linux"]["resources"]["hugepageLimits"], limits);
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
fn files_of_the_pod_are_mounted_where_the_bundle_has_none() {
    let files = [PodFile::ResolvConf, PodFile::Hosts, PodFile::Hostname];
    let mounted = |change: fn(&mut Value)| -> Vec<Value> {
        let mut config = config();
        change(&mut config);
        let mut bundle = load(&config).unwrap();
        bundle.mount_pod_files(&files);
        let guest = bundle.guest_spec(&[]).unwrap();
        let guest: Value = serde_json::from_slice(&guest).unwrap();
        guest["mounts"].as_array().unwrap()[4..].to_vec()
    };
    let mount = |place: &str, source: &str, options: &[&str]| json!({ "destination": place, "type": "bind", "source": source, "options": options });
    // The bundle has hosts of its own, and a root that is read-only.
    assert_eq!(
        mounted(|_| ()),
        [
            mount(
                "/etc/resolv.conf",
                "/run/nacre/resolv.conf",
                &["bind", "ro"]
            ),
            mount("/etc/hostname", "/run/nacre/hostname", &["bind", "ro"]),
        ]
    );
    // They are also over a volume that is /etc.
    let in_etc = mounted(|config| {
        config["root"]["readonly"] = json!(false);
        config["mounts"][3]["destination"] = json!("/etc");
        config["mounts"][3]["source"] = json!("data");
    });
    let hosts = mount("/etc/hosts", "/run/nacre/hosts", &["bind"]);
    assert!(in_etc.len() == 3 && in_etc.contains(&hosts), "{in_etc:?}");
}

#[test]
fn devices_cpus_and_labels_of_the_host_stay_there() {
    let mut config = config();
    config["linux"]["devices"] = json!([
        { "path": "/dev/vda", "type": "b", "major": 254, "minor": 0 },
        { "path": "/dev/fuse", "type": "c", "major": 10, "minor": 229 },
    ]);
    config["linux"]["mountLabel"] = json!("system_u:object_r:container_file_t:s0");
    config["process"]["selinuxLabel"] = json!("system_u:system_r:container_t:s0");
    config["linux"]["resources"]["devices"] = json!([{ "allow": true, "access": "rwm" }]);
    config["linux"]["resources"]["cpu"]["cpus"] = json!("0,2");
    let bundle = load_shared(&config);
    assert_eq!(bundle.host_cpus().unwrap().count(), 2);
    let guest = bundle.guest_spec(&[]).unwrap();
    let guest: Value = serde_json::from_slice(&guest).unwrap();
    let devices = guest["linux"]["devices"].as_array().unwrap();
    assert_eq!(devices.len(), 1);
    assert_eq!(devices[0]["path"], "/dev/fuse");
    assert_eq!(guest["linux"]["resources"]["cpu"].get("cpus"), None);
    assert_eq!(guest["linux"].get("mountLabel"), None);
    assert_eq!(guest["process"].get("selinuxLabel"), None);
}

#[test]
fn hooks_of_the_guest_go_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("hook");
    fs::write(&program, "no script, and no program with libraries").unwrap();
    let mut config = config();
    config["hooks"] = json!({
        "startContainer": [{ "path": "/bin/true" }],
        "createContainer": [{ "path": program }, { "path": program, "args": ["x"] }],
        "createRuntime": [{ "path": "/bin/true" }],
        "poststop": []
    });
    let bundle = load_shared(&config);
    let guest = bundle.guest_spec(&[]).unwrap();
    let guest: Value = serde_json::from_slice(&guest).unwrap();
    let hooks = &guest["hooks"];
    assert_eq!(hooks["startContainer"][0]["path"], "/bin/true");
    assert_eq!(hooks.get("createRuntime"), None);
    assert_eq!(hooks.get("poststop"), None);
    let numbers: Vec<_> = bundle.shared().map(|(number, _)| number).collect();
    for (index, name) in [program.to_str().unwrap(), "x"].iter().enumerate() {
        let path = format!("/run/nacre/share/.volumes/{}", numbers[2 + index]);
        let expected = json!({ "path": path, "args": [name] });
        assert_eq!(hooks["createContainer"][index], expected);
    }
}

#[test]
fn a_hook_of_the_guest_needs_no_other_file() {
    let mut config = config();
    config["hooks"] = json!({ "createContainer": [{ "path": "/bin/sh" }] });
    let message = load(&config).unwrap_err().to_string();
    assert!(
        message.contains("hooks.createContainer[0].path: /bin/sh: runs in the guest"),
        "{message}"
    );
    config["hooks"]["createContainer"][0]["path"] = json!("/no/such");
    let message = load(&config).unwrap_err().to_string();
    assert!(message.contains("/no/such: No such file"), "{message}");
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
        message.contains("not JSON: key must be a string at line 3"),
        "{message}"
    );
}

#[test]
fn a_field_of_the_wrong_type_is_refused() {
    let mut config = config();
    config["process"]["user"]["uid"] = json!("root");
    let message = message(load(&config));
    assert!(
        message.contains("process.user.uid: invalid type: string \"root\""),
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
