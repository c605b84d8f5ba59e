//! The namespaces that a front door was started in: the runtime's, as the specification
//! calls them. A front door leaves them for the pod's sake; hooks and plugins belong there.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Mount and network namespace and cgroup of a process, held open to go back there.
#[derive(Debug)]
pub struct RuntimeNamespaces {
    mounts: File,
    network: File,
    /// The processes of its cgroup, where there is cgroup version 2.
    members: Option<File>,
}

impl RuntimeNamespaces {
    /// Remembers those of the calling thread.
    ///
    /// # Errors
    /// When there is no `/proc`.
    pub fn remember() -> io::Result<Self> {
        Ok(Self {
            mounts: File::open("/proc/thread-self/ns/mnt")?,
            network: File::open("/proc/thread-self/ns/net")?,
            members: members().ok(),
        })
    }

    /// Moves the calling thread into these mounts and this network. The thread must share
    /// its root and working directory with no other. Allocates nothing.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn enter(&self) -> io::Result<()> {
        for (namespace, kind) in [
            (&self.mounts, LinkNameSpaceType::Mount),
            (&self.network, LinkNameSpaceType::Network),
        ] {
            move_into_link_name_space(namespace.as_fd(), Some(kind))?;
        }
        Ok(())
    }

    /// Moves the calling process back into this cgroup. Allocates nothing.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn enter_cgroup(&self) -> io::Result<()> {
        self.members
            .as_ref()
            .map_or(Ok(()), |mut members| members.write_all(b"0"))
    }
}

fn members() -> io::Result<File> {
    let cgroups = fs::read_to_string("/proc/self/cgroup")?;
    let own = cgroups.lines().find_map(|line| line.strip_prefix("0::/"));
    let own = own.ok_or(io::ErrorKind::NotFound)?;
    let path = Path::new("/sys/fs/cgroup").join(own).join("cgroup.procs");
    File::options().write(true).open(path)
}
