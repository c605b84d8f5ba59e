//! What keeps a monitor that its guest has taken over from doing harm.
//!
//! The front door starts the monitor in user, mount, network, IPC, UTS, PID and
//! cgroup namespaces of its own (see [`client`](crate::client)); [`enter`] does
//! the rest before anything of the guest is looked at. There is no way around it.

mod capabilities;
mod limits;
mod root;
pub mod seccomp;

use std::path::Path;

use thiserror::Error;

pub use self::root::SHARE as SHARE_IN_JAIL;

/// The step at which the jail could not be closed.
#[derive(Debug, Error)]
#[error("cannot close the jail: {step}: {source}")]
pub struct JailError {
    step: &'static str,
    source: std::io::Error,
}

impl JailError {
    fn at<E: Into<std::io::Error>>(step: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self {
            step,
            source: source.into(),
        }
    }
}

/// Closes the jail around the process, which must have one thread: its root is
/// on `jail` and holds the share, its capabilities are those that a file server
/// needs, and no exec gives it others.
///
/// # Errors
/// [`JailError`]; the process must then end.
pub fn enter(jail: &Path, share: &Path) -> Result<(), JailError> {
    limits::set().map_err(JailError::at("resource limits"))?;
    root::pivot(jail, share)?;
    capabilities::reduce().map_err(JailError::at("capabilities"))?;
    rustix::thread::set_no_new_privs(true).map_err(JailError::at("no_new_privs"))
}
