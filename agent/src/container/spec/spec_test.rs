//! What of a specification is honoured in a guest, and what is refused.

use oci_spec::runtime::LinuxNamespaceType;
use serde_json::{Value, json};

use super::*;
use crate::container::id::Id;

fn base() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "root": {"path": "/run/nacre/share/c1/rootfs"},
        "process": {"args": ["sh"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/data", "type": "bind", "source": "/run/nacre/share/data",
             "options": ["rbind", "ro"]}
        ],
        "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "network"}]}
    })
}

/// `base` with the value at a JSON pointer replaced or added.
fn with(pointer: &str, value: Value) -> Value {
    let mut spec = base();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = spec.pointer_mut(parent).unwrap();
    match parent {
        Value::Array(items) => items.push(value),
        parent => parent[key] = value,
    }
    spec
}

fn run(spec: &Value) -> Result<Prepared, SpecError> {
    let spec = parse(spec.to_string().as_bytes())?;
    check(&spec, &PidNamespace::Own)?;
    prepare(
        spec,
        &Id::parse("c1", "container_id").unwrap(),
        "pod",
        &PidNamespace::Own,
    )
}

fn refused(spec: &Value) -> String {
    run(spec).unwrap_err().to_string()
}

#[test]
fn a_plain_container_uses_the_guests_network_and_gets_a_cgroup_namespace() {
    let prepared = run(&base()).unwrap();
    let linux = prepared.spec.linux().clone().unwrap();
    let kinds: Vec<_> = linux
        .namespaces()
        .iter()
        .flatten()
        .map(|n| n.typ())
        .collect();
    assert_eq!(
        kinds,
        [
            LinuxNamespaceType::Mount,
            LinuxNamespaceType::Pid,
            LinuxNamespaceType::Cgroup
        ]
    );
    let cgroup = linux.cgroups_path().clone().unwrap();
    assert_eq!(cgroup.to_str(), Some("/nacre/c1"));
}

#[test]
fn the_paths_of_the_share_are_listed_with_their_fields() {
    let fields: Vec<_> = run(&base())
        .unwrap()
        .shared
        .into_iter()
        .map(|(field, _)| field)
        .collect();
    assert_eq!(fields, ["root.path", "mounts[1].source"]);
}

#[test]
fn what_a_guest_cannot_honour_is_refused_by_name() {
    for (pointer, value, expected) in [
        ("/ociVersion", json!("2.0.0"), "ociVersion: "),
        ("/root/path", json!("/etc"), "root.path: "),
        (
            "/root/path",
            json!("/run/nacre/share/../../x"),
            "root.path: ",
        ),
        ("/process/args", json!([]), "process.args: "),
        ("/process/args", json!([""]), "process.args[0]: "),
        ("/process/args", json!(["a\u{0}b"]), "process.args: "),
        ("/process/cwd", json!("here"), "process.cwd: "),
        ("/process/user/umask", json!(0o1000), "process.user.umask: "),
        (
            "/process/apparmorProfile",
            json!("docker"),
            "process.apparmorProfile: ",
        ),
        (
            "/process/selinuxLabel",
            json!("system_u"),
            "process.selinuxLabel: ",
        ),
        (
            "/linux/namespaces/-",
            json!({"type": "user"}),
            "linux.uidMappings: a user namespace needs some",
        ),
        (
            "/linux/namespaces/-",
            json!({"type": "ipc", "path": "/proc/9/ns/ipc"}),
            "linux.namespaces[3].path: ",
        ),
        (
            "/linux/namespaces",
            json!([{"type": "mount"}]),
            "linux.namespaces: ",
        ),
        (
            "/linux/uidMappings",
            json!([{"hostID": 1, "containerID": 0, "size": 1}]),
            "linux.uidMappings: ",
        ),
        ("/linux/intelRdt", json!({}), "linux.intelRdt: "),
        (
            "/linux/netDevices",
            json!({"eth1": {}}),
            "linux.netDevices: ",
        ),
        (
            "/linux/rootfsPropagation",
            json!("odd"),
            "linux.rootfsPropagation: ",
        ),
        (
            "/linux/sysctl",
            json!({"vm.swappiness": "1"}),
            "linux.sysctl[\"vm.swappiness\"]: ",
        ),
        (
            "/linux/sysctl",
            json!({"net/../vm/x": "1"}),
            "linux.sysctl[",
        ),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}),
            "linux.seccomp.listenerPath: ",
        ),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_NOTIFY"}),
            "linux.seccomp: ",
        ),
        (
            "/linux/devices",
            json!([{"path": "/dev/../etc/x", "type": "c", "major": 1, "minor": 3}]),
            "linux.devices[0].path: ",
        ),
        (
            "/linux/resources",
            json!({"unified": {"../memory.max": "1"}}),
            "linux.resources.unified: ",
        ),
        (
            "/mounts/-",
            json!({"destination": "/x", "type": "bind", "source": "/proc/1/root"}),
            "mounts[2].source: ",
        ),
        (
            "/mounts/-",
            json!({"destination": "/x", "type": "nfs"}),
            "mounts[2].type: ",
        ),
        (
            "/mounts/-",
            json!({"destination": "x", "type": "tmpfs"}),
            "mounts[2].destination: ",
        ),
        (
            "/mounts/-",
            json!({"destination": "/x", "type": "mqueue", "options": ["tmpcopyup"]}),
            "mounts[2].options: ",
        ),
        (
            "/hooks",
            json!({"prestart": [{"path": "/h"}]}),
            "hooks.prestart: ",
        ),
        (
            "/hooks",
            json!({"createContainer": [{"path": "/h"}]}),
            "hooks.createContainer[0].path: ",
        ),
        (
            "/hooks",
            json!({"poststop": [{"path": "/h"}]}),
            "hooks.poststop: ",
        ),
        (
            "/process/capabilities",
            json!({"effective": ["CAP_KILL"], "bounding": ["CAP_KILL"]}),
            "process.capabilities.effective: CAP_KILL is not in permitted",
        ),
        (
            "/process/capabilities",
            json!({"inheritable": ["CAP_SYS_ADMIN"], "bounding": []}),
            "process.capabilities.inheritable: CAP_SYS_ADMIN is not in bounding",
        ),
        ("/hostname", json!("other"), "hostname: "),
        ("/domainname", json!("other"), "domainname: "),
        ("/windows", json!({"layerFolders": []}), "windows: "),
    ] {
        let message = refused(&with(pointer, value));
        assert!(message.starts_with(expected), "{pointer}: {message}");
    }
}

#[test]
fn missing_parts_are_named() {
    for field in ["root", "process", "linux"] {
        let mut spec = base();
        spec.as_object_mut().unwrap().remove(field);
        assert_eq!(refused(&spec), format!("{field}: is missing"));
    }
}

#[test]
fn what_is_no_specification_is_an_error_and_no_panic() {
    for json in [
        "",
        "{",
        "[]",
        "null",
        "{\"process\": 7}",
        &"[".repeat(100_000),
    ] {
        let error = parse(json.as_bytes())
            .and_then(|spec| check(&spec, &PidNamespace::Own))
            .unwrap_err();
        let message = error.to_string();
        assert!(
            message.starts_with("spec: ") || message.starts_with("ociVersion: "),
            "{message}"
        );
    }
}

#[test]
fn the_pods_files_may_be_mounted() {
    for source in [
        "/run/nacre/resolv.conf",
        "/run/nacre/hosts",
        "/run/nacre/hostname",
        "/dev/shm",
    ] {
        let mount = json!({"destination": "/x", "type": "bind", "source": source});
        run(&with("/mounts/-", mount)).unwrap();
    }
}

#[test]
fn the_pods_host_name_needs_no_namespace() {
    let prepared = run(&with("/hostname", json!("pod"))).unwrap();
    assert_eq!(prepared.spec.hostname(), &None);
}

#[test]
fn an_own_uts_namespace_keeps_its_host_name() {
    let mut spec = with("/hostname", json!("other"));
    let namespaces = spec.pointer_mut("/linux/namespaces").unwrap();
    namespaces
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "uts"}));
    let prepared = run(&spec).unwrap();
    assert_eq!(prepared.spec.hostname().as_deref(), Some("other"));
}

#[test]
fn a_parameter_goes_to_the_namespace_it_belongs_to() {
    let mut spec = with(
        "/linux/sysctl",
        json!({
            "net.ipv4.ip_forward": "1",
            "net/ipv4/conf/eth0.5/forwarding": "1",
            "kernel.shmmax": "4096"
        }),
    );
    let prepared = run(&spec).unwrap();
    let mut guest = prepared.guest_sysctls;
    guest.sort();
    let paths: Vec<_> = guest.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(
        paths,
        [
            "kernel/shmmax",
            "net/ipv4/conf/eth0.5/forwarding",
            "net/ipv4/ip_forward"
        ]
    );
    let namespaces = spec.pointer_mut("/linux/namespaces").unwrap();
    namespaces
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "ipc"}));
    let prepared = run(&spec).unwrap();
    assert_eq!(prepared.guest_sysctls.len(), 2);
    assert_eq!(prepared.sysctls["kernel.shmmax"], "4096");
}

#[test]
fn a_false_no_new_privileges_is_the_same_as_none() {
    let prepared = run(&with("/process/noNewPrivileges", json!(false))).unwrap();
    let process = prepared.spec.process().clone().unwrap();
    assert_eq!(process.no_new_privileges(), None);
    let prepared = run(&with("/process/noNewPrivileges", json!(true))).unwrap();
    let process = prepared.spec.process().clone().unwrap();
    assert_eq!(process.no_new_privileges(), Some(true));
}

#[test]
fn hooks_of_the_guest_are_kept() {
    let program = format!("{}/c/mounts/7", nacre_protocol::GUEST_SHARE);
    let hooks = json!({"startContainer": [{"path": "/h"}], "poststop": []});
    let prepared = run(&with("/hooks", hooks)).unwrap();
    assert_eq!(prepared.spec.hooks(), &None);
    assert_eq!(prepared.start_hooks.len(), 1);
    let hooks = json!({"createContainer": [{"path": program}]});
    let prepared = run(&with("/hooks", hooks)).unwrap();
    let hooks = prepared.spec.hooks().clone().unwrap();
    assert_eq!(hooks.create_container().iter().flatten().count(), 1);
    assert!(prepared.start_hooks.is_empty());
    let field = "hooks.createContainer[0].path".to_owned();
    assert!(prepared.shared.contains(&(field, program.into())));
}
