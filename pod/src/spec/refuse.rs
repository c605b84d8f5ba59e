//! What a specification may not ask for, as a table: field, test, reason.
//!
//! The table works on the JSON itself, so that a field is seen even when it is
//! one that the types of `oci-spec` would drop.

use serde_json::Value;

use super::{Refusal, Role};

/// When a field is refused.
#[derive(Clone, Copy)]
enum When {
    /// It says something: not null, not empty, not false, not zero.
    Set,
    /// It is one of these.
    OneOf(&'static [&'static str]),
    /// It is not an absolute path.
    NotAbsolute,
    /// It is a number above zero.
    Positive,
}

/// One field that is refused.
struct Rule {
    /// Where; `[*]` stands for each element of an array.
    field: &'static str,
    when: When,
    reason: &'static str,
}

const fn rule(field: &'static str, when: When, reason: &'static str) -> Rule {
    Rule {
        field,
        when,
        reason,
    }
}

const HOST_DEVICE: &str = "names a device of the host, which does not exist inside the guest";
const HOST_CPUS: &str = "names CPUs of the host; the guest has its own (choose their number)";
const NO_HOOKS: &str = "hooks that run on the host are not supported: they act on its namespaces";
const VERSION_1: &str = "exists in cgroup version 1 only; the guest has version 2";
const OTHER_PLATFORM: &str = "is of another platform; containers here run on Linux";
const PROPAGATION: &str = "mounts made later do not cross from host to guest or back; use rprivate";
const NO_LABELS: &str = "the guest's kernel has no SELinux; the label would not be enforced";
const NO_IDMAP: &str = "ID-mapped mounts are not supported";
const NO_USERS: &str = "user namespaces inside the guest are not supported";
const FOREIGN_NAMESPACE: &str = "an existing namespace of the host cannot be joined from a guest";

/// File systems that exist inside the guest without a source from the host.
const GUEST_FILE_SYSTEMS: &[&str] = &[
    "cgroup", "cgroup2", "devpts", "mqueue", "proc", "sysfs", "tmpfs",
];

const RULES: &[Rule] = &[
    rule(
        "vm",
        When::Set,
        "the virtual machine is chosen by the front door, not by the bundle",
    ),
    rule("windows", When::Set, OTHER_PLATFORM),
    rule("solaris", When::Set, OTHER_PLATFORM),
    rule("zos", When::Set, OTHER_PLATFORM),
    rule("freebsd", When::Set, OTHER_PLATFORM),
    rule("hooks.prestart", When::Set, NO_HOOKS),
    rule("hooks.createRuntime", When::Set, NO_HOOKS),
    rule("hooks.createContainer", When::Set, NO_HOOKS),
    rule("hooks.poststart", When::Set, NO_HOOKS),
    rule("hooks.poststop", When::Set, NO_HOOKS),
    rule("process.cwd", When::NotAbsolute, "must be an absolute path"),
    rule("process.selinuxLabel", When::Set, NO_LABELS),
    rule("process.execCPUAffinity", When::Set, HOST_CPUS),
    rule(
        "mounts[*].destination",
        When::NotAbsolute,
        "must be an absolute path",
    ),
    rule(
        "mounts[*].options[*]",
        When::OneOf(&["shared", "rshared", "slave", "rslave"]),
        PROPAGATION,
    ),
    rule(
        "mounts[*].options[*]",
        When::OneOf(&["idmap", "ridmap"]),
        NO_IDMAP,
    ),
    rule(
        "mounts[*].options[*]",
        When::OneOf(&["tmpcopyup"]),
        "copying what is below a tmpfs is not supported",
    ),
    rule("mounts[*].uidMappings", When::Set, NO_IDMAP),
    rule("mounts[*].gidMappings", When::Set, NO_IDMAP),
    rule("linux.mountLabel", When::Set, NO_LABELS),
    rule(
        "linux.intelRdt",
        When::Set,
        "is a property of the host's processor, not of the guest's",
    ),
    rule(
        "linux.memoryPolicy",
        When::Set,
        "names memory nodes of the host",
    ),
    rule(
        "linux.netDevices",
        When::Set,
        "network devices of the host are not moved into a guest",
    ),
    rule("linux.uidMappings", When::Set, NO_USERS),
    rule("linux.gidMappings", When::Set, NO_USERS),
    rule(
        "linux.timeOffsets",
        When::Set,
        "time namespaces are not supported",
    ),
    rule(
        "linux.rootfsPropagation",
        When::OneOf(&["shared", "rshared"]),
        PROPAGATION,
    ),
    rule(
        "linux.seccomp.listenerPath",
        When::Set,
        "a listener on the host cannot watch a guest",
    ),
    rule(
        "linux.seccomp.defaultAction",
        When::OneOf(&["SCMP_ACT_NOTIFY"]),
        "a listener on the host cannot watch a guest",
    ),
    rule(
        "linux.seccomp.syscalls[*].action",
        When::OneOf(&["SCMP_ACT_NOTIFY"]),
        "a listener on the host cannot watch a guest",
    ),
    rule("linux.resources.rdma", When::Set, HOST_DEVICE),
    rule("linux.resources.network.classID", When::Set, VERSION_1),
    rule("linux.resources.network.priorities", When::Set, VERSION_1),
    rule("linux.resources.blockIO.weight", When::Set, HOST_DEVICE),
    rule("linux.resources.blockIO.leafWeight", When::Set, VERSION_1),
    rule(
        "linux.resources.blockIO.weightDevice",
        When::Set,
        HOST_DEVICE,
    ),
    rule(
        "linux.resources.blockIO.throttleReadBpsDevice",
        When::Set,
        HOST_DEVICE,
    ),
    rule(
        "linux.resources.blockIO.throttleWriteBpsDevice",
        When::Set,
        HOST_DEVICE,
    ),
    rule(
        "linux.resources.blockIO.throttleReadIOPSDevice",
        When::Set,
        HOST_DEVICE,
    ),
    rule(
        "linux.resources.blockIO.throttleWriteIOPSDevice",
        When::Set,
        HOST_DEVICE,
    ),
    rule("linux.resources.cpu.cpus", When::Set, HOST_CPUS),
    rule(
        "linux.resources.cpu.mems",
        When::Set,
        "names memory nodes of the host",
    ),
    rule(
        "linux.resources.cpu.realtimeRuntime",
        When::Positive,
        VERSION_1,
    ),
    rule(
        "linux.resources.cpu.realtimePeriod",
        When::Positive,
        VERSION_1,
    ),
    rule("linux.resources.memory.kernel", When::Positive, VERSION_1),
    rule(
        "linux.resources.memory.kernelTCP",
        When::Positive,
        VERSION_1,
    ),
    rule(
        "linux.resources.memory.swappiness",
        When::Positive,
        VERSION_1,
    ),
    rule(
        "linux.resources.memory.disableOOMKiller",
        When::Set,
        VERSION_1,
    ),
    rule(
        "linux.resources.hugepageLimits[*].limit",
        When::Positive,
        "the guest has no huge pages to give",
    ),
];

/// Namespaces that a container must have of its own, and what it would mean if
/// it did not.
const NAMESPACES: &[(&str, &str)] = &[
    ("mount", "the host's mounts cannot be shared with a guest"),
    ("pid", "the host's processes cannot be shared with a guest"),
    (
        "network",
        "the host's network cannot be shared with a guest",
    ),
    (
        "ipc",
        "the host's IPC objects cannot be shared with a guest",
    ),
    ("uts", "the host's host name cannot be shared with a guest"),
];

/// Character devices that the guest has as the host does.
const GUEST_DEVICES: &[(i64, i64)] = &[
    (1, 3),    // null
    (1, 5),    // zero
    (1, 7),    // full
    (1, 8),    // random
    (1, 9),    // urandom
    (5, 0),    // tty
    (5, 1),    // console
    (5, 2),    // ptmx
    (10, 200), // net/tun
    (10, 229), // fuse
];

/// Names the first field that cannot be honoured.
///
/// # Errors
/// That field as a [`Refusal`].
pub fn check(spec: &Value, role: Role) -> Result<(), Refusal> {
    require(spec)?;
    check_rules(spec)?;
    check_app_armor(spec)?;
    check_namespaces(spec, role)?;
    check_mount_types(spec)?;
    check_devices(spec)
}

/// As [`check`], of a specification that has nothing but `process`.
pub(super) fn check_process(spec: &Value) -> Result<(), Refusal> {
    require_program(spec)?;
    check_rules(spec)?;
    check_app_armor(spec)
}

fn check_rules(spec: &Value) -> Result<(), Refusal> {
    for rule in RULES {
        for (field, value) in find(spec, rule.field) {
            if rule.when.holds(value) {
                return Err(Refusal::new(
                    field,
                    format!("{}{}", quote(value), rule.reason),
                ));
            }
        }
    }
    Ok(())
}

/// What a container cannot be without.
fn require(spec: &Value) -> Result<(), Refusal> {
    for field in ["root.path", "process", "linux"] {
        if !find(spec, field).any(|(_, value)| says_something(value)) {
            return Err(Refusal::new(field, "missing"));
        }
    }
    require_program(spec)
}

fn require_program(spec: &Value) -> Result<(), Refusal> {
    let program = find(spec, "process.args")
        .next()
        .and_then(|(_, args)| args.get(0));
    match program.and_then(Value::as_str) {
        None => Err(Refusal::new(
            "process.args",
            "empty: there is no program to run",
        )),
        Some("") => Err(Refusal::new(
            "process.args[0]",
            "empty: there is no program to run",
        )),
        Some(_) => Ok(()),
    }
}

/// Prefixes of the profiles that engines give to every container where the host
/// has AppArmor. They keep a container off the host's kernel, which it is not on.
const DEFAULT_PROFILES: &[&str] = &[
    "cri-containerd.apparmor.d",
    "containers-default-",
    "crio-default",
    "docker-default",
];

/// The guest's kernel has no AppArmor: a profile that somebody chose is refused,
/// one that every container gets is left out.
fn check_app_armor(spec: &Value) -> Result<(), Refusal> {
    for (field, value) in find(spec, "process.apparmorProfile") {
        let profile = value.as_str().unwrap_or_default();
        if DEFAULT_PROFILES
            .iter()
            .any(|prefix| profile.starts_with(prefix))
        {
            log::info!("{field}: {profile:?} is not applied: the guest's kernel has no AppArmor");
        } else if says_something(value) && profile != "unconfined" {
            let reason = "the guest's kernel has no AppArmor; the profile would not be enforced";
            return Err(Refusal::new(field, format!("{}{reason}", quote(value))));
        }
    }
    Ok(())
}

fn check_namespaces(spec: &Value, role: Role) -> Result<(), Refusal> {
    let kinds: Vec<_> = find(spec, "linux.namespaces[*].type")
        .filter_map(|(_, kind)| kind.as_str())
        .collect();
    for (kind, reason) in NAMESPACES {
        if !kinds.contains(kind) {
            let reason = format!("no {kind:?} namespace: {reason}");
            return Err(Refusal::new("linux.namespaces", reason));
        }
    }
    for (field, namespace) in find(spec, "linux.namespaces[*]") {
        let path = namespace.get("path").unwrap_or(&Value::Null);
        let kind = namespace
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or_default();
        if says_something(path) && !role.may_join(kind) {
            let reason = format!("{}{FOREIGN_NAMESPACE}", quote(path));
            return Err(Refusal::new(format!("{field}.path"), reason));
        }
        if let "user" | "time" = kind {
            let reason = format!("{kind:?}: containers of a guest have no such namespace");
            return Err(Refusal::new(format!("{field}.type"), reason));
        }
    }
    Ok(())
}

fn check_mount_types(spec: &Value) -> Result<(), Refusal> {
    for (field, mount) in find(spec, "mounts[*]") {
        let kind = mount.get("type").and_then(Value::as_str).unwrap_or("");
        if !is_bind(mount) && !GUEST_FILE_SYSTEMS.contains(&kind) {
            let reason = format!("{kind:?} is not a file system that a guest can mount");
            return Err(Refusal::new(format!("{field}.type"), reason));
        }
    }
    Ok(())
}

/// The options decide, whatever the type says (runtime-spec, "mounts").
fn is_bind(mount: &Value) -> bool {
    mount.get("type").and_then(Value::as_str) == Some("bind")
        || find(mount, "options[*]")
            .filter_map(|(_, option)| option.as_str())
            .any(|option| option == "bind" || option == "rbind")
}

fn check_devices(spec: &Value) -> Result<(), Refusal> {
    for (field, device) in find(spec, "linux.devices[*]") {
        let number = |key| device.get(key).and_then(Value::as_i64).unwrap_or(0);
        let kind = device.get("type").and_then(Value::as_str);
        let known = match kind {
            Some("c" | "u") => GUEST_DEVICES.contains(&(number("major"), number("minor"))),
            Some("p") => true,
            _ => false,
        };
        if !known {
            let path = device.get("path").unwrap_or(&Value::Null);
            return Err(Refusal::new(field, format!("{}{HOST_DEVICE}", quote(path))));
        }
    }
    Ok(())
}

impl When {
    fn holds(self, value: &Value) -> bool {
        match self {
            Self::Set => says_something(value),
            Self::OneOf(refused) => value.as_str().is_some_and(|text| refused.contains(&text)),
            Self::NotAbsolute => !value.as_str().is_some_and(|path| path.starts_with('/')),
            Self::Positive => value.as_f64().is_some_and(|number| number > 0.0),
        }
    }
}

fn says_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

/// Short values are shown, so that one sees which is meant.
fn quote(value: &Value) -> String {
    match value {
        Value::String(text) if !text.is_empty() && text.chars().count() <= 80 => {
            format!("{text:?}: ")
        }
        Value::Number(number) => format!("{number}: "),
        _ => String::new(),
    }
}

/// All values at `pattern`, each with its own name.
fn find<'a>(
    value: &'a Value,
    pattern: &str,
) -> impl Iterator<Item = (String, &'a Value)> + use<'a> {
    let mut found = vec![(String::new(), value)];
    for step in pattern.split('.') {
        let (key, each) = match step.strip_suffix("[*]") {
            Some(key) => (key, true),
            None => (step, false),
        };
        found = found
            .into_iter()
            .filter_map(|(name, value)| {
                let name = if name.is_empty() {
                    key.to_owned()
                } else {
                    format!("{name}.{key}")
                };
                Some((name, value.get(key)?))
            })
            .flat_map(|(name, value)| match value {
                Value::Array(items) if each => items
                    .iter()
                    .enumerate()
                    .map(|(index, item)| (format!("{name}[{index}]"), item))
                    .collect(),
                _ if each => Vec::new(),
                value => vec![(name, value)],
            })
            .collect();
    }
    found.into_iter()
}

#[cfg(test)]
#[path = "refuse_test.rs"]
mod tests;
