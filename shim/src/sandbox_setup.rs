//! What a pod is made of, as the Sandbox API tells it: by the call itself, by
//! CRI's configuration of the pod, and by the bundle's specification, if any.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use containerd_shim_protos::sandbox_api::CreateSandboxRequest;
use serde_json::Value;

use crate::annotations;
use crate::failure::Failure;
use crate::pod::Setup;
use crate::sandbox_files::SandboxFiles;
use crate::sizing::Limits;
use crate::wire::Fields;

/// CRI's configuration of a pod, and the fields of it that matter here. See
/// `runtime.v1` in k8s.io/cri-api.
const POD_CONFIG: &str = "runtime.v1.PodSandboxConfig";
const METADATA: u32 = 1;
const METADATA_NAME: u32 = 1;
const METADATA_UID: u32 = 2;
const METADATA_NAMESPACE: u32 = 3;
const HOSTNAME: u32 = 2;
const DNS: u32 = 4;
const ANNOTATIONS: u32 = 7;
const LINUX: u32 = 8;
const LINUX_CGROUP_PARENT: u32 = 1;
const LINUX_SECURITY: u32 = 2;
const LINUX_SYSCTLS: u32 = 3;
const LINUX_RESOURCES: u32 = 5;
const SECURITY_NAMESPACES: u32 = 1;
const RESOURCES_CPU_PERIOD: u32 = 1;
const RESOURCES_CPU_QUOTA: u32 = 2;
const RESOURCES_MEMORY: u32 = 4;

/// `NamespaceMode` NODE: the host's.
const NODE: i64 = 2;

/// Kernel parameters that containerd sets for a pod which does not say otherwise (its
/// `enable_unprivileged_ports` and `enable_unprivileged_icmp`).
const DEFAULT_SYSCTLS: [(&str, &str); 2] = [
    ("net.ipv4.ip_unprivileged_port_start", "0"),
    ("net.ipv4.ping_group_range", "0 2147483647"),
];

/// Kinds of namespaces, by their fields in `NamespaceOption`.
const NAMESPACES: [(u32, &str); 3] = [(1, "network"), (2, "pid"), (3, "ipc")];

/// What the request wants.
///
/// # Errors
/// `InvalidArgument` for what cannot be had.
pub(crate) fn read(request: &CreateSandboxRequest) -> Result<Setup, Failure> {
    let bundle = Path::new(&request.bundle_path);
    let mut setup = from_spec(bundle)?;
    if let Some(config) = Fields::of(&request.options, POD_CONFIG) {
        add_config(&mut setup, &config, &request.sandbox_id)?;
    }
    setup.annotations.extend(request.annotations.clone());
    if !request.netns_path.is_empty() {
        setup.network = Some(request.netns_path.clone().into());
    }
    Ok(setup)
}

fn from_spec(bundle: &Path) -> Result<Setup, Failure> {
    let annotations =
        annotations::read(bundle).map_err(|error| Failure::invalid_argument(error.to_string()))?;
    // That it can be parsed has just been seen.
    let spec: Value = std::fs::read(bundle.join("config.json"))
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default();
    let text = |pointer| {
        let text = spec.pointer(pointer).and_then(Value::as_str);
        text.filter(|text| !text.is_empty()).map(str::to_owned)
    };
    Ok(Setup {
        annotations,
        limits: Limits::default(),
        network: network(&spec),
        cgroup: text("/linux/cgroupsPath").map(PathBuf::from),
        hostname: text("/hostname").unwrap_or_default(),
        ..Setup::default()
    })
}

fn network(spec: &Value) -> Option<PathBuf> {
    let namespaces = spec.pointer("/linux/namespaces")?.as_array()?;
    let is_network = |namespace: &&Value| namespace.get("type") == Some(&"network".into());
    let path = namespaces.iter().find(is_network)?.get("path")?.as_str()?;
    (!path.is_empty()).then(|| path.into())
}

fn add_config(setup: &mut Setup, config: &Fields, id: &str) -> Result<(), Failure> {
    let linux = config.message(LINUX);
    let modes = linux.message(LINUX_SECURITY).message(SECURITY_NAMESPACES);
    for (field, kind) in NAMESPACES {
        if modes.number(field) == NODE {
            return Err(Failure::invalid_argument(format!(
                "linux.security_context.namespace_options.{kind}: the host's cannot be shared \
                 with a guest"
            )));
        }
    }
    let resources = linux.message(LINUX_RESOURCES);
    setup.limits = Limits::new(
        resources.number(RESOURCES_CPU_QUOTA),
        resources.number(RESOURCES_CPU_PERIOD),
        resources.number(RESOURCES_MEMORY),
    );
    // CRI's own are containerd's to set; these are the pod's author's.
    let own = config.map(ANNOTATIONS).into_iter();
    setup
        .annotations
        .extend(own.filter(|(name, _)| !name.starts_with("io.kubernetes.cri.")));
    let metadata = config.message(METADATA);
    for (field, annotation) in [
        (METADATA_NAME, annotations::SANDBOX_NAME),
        (METADATA_UID, annotations::SANDBOX_UID),
        (METADATA_NAMESPACE, annotations::SANDBOX_NAMESPACE),
    ] {
        let text = metadata.text(field).to_owned();
        setup.annotations.insert(annotation.to_owned(), text);
    }
    if !config.text(HOSTNAME).is_empty() {
        setup.hostname = config.text(HOSTNAME).to_owned();
    }
    let parent = linux.text(LINUX_CGROUP_PARENT);
    if !parent.is_empty() {
        setup.cgroup = Some(cgroup(parent, id));
    }
    let dns = config.has(DNS).then(|| config.message(DNS));
    setup.files = Some(SandboxFiles::new(dns.as_ref())?);
    setup.sysctls = with_defaults(linux.map(LINUX_SYSCTLS));
    Ok(())
}

/// The parameters with those of containerd's that they leave open. The guest checks them.
fn with_defaults(mut sysctls: HashMap<String, String>) -> HashMap<String, String> {
    for (name, value) in DEFAULT_SYSCTLS {
        let is_it = |other: &String| other.replace('/', ".") == name;
        if !sysctls.keys().any(is_it) {
            sysctls.insert(name.to_owned(), value.to_owned());
        }
    }
    sysctls
}

/// The pod's cgroup below the one that the kubelet has made, named as containerd
/// names those of its own pods.
fn cgroup(parent: &str, id: &str) -> PathBuf {
    let base = parent.rsplit('/').next().unwrap_or(parent);
    if base.ends_with(".slice") {
        format!("{base}:cri-containerd:{id}").into()
    } else {
        Path::new(parent).join(id)
    }
}

#[cfg(test)]
mod tests {
    use protobuf::CodedOutputStream;
    use protobuf::well_known_types::any::Any;

    use super::*;

    /// A message of these fields.
    fn message(fields: &[(u32, Field<'_>)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut stream = CodedOutputStream::vec(&mut bytes);
        for (number, field) in fields {
            match field {
                Field::Text(text) => stream.write_string(*number, text),
                Field::Number(value) => stream.write_int64(*number, *value),
                Field::Message(bytes) => stream.write_bytes(*number, bytes),
            }
            .unwrap();
        }
        stream.flush().unwrap();
        drop(stream);
        bytes
    }

    enum Field<'a> {
        Text(&'a str),
        Number(i64),
        Message(Vec<u8>),
    }

    fn request(config: Vec<u8>) -> CreateSandboxRequest {
        CreateSandboxRequest {
            sandbox_id: "pod".into(),
            bundle_path: "/nowhere".into(),
            netns_path: "/run/netns/a".into(),
            options: Some(Any {
                type_url: POD_CONFIG.into(),
                value: config,
                ..Default::default()
            })
            .into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_pod_is_as_cri_configures_it() {
        let resources = message(&[
            (RESOURCES_CPU_PERIOD, Field::Number(100_000)),
            (RESOURCES_CPU_QUOTA, Field::Number(150_000)),
            (RESOURCES_MEMORY, Field::Number(1 << 28)),
        ]);
        let entry = |key, value| message(&[(1, Field::Text(key)), (2, Field::Text(value))]);
        let annotation = entry("a", "b");
        let containerds = entry("io.kubernetes.cri.sandbox-memory", "1000000000000");
        let sysctl = entry("net/ipv4/ping_group_range", "1 0");
        let dns = message(&[(1, Field::Text("10.96.0.10"))]);
        let linux = message(&[
            (LINUX_SYSCTLS, Field::Message(sysctl)),
            (LINUX_CGROUP_PARENT, Field::Text("/kubepods/pod1")),
            (LINUX_RESOURCES, Field::Message(resources)),
        ]);
        let metadata = message(&[
            (METADATA_NAME, Field::Text("web")),
            (METADATA_NAMESPACE, Field::Text("default")),
        ]);
        let config = message(&[
            (METADATA, Field::Message(metadata)),
            (HOSTNAME, Field::Text("web-0")),
            (DNS, Field::Message(dns)),
            (ANNOTATIONS, Field::Message(annotation)),
            (ANNOTATIONS, Field::Message(containerds)),
            (LINUX, Field::Message(linux)),
        ]);
        let setup = read(&request(config)).unwrap();
        assert_eq!(setup.hostname, "web-0");
        assert_eq!(setup.annotations["a"], "b");
        let sized = "io.kubernetes.cri.sandbox-memory";
        assert!(
            !setup.annotations.contains_key(sized),
            "by the pod's author"
        );
        assert_eq!(setup.annotations[annotations::SANDBOX_NAME], "web");
        assert_eq!(setup.annotations[annotations::SANDBOX_NAMESPACE], "default");
        assert_eq!(setup.limits, Limits::new(150_000, 100_000, 1 << 28));
        assert_eq!(setup.cgroup, Some("/kubepods/pod1/pod".into()));
        assert_eq!(setup.network, Some("/run/netns/a".into()));
        assert_eq!(setup.files.unwrap().resolv_conf, "nameserver 10.96.0.10\n");
        let sysctls = [
            ("net/ipv4/ping_group_range", "1 0"),
            ("net.ipv4.ip_unprivileged_port_start", "0"),
        ];
        let sysctls = sysctls.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(setup.sysctls, HashMap::from(sysctls));
    }

    #[test]
    fn namespaces_of_the_host_are_refused_by_name() {
        for (field, kind) in NAMESPACES {
            let modes = message(&[(field, Field::Number(NODE))]);
            let security = message(&[(SECURITY_NAMESPACES, Field::Message(modes))]);
            let linux = message(&[(LINUX_SECURITY, Field::Message(security))]);
            let config = message(&[(LINUX, Field::Message(linux))]);
            let failure = read(&request(config)).unwrap_err();
            assert_eq!(failure.code, ttrpc::Code::INVALID_ARGUMENT);
            assert!(failure.message.contains(kind), "{failure}");
        }
    }

    #[test]
    fn a_specification_says_it_without_cri() {
        let dir = tempfile::tempdir().unwrap();
        let spec = r#"{"hostname": "h", "annotations": {"x": "y"}, "linux": {
            "cgroupsPath": "/a/b",
            "namespaces": [{"type": "pid"}, {"type": "network", "path": "/run/netns/n"}]}}"#;
        std::fs::write(dir.path().join("config.json"), spec).unwrap();
        let request = CreateSandboxRequest {
            bundle_path: dir.path().to_str().unwrap().into(),
            ..Default::default()
        };
        let setup = read(&request).unwrap();
        assert_eq!(setup.hostname, "h");
        assert_eq!((setup.files, setup.sysctls.len()), (None, 0));
        assert_eq!(setup.annotations["x"], "y");
        assert_eq!(setup.cgroup, Some("/a/b".into()));
        assert_eq!(setup.network, Some("/run/netns/n".into()));
    }

    #[test]
    fn the_pods_cgroup_is_below_the_kubelets() {
        assert_eq!(cgroup("/kubepods/pod1", "x"), Path::new("/kubepods/pod1/x"));
        assert_eq!(
            cgroup("/kubepods.slice/kubepods-pod1.slice", "x"),
            Path::new("kubepods-pod1.slice:cri-containerd:x")
        );
    }
}
