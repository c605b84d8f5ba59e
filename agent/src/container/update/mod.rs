//! Setting and changing the limits of a container: all of an update or nothing of it.
//!
//! [`plan`] turns `linux.resources` into writes to files of cgroup version 2, and
//! refuses by name what no file can hold. What the update leaves out stays as it
//! is. A write that the kernel refuses undoes those before it.

mod block_io;
mod cpu;
mod huge_pages;
mod memory;
mod plan;

use std::io;

use oci_spec::runtime::LinuxResources;

use super::cgroup::Cgroup;
use super::{Container, lock};
use crate::error::Error;

use plan::Write;

impl Container {
    /// Applies the limits of `linux.resources` as JSON. Takes as long as the kernel takes to
    /// reclaim what is beyond them. The rules of devices stay, as with runc's update: engines
    /// send the host's numbers along, which are other devices here.
    pub(crate) fn update(&self, resources: &[u8]) -> Result<(), Error> {
        let _one_at_a_time = lock(&self.updating);
        self.check_lives()?;
        let resources = plan::parse(resources)?;
        // Its cgroup goes with it.
        set(&self.cgroup, &resources).map_err(|error| self.check_lives().err().unwrap_or(error))
    }
}

/// Sets the limits of a container, except for the rules of its devices.
pub(super) fn set(cgroup: &Cgroup, resources: &LinuxResources) -> Result<(), Error> {
    let writes = plan::plan(resources, &|file| cgroup.read_if_there(file).ok())?;
    apply(cgroup, &writes)
}

fn apply(cgroup: &Cgroup, writes: &[Write]) -> Result<(), Error> {
    let mut done: Vec<(&str, String)> = Vec::new();
    for write in writes {
        let before = cgroup.read(&write.file);
        if let Err(error) = cgroup.write(&write.file, &write.value) {
            for (file, value) in done.iter().rev() {
                if let Err(error) = cgroup.write(file, value) {
                    log::error!("cannot set {file} back: {error}");
                }
            }
            return Err(refused(write, &error));
        }
        if let Ok(before) = before {
            done.push((&write.file, before));
        }
    }
    Ok(())
}

fn refused(write: &Write, error: &io::Error) -> Error {
    let Write { field, file, value } = write;
    let reason = match error.kind() {
        io::ErrorKind::NotFound => format!("the guest's kernel has no {file}"),
        _ => format!("the guest's kernel refuses {value:?} in {file}: {error}"),
    };
    Error::InvalidArgument(format!("{field}: {reason}"))
}
