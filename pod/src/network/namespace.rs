//! Work inside another network namespace.
//!
//! A namespace belongs to a thread: one that is made for it enters it, does the
//! work with a netlink socket of that namespace, and ends, so that no other
//! thread of the process is ever in the wrong place.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use rtnetlink::Handle;
use rustix::fs::fstatfs;
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::NetworkError;

/// `NSFS_MAGIC` of linux/magic.h: the file system of namespaces' files.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// An open network namespace.
#[derive(Debug)]
pub(super) struct Namespace {
    path: PathBuf,
    file: File,
}

impl Namespace {
    /// Opens the namespace at `path`, which must not be the host's.
    pub(super) fn open(path: &Path) -> Result<Self, NetworkError> {
        let file = File::open(path).map_err(|source| NetworkError::Open {
            path: path.into(),
            source,
        })?;
        let namespace = Self {
            path: path.into(),
            file,
        };
        if !namespace.is_of_nsfs() {
            return Err(NetworkError::NotANamespace(path.into()));
        }
        // In a container of its own, process 1 need not be in the caller's namespace.
        if namespace.is_at("/proc/1/ns/net") || namespace.is_at("/proc/thread-self/ns/net") {
            return Err(NetworkError::HostNamespace(path.into()));
        }
        Ok(namespace)
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn is_of_nsfs(&self) -> bool {
        fstatfs(&self.file).is_ok_and(|stat| stat.f_type == NSFS_MAGIC)
    }

    fn is_at(&self, other: &str) -> bool {
        match (self.file.metadata(), fs::metadata(other)) {
            (Ok(this), Ok(other)) => (this.dev(), this.ino()) == (other.dev(), other.ino()),
            _ => false,
        }
    }

    /// Runs `work` inside the namespace, with a netlink connection to it, and
    /// waits for its end.
    pub(super) fn enter<T: Send>(
        &self,
        work: impl AsyncFnOnce(Handle) -> Result<T, NetworkError> + Send,
    ) -> Result<T, NetworkError> {
        thread::scope(|scope| {
            thread::Builder::new()
                .name("netns".into())
                .spawn_scoped(scope, || self.run(work))
                .map_err(NetworkError::kernel("start a thread"))?
                .join()
                .unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Runs `work` inside the namespace, like [`enter`](Self::enter), and does not wait for
    /// its end; an error of it is logged.
    pub(super) fn stay(
        self: Arc<Self>,
        work: impl AsyncFnOnce(Handle) -> Result<(), NetworkError> + Send + 'static,
    ) -> Result<(), NetworkError> {
        let run = move || {
            if let Err(error) = self.run(work) {
                log::warn!("{error}");
            }
        };
        thread::Builder::new()
            .name("netns".into())
            .spawn(run)
            .map_err(NetworkError::kernel("start a thread"))?;
        Ok(())
    }

    fn run<T>(
        &self,
        work: impl AsyncFnOnce(Handle) -> Result<T, NetworkError>,
    ) -> Result<T, NetworkError> {
        move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network)).map_err(
            |errno| match errno {
                // A namespace, but of another kind.
                Errno::INVAL => NetworkError::NotANamespace(self.path.clone()),
                errno => NetworkError::Enter {
                    path: self.path.clone(),
                    source: errno.into(),
                },
            },
        )?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(NetworkError::kernel("start a runtime"))?;
        runtime.block_on(async {
            let (connection, netlink, _) = rtnetlink::new_connection()
                .map_err(NetworkError::kernel("open a netlink socket"))?;
            tokio::spawn(connection);
            work(netlink).await
        })
    }
}
