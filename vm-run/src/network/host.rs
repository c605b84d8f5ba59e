//! Work in the namespaces that `vm-run` was started in.
//!
//! `vm-run` works in mounts of its own, which go with it, and maybe in the pod's network.
//! Plugins belong where the host's other processes are: there they find their files, and
//! what is mounted there for a network namespace outlives a `vm-run` that is killed, so that
//! it can be found.

use std::panic::resume_unwind;
use std::thread;

use nacre_pod::host::RuntimeNamespaces;
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::{NetworkError, system};

/// Runs `work` there, on a thread of its own, and waits for its end.
pub(super) fn enter<T: Send>(
    namespaces: &RuntimeNamespaces,
    work: impl FnOnce() -> Result<T, NetworkError> + Send,
) -> Result<T, NetworkError> {
    let failed = || system(|| "go back to the host's namespaces".into());
    thread::scope(|scope| {
        thread::Builder::new()
            .name("host namespaces".into())
            .spawn_scoped(scope, || {
                // SAFETY: root and working directory become this thread's own; no
                // descriptor and no memory changes.
                unsafe { unshare_unsafe(UnshareFlags::FS) }
                    .map_err(std::io::Error::from)
                    .and_then(|()| namespaces.enter())
                    .map_err(failed())?;
                work()
            })
            .map_err(failed())?
            .join()
            .unwrap_or_else(|panic| resume_unwind(panic))
    })
}
