//! What a specification may not ask for, as a table: field, test, reason.
//!
//! The table works on the JSON itself, so that a field is seen even when it is
//! one that the types of `oci-spec` would drop.

use std::collections::HashSet;

use serde_json::Value;

use super::{HostCpus, Refusal, Role, devices, disks, id_maps, labels, options};

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
    /// It is a number outside of this range.
    Outside(i64, i64),
    /// It is a text of more bytes than this.
    Longer(usize),
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
const HOST_MEMORY: &str = "names memory nodes of the host";
const NO_LISTENER: &str = "a listener on the host cannot watch a guest";
const ABSOLUTE: &str = "must be an absolute path";
const POSITIVE: &str = "must be greater than zero";
const VERSION_1: &str = "exists in cgroup version 1 only; the guest has version 2";
const OTHER_PLATFORM: &str = "is of another platform; containers here run on Linux";
const PROPAGATION: &str = "mounts made later do not cross from host to guest or back; use rprivate";
const POD_USERS: &str = "user namespaces are supported for containers alone in their pod only";
const NO_ID: &str = "must be from 0 to 4294967294";
const NO_SIZE: &str = "must be from 0 to 65535";
const NO_LIMIT: &str = "must be a number of bytes, or -1 for no limit";
const NO_NAME: &str = "is longer than 64 bytes";
const FOREIGN_NAMESPACE: &str = "an existing namespace of the host cannot be joined from a guest";

/// When a specification may have programs run.
const HOOKS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

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
    rule("hostname", When::Longer(64), NO_NAME),
    rule("domainname", When::Longer(64), NO_NAME),
    rule("process.cwd", When::NotAbsolute, ABSOLUTE),
    rule("process.user.uid", When::Outside(0, MAX_ID), NO_ID),
    rule("process.user.gid", When::Outside(0, MAX_ID), NO_ID),
    rule(
        "process.user.additionalGids[*]",
        When::Outside(0, MAX_ID),
        NO_ID,
    ),
    rule(
        "process.user.umask",
        When::Outside(0, 0o777),
        "must be from 0 to 511 (octal 777)",
    ),
    rule(
        "process.oomScoreAdj",
        When::Outside(-1000, 1000),
        "must be from -1000 to 1000",
    ),
    rule(
        "process.consoleSize.height",
        When::Outside(0, 65_535),
        NO_SIZE,
    ),
    rule(
        "process.consoleSize.width",
        When::Outside(0, 65_535),
        NO_SIZE,
    ),
    rule(
        "process.ioPriority.priority",
        When::Outside(0, 7),
        "must be from 0 to 7",
    ),
    rule(
        "process.scheduler.nice",
        When::Outside(-20, 19),
        "must be from -20 to 19",
    ),
    rule(
        "process.scheduler.priority",
        When::Outside(0, 99),
        "must be from 0 to 99",
    ),
    rule("process.execCPUAffinity", When::Set, HOST_CPUS),
    rule("mounts[*].destination", When::NotAbsolute, ABSOLUTE),
    rule(
        "mounts[*].options[*]",
        When::OneOf(options::PROPAGATION),
        PROPAGATION,
    ),
    rule(
        "linux.intelRdt",
        When::Set,
        "is a property of the host's processor, not of the guest's",
    ),
    rule("linux.memoryPolicy", When::Set, HOST_MEMORY),
    rule(
        "linux.netDevices",
        When::Set,
        "network devices of the host are not moved into a guest",
    ),
    rule("linux.maskedPaths[*]", When::NotAbsolute, ABSOLUTE),
    rule("linux.readonlyPaths[*]", When::NotAbsolute, ABSOLUTE),
    rule(
        "linux.resources.memory.limit",
        When::Outside(-1, i64::MAX),
        NO_LIMIT,
    ),
    rule(
        "linux.resources.memory.reservation",
        When::Outside(-1, i64::MAX),
        NO_LIMIT,
    ),
    rule(
        "linux.resources.memory.swap",
        When::Outside(-1, i64::MAX),
        NO_LIMIT,
    ),
    rule("linux.seccomp.listenerPath", When::Set, NO_LISTENER),
    rule(
        "linux.seccomp.defaultAction",
        When::OneOf(&["SCMP_ACT_NOTIFY"]),
        NO_LISTENER,
    ),
    rule(
        "linux.seccomp.syscalls[*].action",
        When::OneOf(&["SCMP_ACT_NOTIFY"]),
        NO_LISTENER,
    ),
    rule("linux.resources.rdma", When::Set, HOST_DEVICE),
    rule("linux.resources.network.classID", When::Set, VERSION_1),
    rule("linux.resources.network.priorities", When::Set, VERSION_1),
    rule(
        "linux.resources.blockIO.weight",
        When::Outside(0, 1000),
        "must be from 10 to 1000",
    ),
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
    rule("linux.resources.cpu.mems", When::Set, HOST_MEMORY),
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
        When::Outside(0, i64::MAX),
        "must be a number of bytes",
    ),
];

/// The largest identifier of a user; the one above stands for none.
const MAX_ID: i64 = u32::MAX as i64 - 1;

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

/// Names the first field that cannot be honoured.
///
/// # Errors
/// That field as a [`Refusal`].
pub fn check(spec: &Value, role: Role) -> Result<(), Refusal> {
    require(spec)?;
    check_zero_bytes("", spec)?;
    check_rules(spec)?;
    check_hooks(spec)?;
    check_rlimits(spec)?;
    labels::check(spec, log::Level::Warn)?;
    check_namespaces(spec, role)?;
    check_mount_types(spec)?;
    options::check(spec)?;
    id_maps::check(spec, role)?;
    check_cpus(spec, role)?;
    devices::check(spec, &devices::is_of_the_host)
}

/// As [`check`], of a specification that has nothing but `process`.
pub(super) fn check_process(spec: &Value) -> Result<(), Refusal> {
    require_program(spec)?;
    check_zero_bytes("", spec)?;
    check_rules(spec)?;
    check_rlimits(spec)?;
    // Of its container, the same was said with a warning.
    labels::check(spec, log::Level::Info)
}

/// No text of the kernel's has one inside.
fn check_zero_bytes(field: &str, value: &Value) -> Result<(), Refusal> {
    let name = |key: &str| {
        if field.is_empty() {
            key.to_owned()
        } else {
            format!("{field}.{key}")
        }
    };
    match value {
        Value::String(text) if text.contains('\0') => {
            Err(Refusal::new(field, "contains a zero byte"))
        }
        Value::Array(items) => items
            .iter()
            .enumerate()
            .try_for_each(|(index, item)| check_zero_bytes(&format!("{field}[{index}]"), item)),
        Value::Object(fields) => fields.iter().try_for_each(|(key, value)| {
            if key.contains('\0') {
                return Err(Refusal::new(
                    field,
                    "has a field with a zero byte in its name",
                ));
            }
            check_zero_bytes(&name(key), value)
        }),
        _ => Ok(()),
    }
}

fn check_rlimits(spec: &Value) -> Result<(), Refusal> {
    let mut seen = HashSet::new();
    for (field, limit) in find(spec, "process.rlimits[*]") {
        let kind = limit.get("type").and_then(Value::as_str);
        if kind.is_some_and(|kind| !seen.insert(kind)) {
            return Err(Refusal::new(field, "a limit of this type is there already"));
        }
        let number = |key| limit.get(key).and_then(Value::as_u64).unwrap_or(0);
        if number("soft") > number("hard") {
            let reason = "the soft limit is above the hard one";
            return Err(Refusal::new(field, reason));
        }
    }
    Ok(())
}

fn check_rules(spec: &Value) -> Result<(), Refusal> {
    let mut rules = RULES.iter();
    rules.try_for_each(|rule| check_rule(spec, rule.field, rule.when, rule.reason))
}

fn check_hooks(spec: &Value) -> Result<(), Refusal> {
    for moment in HOOKS {
        let hook = format!("hooks.{moment}[*]");
        check_rule(spec, &format!("{hook}.path"), When::NotAbsolute, ABSOLUTE)?;
        let timeout = format!("{hook}.timeout");
        check_rule(spec, &timeout, When::Outside(1, i64::MAX), POSITIVE)?;
    }
    Ok(())
}

fn check_rule(spec: &Value, field: &str, when: When, reason: &str) -> Result<(), Refusal> {
    for (field, value) in find(spec, field) {
        if when.holds(value) {
            return Err(Refusal::new(field, format!("{}{reason}", quote(value))));
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
        if kind == "user" && role != Role::Alone {
            return Err(Refusal::new(format!("{field}.type"), POD_USERS));
        }
    }
    let mut seen = HashSet::new();
    if let Some(kind) = kinds.iter().find(|kind| !seen.insert(*kind)) {
        let reason = format!("{kind:?} is listed twice");
        return Err(Refusal::new("linux.namespaces", reason));
    }
    for (field, kind) in [
        ("linux.uidMappings", "user"),
        ("linux.gidMappings", "user"),
        ("linux.timeOffsets", "time"),
    ] {
        let is_given = find(spec, field).any(|(_, value)| says_something(value));
        let is_listed = kinds.contains(&kind);
        if is_given && !is_listed {
            let reason = format!("needs a {kind:?} namespace");
            return Err(Refusal::new(field, reason));
        }
        if is_listed && !is_given && kind == "user" {
            return Err(Refusal::new(field, "missing: a user namespace needs some"));
        }
    }
    Ok(())
}

fn check_mount_types(spec: &Value) -> Result<(), Refusal> {
    for (field, mount) in find(spec, "mounts[*]") {
        let kind = mount.get("type").and_then(Value::as_str).unwrap_or("");
        let is_known = GUEST_FILE_SYSTEMS.contains(&kind) || disks::FILE_SYSTEMS.contains(&kind);
        if !is_bind(mount) && !is_known {
            let kind = mount.get("type").unwrap_or(&Value::Null);
            let reason = format!("{}is not a file system that a guest can mount", quote(kind));
            return Err(Refusal::new(format!("{field}.type"), reason));
        }
    }
    Ok(())
}

/// The options decide, whatever the type says (runtime-spec, "mounts").
pub(super) fn is_bind(mount: &Value) -> bool {
    mount.get("type").and_then(Value::as_str) == Some("bind")
        || find(mount, "options[*]")
            .filter_map(|(_, option)| option.as_str())
            .any(|option| option == "bind" || option == "rbind")
}

/// The monitor of a pod with several containers runs on the CPUs of all of them.
fn check_cpus(spec: &Value, role: Role) -> Result<(), Refusal> {
    for (field, cpus) in find(spec, "linux.resources.cpu.cpus") {
        let text = cpus.as_str().unwrap_or_default();
        if role != Role::Alone && says_something(cpus) {
            return Err(Refusal::new(field, format!("{}{HOST_CPUS}", quote(cpus))));
        }
        if !text.is_empty() && HostCpus::parse(text).is_none() {
            let reason = format!("{}is no list of CPUs such as 0-2,5", quote(cpus));
            return Err(Refusal::new(field, reason));
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
            // A number that is none of i64 is outside of any range.
            Self::Outside(min, max) => {
                value.is_number()
                    && !value
                        .as_i64()
                        .is_some_and(|number| (min..=max).contains(&number))
            }
            Self::Longer(max) => value.as_str().is_some_and(|text| text.len() > max),
        }
    }
}

pub(super) fn says_something(value: &Value) -> bool {
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
pub(super) fn quote(value: &Value) -> String {
    match value {
        Value::String(text) if !text.is_empty() && text.chars().count() <= 80 => {
            format!("{text:?}: ")
        }
        Value::Number(number) => format!("{number}: "),
        _ => String::new(),
    }
}

/// All values at `pattern`, each with its own name.
pub(super) fn find<'a>(
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
