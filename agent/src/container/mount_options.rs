//! Options that the kernel would refuse for a file system, found before anything is mounted:
//! what libcontainer says of one does not name it.

use oci_spec::runtime::{Mount, Spec};
use rustix::mount::{FsOpenFlags, fsconfig_set_string, fsopen};

use super::report::Failure;
use super::spec::is_bind;

/// File systems that have options with a value.
const WITH_VALUES: [&str; 3] = ["tmpfs", "devpts", "proc"];

/// Refuses the first option whose value the kernel does not take.
pub(super) fn check(spec: &Spec) -> Result<(), Failure> {
    let mounts = spec.mounts().iter().flatten().enumerate();
    mounts
        .filter(|(_, mount)| !is_bind(mount))
        .try_for_each(|(index, mount)| check_one(index, mount))
}

fn check_one(index: usize, mount: &Mount) -> Result<(), Failure> {
    let kind = mount.typ().as_deref().unwrap_or_default();
    let options = mount.options().as_deref().unwrap_or_default();
    let with_value = || {
        let options = options.iter().enumerate();
        options.filter_map(|(place, option)| Some((place, option, option.split_once('=')?)))
    };
    if !WITH_VALUES.contains(&kind) || with_value().next().is_none() {
        return Ok(());
    }
    // Never mounted: it goes with its descriptor.
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|error| Failure::invalid(format!("mounts[{index}].type: {kind:?}: {error}")))?;
    for (place, option, (name, value)) in with_value() {
        fsconfig_set_string(&context, name, value).map_err(|error| {
            Failure::invalid(format!(
                "mounts[{index}].options[{place}]: {option:?}: {error}"
            ))
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_options(options: &str) -> Result<(), Failure> {
        let spec = format!(
            r#"{{"ociVersion": "1.2.0", "mounts": [{{"destination": "/proc", "type": "proc"}},
                {{"destination": "/tmp", "type": "tmpfs", "options": {options}}}]}}"#
        );
        check(&serde_json::from_str(&spec).unwrap())
    }

    #[test]
    fn a_value_that_the_kernel_refuses_is_named() {
        // Only root may ask.
        if !rustix::process::geteuid().is_root() {
            return;
        }
        check_options(r#"["ro", "size=64k", "mode=700", "uid=7"]"#).unwrap();
        let failure = check_options(r#"["ro", "size=lots"]"#).unwrap_err();
        assert!(
            failure
                .message
                .starts_with("mounts[1].options[1]: \"size=lots\": "),
            "{}",
            failure.message
        );
    }
}
