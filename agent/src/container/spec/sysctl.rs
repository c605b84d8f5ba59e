//! Kernel parameters of a container and those of its pod.
//!
//! A parameter of a namespace that the container has for itself is set there. One
//! of the network, or of a namespace shared with the pod, is the guest's, for the
//! guest is the pod. Everything else belongs to no namespace and is refused.

use std::collections::HashMap;

use super::SpecError;

const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// Parameters of the container and of the guest.
#[derive(Debug, Default, Eq, PartialEq)]
pub(in crate::container) struct Split {
    /// To be set in the container's namespaces, by name.
    pub container: HashMap<String, String>,
    /// To be set in the guest, as paths below `/proc/sys`.
    pub guest: Vec<(String, String)>,
}

/// Sorts the parameters of a specification.
pub(in crate::container) fn split(
    parameters: &HashMap<String, String>,
    own_ipc: bool,
    own_uts: bool,
) -> Result<Split, SpecError> {
    let mut split = Split::default();
    for (name, value) in parameters {
        let dotted = name.replace('/', ".");
        check_name(&dotted)?;
        let is_ipc = IPC.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.");
        let is_domain = dotted == "kernel.domainname";
        let is_network = dotted.starts_with("net.");
        if (is_ipc && own_ipc) || (is_domain && own_uts) {
            split.container.insert(dotted, value.clone());
        } else if is_network || is_ipc || is_domain {
            split.guest.push((path_of(name), value.clone()));
        } else {
            let reason = "is not of a namespace of the container";
            return Err(SpecError::new(format!("linux.sysctl[{name:?}]"), reason));
        }
    }
    Ok(split)
}

/// A slash in the name stands for itself, so that an interface may have a dot.
fn path_of(name: &str) -> String {
    if name.contains('/') {
        return name.to_owned();
    }
    name.replace('.', "/")
}

fn check_name(dotted: &str) -> Result<(), SpecError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '@');
    if dotted.is_empty()
        || dotted.contains("..")
        || dotted.starts_with('.')
        || !dotted.chars().all(allowed)
    {
        return Err(SpecError::new(
            format!("linux.sysctl[{dotted:?}]"),
            "is no name of a kernel parameter",
        ));
    }
    Ok(())
}
