//! The pod's own files, which containers mount over those of their images.

use std::fs;
use std::io;

use nacre_protocol::agent::SetUpPodRequest;
use nacre_protocol::{GUEST_HOSTNAME, GUEST_HOSTS, GUEST_RESOLV_CONF};

use crate::error::{Doing, Error};

/// Bytes of a file. Some hosts' `/etc/hosts` lists thousands of names.
const MAX_FILE: usize = 1 << 20;

/// Writes the files that the request has a content for.
pub(super) fn write(request: &SetUpPodRequest) -> Result<(), Error> {
    let hostname = match request.hostname.as_str() {
        "" => String::new(),
        name => format!("{name}\n"),
    };
    write_one(GUEST_RESOLV_CONF, "resolv_conf", &request.resolv_conf)?;
    write_one(GUEST_HOSTS, "hosts", &request.hosts)?;
    write_one(GUEST_HOSTNAME, "hostname", &hostname)
}

/// Writes a file; no content means no file.
fn write_one(path: &str, field: &str, content: &str) -> Result<(), Error> {
    if content.len() > MAX_FILE {
        let message = format!("{field}: more than {MAX_FILE} bytes");
        return Err(Error::InvalidArgument(message));
    }
    if content.is_empty() {
        return match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::internal(&format!("cannot remove {path}"), error))
            }
            _ => Ok(()),
        };
    }
    // In place: containers see this very file.
    fs::write(path, content).doing(&format!("cannot write {path}"))
}
