//! The mount namespace that `vm-run` was started in.
//!
//! `vm-run` works in one of its own, which goes with it. Plugins belong where the host's
//! other processes are: there they find their files, and what is mounted there for a
//! network namespace outlives a `vm-run` that is killed, so that it can be found.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use super::{NetworkError, system};

/// Held open, to go back there.
#[derive(Clone, Debug)]
pub(crate) struct HostMounts {
    file: Arc<File>,
}

impl HostMounts {
    /// Remembers the mount namespace of the calling thread.
    pub(crate) fn remember() -> io::Result<Self> {
        let file = Arc::new(File::open("/proc/thread-self/ns/mnt")?);
        Ok(Self { file })
    }

    /// Runs `work` there, on a thread of its own, and waits for its end.
    pub(super) fn enter<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, NetworkError> + Send,
    ) -> Result<T, NetworkError> {
        let failed = || system(|| "go back to the host's mount namespace".into());
        thread::scope(|scope| {
            thread::Builder::new()
                .name("host mounts".into())
                .spawn_scoped(scope, || {
                    self.move_there().map_err(failed())?;
                    work()
                })
                .map_err(failed())?
                .join()
                .unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    fn move_there(&self) -> io::Result<()> {
        // SAFETY: root and working directory become this thread's own; no descriptor and
        // no memory changes.
        unsafe { unshare_unsafe(UnshareFlags::FS) }?;
        let mounts = Some(LinkNameSpaceType::Mount);
        Ok(move_into_link_name_space(self.file.as_fd(), mounts)?)
    }
}
