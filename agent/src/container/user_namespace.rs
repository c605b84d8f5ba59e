//! The user namespace of a container, and its users as the pod knows them.
//!
//! libcontainer makes a namespace of one range itself; for more it wants programs that a
//! guest does not have. So it is made here in any case, and libcontainer joins it.

use std::fmt::Write;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Spec};
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, WaitOptions, waitpid};
use serde::{Deserialize, Serialize};

use super::fork;
use super::report::Failure;

/// Makes the user namespace that a specification asks for, and lets it name that one. It
/// lasts as long as the descriptor or somebody in it. The process must have one thread.
pub(super) fn make(spec: &mut Spec) -> Result<Option<OwnedFd>, Failure> {
    let Some(mut linux) = spec.linux().clone() else {
        return Ok(None);
    };
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    let mut namespaces_of_users = namespaces
        .iter_mut()
        .filter(|namespace| namespace.typ() == LinuxNamespaceType::User);
    let Some(namespace) = namespaces_of_users.next() else {
        return Ok(None);
    };
    let made = with_mappings(
        linux.uid_mappings().as_deref().unwrap_or_default(),
        linux.gid_mappings().as_deref().unwrap_or_default(),
    )?;
    let path = format!("/proc/self/fd/{}", made.as_raw_fd());
    namespace.set_path(Some(PathBuf::from(path)));
    linux.set_namespaces(Some(namespaces));
    spec.set_linux(Some(linux));
    Ok(Some(made))
}

fn with_mappings(uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> Result<OwnedFd, Failure> {
    let (read, write) = crate::streams::open_ends().map_err(Failure::internal)?;
    let child = fork::into_user_namespace()
        .map_err(|error| Failure::internal(format!("cannot make a user namespace: {error}")))?;
    let Some(pid) = child else {
        // It is there until its parent is done.
        drop(write);
        let _ = rustix::io::read(&read, &mut [0_u8; 1]);
        std::process::exit(0);
    };
    drop(read);
    let made = set_up(pid, uids, gids);
    drop(write);
    // It ends by itself, and nobody asks how.
    let _ = waitpid(Some(pid), WaitOptions::empty());
    made
}

fn set_up(pid: Pid, uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> Result<OwnedFd, Failure> {
    let proc = format!("/proc/{}", pid.as_raw_pid());
    for (file, field, mappings) in [
        ("uid_map", "linux.uidMappings", uids),
        ("gid_map", "linux.gidMappings", gids),
    ] {
        fs::write(format!("{proc}/{file}"), lines(mappings))
            .map_err(|error| Failure::invalid(format!("{field}: {error}")))?;
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    open(format!("{proc}/ns/user"), flags, Mode::empty())
        .map_err(|error| Failure::internal(io::Error::from(error)))
}

fn lines(mappings: &[LinuxIdMapping]) -> String {
    let mut lines = String::new();
    for Range {
        inside,
        outside,
        size,
    } in mappings.iter().map(range)
    {
        // A string takes all that is written to it.
        let _ = writeln!(lines, "{inside} {outside} {size}");
    }
    lines
}

/// A range of a user namespace's users.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Range {
    inside: u32,
    outside: u32,
    size: u32,
}

/// The users of a container; without a range it has the guest's.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Users(Vec<Range>);

impl Users {
    /// Those of a specification.
    pub(super) fn of(spec: &Spec) -> Self {
        let mappings = spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.uid_mappings().as_deref())
            .unwrap_or_default();
        Self(mappings.iter().map(range).collect())
    }

    /// Whether the container has a user namespace.
    pub(super) fn are_mapped(&self) -> bool {
        !self.0.is_empty()
    }

    /// The guest's user that `uid` is in the container, if there is one.
    pub(super) fn in_guest(&self, uid: u32) -> Option<u32> {
        if !self.are_mapped() {
            return Some(uid);
        }
        self.0.iter().find_map(|range| {
            let offset = uid.checked_sub(range.inside)?;
            if offset < range.size {
                range.outside.checked_add(offset)
            } else {
                None
            }
        })
    }
}

fn range(mapping: &LinuxIdMapping) -> Range {
    Range {
        inside: mapping.container_id(),
        outside: mapping.host_id(),
        size: mapping.size(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(mappings: &str) -> Users {
        let linux = format!(r#"{{"ociVersion": "1.2.0", "linux": {{"uidMappings": {mappings}}}}}"#);
        Users::of(&serde_json::from_str(&linux).unwrap())
    }

    #[test]
    fn a_user_is_found_in_its_range_only() {
        let users = users(
            r#"[{"containerID": 0, "hostID": 100000, "size": 10},
                {"containerID": 20, "hostID": 4294967295, "size": 2}]"#,
        );
        assert!(users.are_mapped());
        assert_eq!(users.in_guest(0), Some(100_000));
        assert_eq!(users.in_guest(9), Some(100_009));
        assert_eq!(users.in_guest(10), None);
        assert_eq!(users.in_guest(20), Some(u32::MAX));
        assert_eq!(users.in_guest(21), None);
    }

    #[test]
    fn without_a_namespace_users_are_the_guests() {
        let users = users("[]");
        assert!(!users.are_mapped());
        assert_eq!(users.in_guest(7), Some(7));
    }
}
