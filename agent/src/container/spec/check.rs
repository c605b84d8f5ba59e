//! Refuses what a guest cannot honour, by the name of the field.

use std::path::{Component, Path};

use nacre_protocol::{
    GUEST_HOSTNAME, GUEST_HOSTS, GUEST_RESOLV_CONF, GUEST_SHARE, GUEST_SHARED_MEMORY,
};
use oci_spec::runtime::{
    Capability, Hook, Linux, LinuxDevice, LinuxDeviceType, LinuxSeccomp, LinuxSeccompAction, Mount,
    Process, Spec,
};

use super::SpecError;
use super::namespaces::{self, PidNamespace, check_namespaces};

/// Highest valid umask.
const MAX_UMASK: u32 = 0o777;

/// What of the pod's own a container may have bind-mounted.
const POD_FILES: [&str; 4] = [
    GUEST_RESOLV_CONF,
    GUEST_HOSTS,
    GUEST_HOSTNAME,
    GUEST_SHARED_MEMORY,
];

/// Mount types that a container of a guest may ask for, besides binds.
const MOUNT_TYPES: [&str; 7] = [
    "proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2",
];

/// Mount types whose source is a disk of the pod.
pub(super) const DISK_TYPES: [&str; 3] = ["ext2", "ext3", "ext4"];

/// Checks every field of a specification that libcontainer would get wrong,
/// ignore, or refuse without naming it.
pub(in crate::container) fn check(spec: &Spec, pid: &PidNamespace) -> Result<(), SpecError> {
    check_version(spec.version())?;
    check_platforms(spec)?;
    let root = required(spec.root().as_ref(), "root")?;
    check_guest_path(root.path(), "root.path")?;
    check_process(required(spec.process().as_ref(), "process")?)?;
    check_linux(required(spec.linux().as_ref(), "linux")?, pid)?;
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        check_mount(mount, &format!("mounts[{index}]"))?;
    }
    check_hooks(spec)?;
    if !super::namespaces::has_uts(spec) && spec.domainname().is_some() {
        return Err(SpecError::new("domainname", "needs a uts namespace"));
    }
    Ok(())
}

fn required<'a, T>(field: Option<&'a T>, name: &str) -> Result<&'a T, SpecError> {
    field.ok_or_else(|| SpecError::new(name, "is missing"))
}

fn refuse_if(refused: bool, field: &str, reason: &str) -> Result<(), SpecError> {
    if refused {
        return Err(SpecError::new(field, reason));
    }
    Ok(())
}

fn check_version(version: &str) -> Result<(), SpecError> {
    let is_first = version
        .strip_prefix("1.")
        .is_some_and(|rest| !rest.is_empty());
    refuse_if(
        !is_first,
        "ociVersion",
        &format!("{version:?} is not supported, only 1.x"),
    )
}

fn check_platforms(spec: &Spec) -> Result<(), SpecError> {
    for (present, field) in [
        (spec.windows().is_some(), "windows"),
        (spec.solaris().is_some(), "solaris"),
        (spec.vm().is_some(), "vm"),
        (spec.zos().is_some(), "zos"),
    ] {
        refuse_if(present, field, "is of another platform")?;
    }
    Ok(())
}

/// A path of the guest that the host may name: below the share.
fn check_guest_path(path: &Path, field: &str) -> Result<(), SpecError> {
    refuse_if(
        !is_plain(path) || !path.starts_with(GUEST_SHARE),
        field,
        &format!("{path:?} is not below {GUEST_SHARE}"),
    )
}

/// Absolute, and without `..` that could lead elsewhere.
fn is_plain(path: &Path) -> bool {
    path.is_absolute()
        && !path
            .components()
            .any(|component| component == Component::ParentDir)
}

pub(super) fn check_process(process: &Process) -> Result<(), SpecError> {
    let args = process.args().as_deref().unwrap_or_default();
    refuse_if(args.is_empty(), "process.args", "must not be empty")?;
    refuse_if(
        args.first().is_some_and(String::is_empty),
        "process.args[0]",
        "must not be empty",
    )?;
    let env = process.env().as_deref().unwrap_or_default();
    for (strings, field) in [(args, "process.args"), (env, "process.env")] {
        let has_zero = strings.iter().any(|string| string.contains('\0'));
        refuse_if(has_zero, field, "contains a zero byte")?;
    }
    refuse_if(
        !process.cwd().is_absolute(),
        "process.cwd",
        "must be an absolute path",
    )?;
    refuse_if(
        process
            .user()
            .umask()
            .is_some_and(|umask| umask > MAX_UMASK),
        "process.user.umask",
        "must be at most 0777",
    )?;
    check_capabilities(process)?;
    let profile = process.apparmor_profile().as_deref().unwrap_or_default();
    refuse_if(
        !matches!(profile, "" | "unconfined"),
        "process.apparmorProfile",
        "the guest has no AppArmor",
    )?;
    let label = process.selinux_label().as_deref().unwrap_or_default();
    refuse_if(
        !label.is_empty(),
        "process.selinuxLabel",
        "the guest has no SELinux",
    )
}

/// The kernel would refuse sets that do not lie in each other, without saying which.
fn check_capabilities(process: &Process) -> Result<(), SpecError> {
    let Some(sets) = process.capabilities() else {
        return Ok(());
    };
    for (name, set, limit, within) in [
        ("effective", sets.effective(), "permitted", sets.permitted()),
        (
            "inheritable",
            sets.inheritable(),
            "bounding",
            sets.bounding(),
        ),
    ] {
        let has =
            |capability: &Capability| within.as_ref().is_some_and(|set| set.contains(capability));
        if let Some(missing) = set.iter().flatten().find(|capability| !has(capability)) {
            let reason = format!("CAP_{missing} is not in {limit}: operation not permitted");
            return Err(SpecError::new(
                format!("process.capabilities.{name}"),
                reason,
            ));
        }
    }
    Ok(())
}

/// What a process that comes later cannot be given.
pub(super) fn check_exec(process: &Process) -> Result<(), SpecError> {
    refuse_if(
        process.exec_cpu_affinity().is_some(),
        "process.execCPUAffinity",
        "is not supported for an exec",
    )
}

fn check_linux(linux: &Linux, pid: &PidNamespace) -> Result<(), SpecError> {
    check_namespaces(linux, pid)?;
    let label = linux.mount_label().as_deref().unwrap_or_default();
    refuse_if(
        !label.is_empty(),
        "linux.mountLabel",
        "the guest has no SELinux",
    )?;
    refuse_if(
        linux.intel_rdt().is_some(),
        "linux.intelRdt",
        "cannot be had in a guest",
    )?;
    refuse_if(
        linux
            .net_devices()
            .as_ref()
            .is_some_and(|devices| !devices.is_empty()),
        "linux.netDevices",
        "devices of the host cannot be moved into a guest",
    )?;
    let has_offsets = linux
        .time_offsets()
        .as_ref()
        .is_some_and(|offsets| !offsets.is_empty());
    refuse_if(
        has_offsets && !namespaces::has_time(linux),
        "linux.timeOffsets",
        "needs a time namespace",
    )?;
    let propagation = linux.rootfs_propagation().as_deref().unwrap_or_default();
    refuse_if(
        !matches!(
            propagation.trim_start_matches('r'),
            "" | "private" | "slave" | "shared" | "unbindable"
        ),
        "linux.rootfsPropagation",
        "must be private, slave, shared or unbindable",
    )?;
    for (index, device) in linux.devices().iter().flatten().enumerate() {
        check_device(device, &format!("linux.devices[{index}]"))?;
    }
    if let Some(resources) = linux.resources() {
        for key in resources
            .unified()
            .iter()
            .flat_map(|unified| unified.keys())
        {
            refuse_if(
                key.contains('/') || !key.contains('.'),
                "linux.resources.unified",
                &format!("{key:?} is no file of a cgroup"),
            )?;
        }
    }
    linux.seccomp().as_ref().map_or(Ok(()), check_seccomp)
}

fn check_device(device: &LinuxDevice, field: &str) -> Result<(), SpecError> {
    refuse_if(
        !is_plain(device.path()) || !device.path().starts_with("/dev"),
        &format!("{field}.path"),
        "must be below /dev",
    )?;
    refuse_if(
        device.typ() == LinuxDeviceType::A,
        &format!("{field}.type"),
        "must be b, c, u or p",
    )?;
    let is_number = |number| u32::try_from(number).is_ok();
    refuse_if(
        !is_number(device.major()) || !is_number(device.minor()),
        field,
        "major and minor must be device numbers",
    )
}

fn check_seccomp(seccomp: &LinuxSeccomp) -> Result<(), SpecError> {
    let notifies = seccomp.default_action() == LinuxSeccompAction::ScmpActNotify
        || seccomp
            .syscalls()
            .iter()
            .flatten()
            .any(|rule| rule.action() == LinuxSeccompAction::ScmpActNotify);
    refuse_if(
        notifies,
        "linux.seccomp",
        "SCMP_ACT_NOTIFY needs a listener, which a guest cannot reach",
    )?;
    refuse_if(
        seccomp.listener_path().is_some(),
        "linux.seccomp.listenerPath",
        "a guest cannot reach a socket of the host",
    )
}

fn check_mount(mount: &Mount, field: &str) -> Result<(), SpecError> {
    refuse_if(
        !is_plain(mount.destination()),
        &format!("{field}.destination"),
        "must be an absolute path without \"..\"",
    )?;
    let options = mount.options().as_deref().unwrap_or_default();
    let is_tmpfs = mount.typ().as_deref() == Some("tmpfs");
    for option in options {
        refuse_if(
            matches!(option.as_str(), "idmap" | "ridmap")
                || option == "tmpcopyup" && !is_tmpfs
                || option.contains('\0'),
            &format!("{field}.options"),
            &format!("{option:?} is not supported"),
        )?;
    }
    let is_mapped = mount.uid_mappings().is_some() || mount.gid_mappings().is_some();
    refuse_if(
        is_mapped,
        field,
        "uidMappings and gidMappings are not supported",
    )?;
    if is_bind(mount) {
        let source = required(mount.source().as_ref(), &format!("{field}.source"))?;
        if POD_FILES.iter().any(|file| source == Path::new(file)) {
            return Ok(());
        }
        return check_guest_path(source, &format!("{field}.source"));
    }
    let kind = mount.typ().as_deref().unwrap_or_default();
    if DISK_TYPES.contains(&kind) {
        let source = required(mount.source().as_ref(), &format!("{field}.source"))?;
        return refuse_if(
            !is_plain(source) || source.parent() != Some(Path::new("/dev")),
            &format!("{field}.source"),
            &format!("{source:?} is not a device in /dev"),
        );
    }
    refuse_if(
        !MOUNT_TYPES.contains(&kind),
        &format!("{field}.type"),
        &format!("{kind:?} is not supported"),
    )
}

/// Whether a mount is of a disk of the pod.
pub(in crate::container) fn is_disk(mount: &Mount) -> bool {
    let kind = mount.typ().as_deref().unwrap_or_default();
    DISK_TYPES.contains(&kind) && !is_bind(mount)
}

/// Whether a mount shows a file or directory that is there already.
pub(in crate::container) fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind")
        || mount
            .options()
            .iter()
            .flatten()
            .any(|option| option == "bind" || option == "rbind")
}

fn check_hooks(spec: &Spec) -> Result<(), SpecError> {
    let Some(hooks) = spec.hooks() else {
        return Ok(());
    };
    let any = |hooks: &Option<Vec<Hook>>| hooks.as_ref().is_some_and(|hooks| !hooks.is_empty());
    for (present, field) in [
        (any(hooks.prestart()), "hooks.prestart"),
        (any(hooks.create_runtime()), "hooks.createRuntime"),
        (any(hooks.poststart()), "hooks.poststart"),
        (any(hooks.poststop()), "hooks.poststop"),
    ] {
        refuse_if(present, field, "names a program of the host")?;
    }
    for (index, hook) in create_hooks(spec).iter().enumerate() {
        check_guest_path(hook.path(), &format!("hooks.createContainer[{index}].path"))?;
    }
    Ok(())
}

/// Hooks that run while the container is being created, programs in the share.
pub(super) fn create_hooks(spec: &Spec) -> &[Hook] {
    let hooks = spec.hooks().as_ref();
    hooks
        .and_then(|hooks| hooks.create_container().as_deref())
        .unwrap_or_default()
}
