//! The file systems of the guest.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::path::Path;

use nacre_protocol::{GUEST_SHARE, GUEST_SHARED_MEMORY, SHARE_TAG};
use rustix::mount::{MountFlags, mount};

use crate::container::{CGROUP_PARENT, CGROUP_ROOT};
use crate::error::{Doing, Error};

/// One file system: type, also used as its source; place; flags; options.
struct FileSystem {
    kind: &'static str,
    target: &'static str,
    flags: MountFlags,
    options: &'static CStr,
}

const NOSUID: MountFlags = MountFlags::NOSUID;
const DATA: MountFlags = NOSUID.union(MountFlags::NODEV);
const KERNEL: MountFlags = DATA.union(MountFlags::NOEXEC);

const DEVICES: FileSystem = FileSystem {
    kind: "devtmpfs",
    target: "/dev",
    flags: NOSUID,
    options: c"mode=755",
};

/// In this order; each place exists by then or is made.
const FILE_SYSTEMS: [FileSystem; 8] = [
    FileSystem {
        kind: "proc",
        target: "/proc",
        flags: KERNEL,
        options: c"",
    },
    FileSystem {
        kind: "sysfs",
        target: "/sys",
        flags: KERNEL,
        options: c"",
    },
    FileSystem {
        kind: "cgroup2",
        target: CGROUP_ROOT,
        flags: KERNEL,
        options: c"",
    },
    FileSystem {
        kind: "devpts",
        target: "/dev/pts",
        flags: NOSUID.union(MountFlags::NOEXEC),
        options: c"mode=620,ptmxmode=666",
    },
    FileSystem {
        kind: "tmpfs",
        target: GUEST_SHARED_MEMORY,
        flags: KERNEL,
        options: c"mode=1777",
    },
    FileSystem {
        kind: "mqueue",
        target: "/dev/mqueue",
        flags: KERNEL,
        options: c"",
    },
    FileSystem {
        kind: "tmpfs",
        target: "/run",
        flags: DATA,
        options: c"mode=755",
    },
    FileSystem {
        kind: "tmpfs",
        target: "/tmp",
        flags: DATA,
        options: c"mode=1777",
    },
];

/// Mounts the devices, which logging needs.
pub(super) fn early() -> Result<(), Error> {
    mount_one(&DEVICES)
}

/// Mounts everything else and the share, and enables the cgroup controllers.
pub(super) fn rest() -> Result<(), Error> {
    for file_system in &FILE_SYSTEMS {
        mount_one(file_system)?;
    }
    mount_share()?;
    let root = Path::new(CGROUP_ROOT);
    let containers = root.join(CGROUP_PARENT);
    fs::create_dir(&containers).doing("cannot make the containers' cgroup")?;
    enable_controllers(root)?;
    enable_controllers(&containers)
}

fn mount_one(file_system: &FileSystem) -> Result<(), Error> {
    let FileSystem {
        kind,
        target,
        flags,
        options,
    } = file_system;
    make_directory(target)?;
    mount(*kind, *target, *kind, *flags, *options)
        .doing(&format!("cannot mount {kind} on {target}"))
}

fn make_directory(path: &str) -> Result<(), Error> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(Error::internal(&format!("cannot make {path}"), error))
        }
        _ => Ok(()),
    }
}

fn mount_share() -> Result<(), Error> {
    fs::create_dir_all(GUEST_SHARE).doing("cannot make the share's directory")?;
    mount(SHARE_TAG, GUEST_SHARE, "virtiofs", MountFlags::empty(), c"")
        .doing("cannot mount the share: is there a virtio-fs device with the tag \"nacre\"?")
}

/// Lets the cgroups below one use every controller there is.
fn enable_controllers(cgroup: &Path) -> Result<(), Error> {
    let doing = "cannot enable the cgroup controllers";
    let available = fs::read_to_string(cgroup.join("cgroup.controllers")).doing(doing)?;
    let enable = enable_all(&available);
    fs::write(cgroup.join("cgroup.subtree_control"), enable).doing(doing)
}

fn enable_all(controllers: &str) -> String {
    let enabled: Vec<_> = controllers
        .split_whitespace()
        .map(|controller| format!("+{controller}"))
        .collect();
    enabled.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_controllers_are_enabled_in_one_write() {
        assert_eq!(enable_all("cpuset cpu io\n"), "+cpuset +cpu +io");
        assert_eq!(enable_all(""), "");
    }
}
