//! Kernel parameters: those of the pod, and those of a container's own namespaces.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use rustix::process::Pid;
use rustix::thread::ThreadNameSpaceType;

use super::enter::enter;
use super::report::Failure;
use super::spec::sysctl;
use crate::error::Error;

/// Most parameters of a pod, and most bytes of a name and of a value.
const MAX_PARAMETERS: usize = 256;
const MAX_NAME: usize = 256;
const MAX_VALUE: usize = 4096;

/// Sets the parameters of the pod, by their names: those of its network and of the namespaces
/// that its containers share.
///
/// # Errors
/// `InvalidArgument` that names the parameter which belongs to no namespace, is too long, or
/// which the kernel does not take.
pub(crate) fn set_of_pod(parameters: &HashMap<String, String>) -> Result<(), Error> {
    check_of_pod(parameters).map_err(Error::InvalidArgument)?;
    let split = sysctl::split(parameters, false, false);
    let split = split.map_err(|error| Error::InvalidArgument(error.to_string()))?;
    let set = set_of_guest(&split.guest);
    set.map_err(|failure| Error::InvalidArgument(failure.message))
}

fn check_of_pod(parameters: &HashMap<String, String>) -> Result<(), String> {
    if parameters.len() > MAX_PARAMETERS {
        return Err(format!("linux.sysctl: more than {MAX_PARAMETERS}"));
    }
    let mut parameters = parameters.iter();
    match parameters.find(|(name, value)| name.len() > MAX_NAME || value.len() > MAX_VALUE) {
        None => Ok(()),
        Some((name, _)) => {
            let short: String = name.chars().take(80).collect();
            Err(format!("linux.sysctl[{short:?}]: too long"))
        }
    }
}

/// Sets parameters of the guest, given by their paths below `/proc/sys`.
pub(super) fn set_of_guest(parameters: &[(String, String)]) -> Result<(), Failure> {
    let mut parameters = parameters.iter();
    parameters.try_for_each(|(path, value)| set(path, &path.replace('/', "."), value))
}

/// Sets parameters, by their names, of the namespaces of a process that waits to be started.
/// The helper is in its IPC and UTS namespaces afterwards.
pub(super) fn set_of_container(
    pid: Pid,
    parameters: &HashMap<String, String>,
) -> Result<(), Failure> {
    if parameters.is_empty() {
        return Ok(());
    }
    let namespaces = ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME;
    enter(pid, namespaces).map_err(Failure::internal)?;
    let mut parameters = parameters.iter();
    parameters.try_for_each(|(name, value)| set(&name.replace('.', "/"), name, value))
}

fn set(path: &str, name: &str, value: &str) -> Result<(), Failure> {
    fs::write(Path::new("/proc/sys").join(path), value)
        .map_err(|error| Failure::invalid(format!("linux.sysctl[{name:?}]: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(name: &str, value: &str) -> String {
        let parameters = HashMap::from([(name.to_owned(), value.to_owned())]);
        set_of_pod(&parameters).unwrap_err().to_string()
    }

    #[test]
    fn a_pod_is_given_only_what_is_its_own() {
        set_of_pod(&HashMap::new()).unwrap();
        for name in ["vm.swappiness", "kernel.panic", "net/../vm/swappiness", ""] {
            let message = refusal(name, "1");
            assert!(message.starts_with("linux.sysctl["), "{message}");
        }
        let long = "9".repeat(MAX_VALUE + 1);
        assert!(refusal("net.ipv4.ip_forward", &long).contains("too long"));
        assert!(refusal(&"x".repeat(MAX_NAME + 1), "1").contains("too long"));
        let many = (0..=MAX_PARAMETERS).map(|n| (format!("net.x{n}"), String::new()));
        set_of_pod(&many.collect()).unwrap_err();
    }
}
