//! The pod's resolv.conf, which containers mount over their own.

use std::fs;
use std::io;

use nacre_protocol::GUEST_RESOLV_CONF;

use crate::error::{Doing, Error};

/// Bytes of the file; the C library reads far less.
const MAX_FILE: usize = 64 * 1024;

/// Writes the file; no content means no file.
pub(super) fn write(content: &str) -> Result<(), Error> {
    if content.len() > MAX_FILE {
        let message = format!("resolv_conf: more than {MAX_FILE} bytes");
        return Err(Error::InvalidArgument(message));
    }
    if content.is_empty() {
        return match fs::remove_file(GUEST_RESOLV_CONF) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::internal("cannot remove resolv.conf", error))
            }
            _ => Ok(()),
        };
    }
    // In place: containers see this very file.
    fs::write(GUEST_RESOLV_CONF, content).doing("cannot write resolv.conf")
}
