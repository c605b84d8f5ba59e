//! Resource limits of the monitor.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// As many descriptors as the host allows, since each file that the guest's
/// kernel remembers is one; no core file, since it would hold guest memory.
pub(super) fn set() -> io::Result<()> {
    let files = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: files.maximum,
            maximum: files.maximum,
        },
    )?;
    setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    )?;
    Ok(())
}
