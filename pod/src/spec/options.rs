//! Options of mounts that mean something in a guest.
//!
//! An option that nobody knows is refused here by its place: later it would be ignored for
//! a bind mount, and the kernel's answer for a file system does not say which one it was.

use serde_json::Value;

use super::Refusal;
use super::refuse::{find, is_bind};

/// Options of every mount, as the specification lists them.
const MOUNT_OPTIONS: &[&str] = &[
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "idmap",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "noiversion",
    "nolazytime",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "rexec",
    "ridmap",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rslave",
    "rshared",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
    "unbindable",
];

/// Those of them by which a mount that is made later would cross from host to guest or back.
/// They are refused.
pub(super) const PROPAGATION: &[&str] = &["shared", "rshared", "slave", "rslave"];

/// Options of every mount that a bundle may ask for.
#[must_use]
pub fn mount_options() -> Vec<&'static str> {
    let all = MOUNT_OPTIONS.iter().copied();
    all.filter(|option| !PROPAGATION.contains(option)).collect()
}

/// What the guest's kernel takes for a file system, without the value.
fn of_file_system(kind: &str) -> &'static [&'static str] {
    match kind {
        "tmpfs" => &[
            "gid",
            "huge",
            "inode32",
            "inode64",
            "mode",
            "mpol",
            "noswap",
            "nr_blocks",
            "nr_inodes",
            "size",
            "tmpcopyup",
            "uid",
        ],
        "ext2" | "ext3" | "ext4" => &[
            "acl",
            "barrier",
            "commit",
            "data",
            "delalloc",
            "discard",
            "errors",
            "init_itable",
            "journal_checksum",
            "noacl",
            "nobarrier",
            "nodelalloc",
            "nodiscard",
            "noinit_itable",
            "noload",
            "norecovery",
            "nouser_xattr",
            "stripe",
            "user_xattr",
        ],
        "devpts" => &["gid", "max", "mode", "newinstance", "ptmxmode", "uid"],
        "proc" => &["gid", "hidepid", "subset"],
        "cgroup" | "cgroup2" => &[
            "favordynmods",
            "memory_hugetlb_accounting",
            "memory_localevents",
            "memory_recursiveprot",
            "nsdelegate",
        ],
        _ => &[],
    }
}

/// Refuses the first option that nobody knows.
pub(super) fn check(spec: &Value) -> Result<(), Refusal> {
    for (field, mount) in find(spec, "mounts[*]") {
        let kind = match mount.get("type").and_then(Value::as_str) {
            _ if is_bind(mount) => "bind",
            kind => kind.unwrap_or_default(),
        };
        for (place, option) in find(mount, "options[*]") {
            // What is no text is the types' to refuse.
            let Some(option) = option.as_str() else {
                continue;
            };
            let name = option.split('=').next().unwrap_or_default();
            if !MOUNT_OPTIONS.contains(&option) && !of_file_system(kind).contains(&name) {
                let short: String = option.chars().take(80).collect();
                let reason = format!("{short:?} is not an option of a {kind} mount");
                return Err(Refusal::new(format!("{field}.{place}"), reason));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check_one(kind: &str, options: &[&str]) -> Result<(), String> {
        let mount = json!({ "destination": "/x", "type": kind, "options": options });
        check(&json!({ "mounts": [mount] })).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn what_engines_write_is_known() {
        for (kind, options) in [
            ("proc", &["nosuid", "noexec", "nodev"][..]),
            (
                "tmpfs",
                &["nosuid", "strictatime", "mode=755", "size=65536k"],
            ),
            ("tmpfs", &["rw", "rprivate", "tmpcopyup", "nr_inodes=100"]),
            (
                "devpts",
                &["newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
            ),
            ("sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            (
                "cgroup",
                &["nosuid", "noexec", "nodev", "relatime", "ro", "nsdelegate"],
            ),
            ("mqueue", &["nosuid", "noexec", "nodev"]),
            ("bind", &["rbind", "rro", "rprivate", "nosymfollow"]),
            ("none", &["rbind", "rw"]),
        ] {
            assert_eq!(check_one(kind, options), Ok(()), "{kind} {options:?}");
        }
    }

    #[test]
    fn what_nobody_knows_is_refused_by_its_place() {
        for (kind, options, reason) in [
            (
                "tmpfs",
                &["ro", "sise=1"][..],
                "\"sise=1\" is not an option of a tmpfs mount",
            ),
            (
                "bind",
                &["bind", "mode=755"],
                "\"mode=755\" is not an option of a bind mount",
            ),
            (
                "tmpfs",
                &["bind", "size=1k"],
                "\"size=1k\" is not an option of a bind mount",
            ),
            (
                "sysfs",
                &["ro", ""],
                "\"\" is not an option of a sysfs mount",
            ),
            (
                "proc",
                &["ro", "remount"],
                "\"remount\" is not an option of a proc mount",
            ),
        ] {
            let expected = format!("mounts[0].options[1]: {reason}");
            assert_eq!(check_one(kind, options), Err(expected));
        }
    }
}
