//! What the annotations of a specification tell.
//!
//! Those of CRI come from containerd and are trusted; those of Nacre's own come
//! from whoever writes the pod, so there are only few, for its size.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nacre_pod::spec::Role;
use serde::Deserialize;
use thiserror::Error;

/// `sandbox` or `container`.
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
/// Identifier of the pod that a container belongs to.
const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";

/// The pod's CPU quota in microseconds of a period.
pub(crate) const SANDBOX_CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
/// The period in microseconds.
pub(crate) const SANDBOX_CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
/// The pod's memory limit in bytes.
pub(crate) const SANDBOX_MEMORY: &str = "io.kubernetes.cri.sandbox-memory";

/// The pod's name, namespace and UID in Kubernetes.
pub(crate) const SANDBOX_NAME: &str = "io.kubernetes.cri.sandbox-name";
pub(crate) const SANDBOX_NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";
pub(crate) const SANDBOX_UID: &str = "io.kubernetes.cri.sandbox-uid";
/// The container's name in its pod.
const CONTAINER_NAME: &str = "io.kubernetes.cri.container-name";

/// Memory of the guest in MiB, all included.
pub(crate) const MEMORY: &str = "io.nacre.memory-mib";
/// vCPUs of the guest.
pub(crate) const VCPUS: &str = "io.nacre.vcpus";

/// Memory in MiB that the guest may grow to while the pod runs.
pub(crate) const MAX_MEMORY: &str = "io.nacre.max-memory-mib";
/// vCPUs that it may grow to.
pub(crate) const MAX_VCPUS: &str = "io.nacre.max-vcpus";

/// By which a pod may size itself, as far as the configuration allows.
pub(crate) const SIZING: [&str; 4] = [MEMORY, VCPUS, MAX_MEMORY, MAX_VCPUS];

/// Annotations of a specification or a request.
pub(crate) type Annotations = HashMap<String, String>;

/// Why the annotations of a bundle cannot be told.
#[derive(Debug, Error)]
#[error("{}: {source}", path.display())]
pub(crate) struct SpecError {
    path: PathBuf,
    source: io::Error,
}

/// The part of a specification that matters here.
#[derive(Default, Deserialize)]
struct Spec {
    #[serde(default)]
    annotations: Option<Annotations>,
}

/// The annotations of a bundle. A sandbox of the Sandbox API may come without a
/// specification, and so without any.
pub(crate) fn read(bundle: &Path) -> Result<Annotations, SpecError> {
    let path = bundle.join("config.json");
    let spec = match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map_err(io::Error::from),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Spec::default()),
        Err(error) => Err(error),
    };
    match spec {
        Ok(spec) => Ok(spec.annotations.unwrap_or_default()),
        Err(source) => Err(SpecError { path, source }),
    }
}

/// Name in its pod of a bundle's container, if CRI has told it.
pub(crate) fn container_name(bundle: &Path) -> Option<String> {
    // A bundle that cannot be read is refused elsewhere.
    read(bundle).ok()?.remove(CONTAINER_NAME)
}

/// What a container with these annotations is to its pod.
pub(crate) fn role(annotations: &Annotations) -> Role {
    let in_pod = annotations.contains_key(SANDBOX_ID);
    match annotations.get(CONTAINER_TYPE).map(String::as_str) {
        Some("sandbox") => Role::Sandbox,
        Some("container") if in_pod => Role::Member,
        _ => Role::Alone,
    }
}

/// Identifier of the pod of the container `id` with these annotations.
pub(crate) fn pod_of<'a>(annotations: &'a Annotations, id: &'a str) -> &'a str {
    match (role(annotations), annotations.get(SANDBOX_ID)) {
        (Role::Member, Some(sandbox)) => sandbox,
        _ => id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> Annotations {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn containers_of_a_pod_are_grouped_by_cris_annotations() {
        let pause = annotations(&[(CONTAINER_TYPE, "sandbox"), (SANDBOX_ID, "pod")]);
        assert_eq!(role(&pause), Role::Sandbox);
        assert_eq!(pod_of(&pause, "pod"), "pod");
        let member = annotations(&[(CONTAINER_TYPE, "container"), (SANDBOX_ID, "pod")]);
        assert_eq!(role(&member), Role::Member);
        assert_eq!(pod_of(&member, "c"), "pod");
    }

    #[test]
    fn a_container_without_them_is_a_pod_of_its_own() {
        let none = annotations(&[]);
        assert_eq!(role(&none), Role::Alone);
        assert_eq!(pod_of(&none, "c"), "c");
        let half = annotations(&[(CONTAINER_TYPE, "container")]);
        assert_eq!(role(&half), Role::Alone);
        assert_eq!(pod_of(&half, "c"), "c");
    }
}
