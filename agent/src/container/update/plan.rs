//! Which files an update writes.

use oci_spec::runtime::LinuxResources;

use super::{block_io, cpu, huge_pages, memory};
use crate::error::Error;

/// Files that one update may name itself.
const MAX_UNIFIED: usize = 64;

/// One write to a file of the container's cgroup.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Write {
    /// Of the specification, for messages.
    pub(super) field: String,
    pub(super) file: String,
    pub(super) value: String,
}

impl Write {
    pub(super) fn new(field: &str, file: &str, value: impl Into<String>) -> Self {
        Self {
            field: field.to_owned(),
            file: file.to_owned(),
            value: value.into(),
        }
    }
}

/// The present content of a file, if there is such a file.
pub(super) type Current<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The error of a field that cannot be honoured.
pub(super) fn invalid(field: &str, reason: &str) -> Error {
    Error::InvalidArgument(format!("{field}: {reason}"))
}

/// What the kernel calls a limit, of which -1 is none.
pub(super) fn limit(field: &str, value: i64) -> Result<String, Error> {
    match value {
        -1 => Ok("max".to_owned()),
        0.. => Ok(value.to_string()),
        _ => Err(invalid(field, "must not be below -1")),
    }
}

/// Reads the JSON of a request.
pub(super) fn parse(json: &[u8]) -> Result<LinuxResources, Error> {
    serde_json::from_slice(json).map_err(|error| invalid("linux.resources", &error.to_string()))
}

/// The writes of an update, in their order.
pub(super) fn plan(resources: &LinuxResources, current: Current<'_>) -> Result<Vec<Write>, Error> {
    refuse_others(resources)?;
    let mut writes = Vec::new();
    if let Some(cpu) = resources.cpu() {
        cpu::plan(cpu, current, &mut writes)?;
    }
    if let Some(memory) = resources.memory() {
        memory::plan(memory, current, &mut writes)?;
    }
    if let Some(pids) = resources.pids() {
        let field = "linux.resources.pids.limit";
        // The limit that a new container gets for 0.
        let value = limit(field, pids.limit().max(-1))?;
        let value = if value == "0" { "1".to_owned() } else { value };
        writes.push(Write::new(field, "pids.max", value));
    }
    if let Some(block_io) = resources.block_io() {
        block_io::plan(block_io, &mut writes)?;
    }
    if let Some(limits) = resources.hugepage_limits() {
        huge_pages::plan(limits, current, &mut writes)?;
    }
    plan_unified(resources, &mut writes)?;
    Ok(writes)
}

fn plan_unified(resources: &LinuxResources, writes: &mut Vec<Write>) -> Result<(), Error> {
    let mut files: Vec<_> = resources.unified().iter().flatten().collect();
    if files.len() > MAX_UNIFIED {
        return Err(invalid("linux.resources.unified", "names too many files"));
    }
    files.sort_unstable();
    for (file, value) in files {
        let field = format!("linux.resources.unified[{file:?}]");
        if file.contains('/') || !file.contains('.') || file.starts_with("cgroup.") {
            return Err(invalid(&field, "is no file of a controller"));
        }
        writes.push(Write::new(&field, file, value));
    }
    Ok(())
}

/// What cgroup version 2 or a guest has no place for.
fn refuse_others(resources: &LinuxResources) -> Result<(), Error> {
    let network = resources.network().as_ref();
    for (present, field, reason) in [
        (
            resources
                .rdma()
                .as_ref()
                .is_some_and(|rdma| !rdma.is_empty()),
            "linux.resources.rdma",
            "is of the host",
        ),
        (
            network.is_some_and(|network| {
                network.class_id().is_some() || network.priorities().is_some()
            }),
            "linux.resources.network",
            "is of cgroup version 1",
        ),
    ] {
        if present {
            return Err(invalid(field, reason));
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "plan_test.rs"]
mod tests;
