//! Changing the limits of a container: all of an update or nothing of it.
//!
//! [`plan`] turns `linux.resources` into writes to files of cgroup version 2, and
//! refuses by name what no file can hold. What the update leaves out stays as it
//! is. A write that the kernel refuses undoes those before it.

mod cpu;
mod memory;
mod plan;

use std::io;

use super::cgroup::Cgroup;
use super::{Container, devices};
use crate::error::Error;

use plan::Write;

impl Container {
    /// Applies the limits of `linux.resources` as JSON.
    pub(crate) fn update(&self, resources: &[u8]) -> Result<(), Error> {
        if self.init.exit().is_some() {
            return Err(self.precondition("has stopped"));
        }
        let resources = plan::parse(resources)?;
        let writes = plan::plan(&resources, &|file| self.cgroup.read_if_there(file).ok())?;
        apply(&self.cgroup, &writes)?;
        let Some(rules) = resources.devices() else {
            return Ok(());
        };
        devices::apply(self.cgroup.path(), Some(rules)).map_err(|error| match error {
            devices::DeviceRuleError::Kernel(_) => Error::internal("cannot update", error),
            _ => Error::InvalidArgument(error.to_string()),
        })
    }
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
