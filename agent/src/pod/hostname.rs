//! The guest's host name.

use crate::error::{Doing, Error};

/// Longest name of `sethostname(2)`.
const MAX_LENGTH: usize = 64;

/// Sets the host name; an empty one keeps the kernel's.
pub(super) fn set(name: &str) -> Result<(), Error> {
    if name.is_empty() {
        return Ok(());
    }
    if name.len() > MAX_LENGTH || name.contains('\0') {
        let message = format!("hostname: must be at most {MAX_LENGTH} bytes");
        return Err(Error::InvalidArgument(message));
    }
    rustix::system::sethostname(name.as_bytes()).doing("cannot set the host name")
}
