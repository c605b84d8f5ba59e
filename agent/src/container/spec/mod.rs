//! From the OCI specification that the host sends to the one that is built.
//!
//! [`check`] refuses by name what would silently lose its meaning in a guest;
//! [`prepare`] then fits the rest to it. Nothing here touches the file system.

mod check;
mod namespaces;
mod prepare;
mod seccomp;
pub(super) mod sysctl;
mod sysfs;

use oci_spec::runtime::{Process, Spec};
use thiserror::Error;

pub(super) use check::{check, is_bind, is_disk};
pub(super) use namespaces::{PidNamespace, has_time};
pub(super) use prepare::{Prepared, prepare};
pub(super) use seccomp::swap_masks;

/// A field of the specification that cannot be honoured.
#[derive(Debug, Error, Eq, PartialEq)]
#[error("{field}: {reason}")]
pub(super) struct SpecError {
    field: String,
    reason: String,
}

impl SpecError {
    /// An error that names the field as it is written in `config.json`.
    pub(super) fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            reason: reason.into(),
        }
    }
}

/// Reads the JSON of a request.
pub(super) fn parse(json: &[u8]) -> Result<Spec, SpecError> {
    serde_json::from_slice(json).map_err(|error| SpecError::new("spec", error.to_string()))
}

/// Reads, checks and fits the process of an exec. Its fields are named as those
/// of `process` in `config.json`.
pub(super) fn process(json: &[u8]) -> Result<Process, SpecError> {
    let mut process: Process = serde_json::from_slice(json)
        .map_err(|error| SpecError::new("process", error.to_string()))?;
    check::check_process(&process)?;
    check::check_exec(&process)?;
    prepare::prepare_process(&mut process);
    Ok(process)
}

#[cfg(test)]
#[path = "spec_test.rs"]
mod tests;
