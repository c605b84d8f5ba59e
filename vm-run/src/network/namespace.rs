//! Named network namespaces, as `ip netns` makes them: a file below `/run/netns` on which
//! the namespace is mounted, so that it stays until somebody unmounts it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::io::Errno;
use rustix::mount::{
    MountPropagationFlags, UnmountFlags, mount_bind, mount_bind_recursive, mount_change, unmount,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::owner::Id;

/// Where `ip netns` looks for them.
const DIR: &str = "/run/netns";

/// The calling thread's own.
const OWN: &str = "/proc/thread-self/ns/net";

/// The file of a pod's namespace.
pub(super) fn path(id: &Id) -> PathBuf {
    Path::new(DIR).join(id.as_str())
}

/// Makes a namespace in which there is nothing but `lo`.
///
/// # Errors
/// The system's answer; nothing is then left.
pub(super) fn make(id: &Id) -> io::Result<PathBuf> {
    share_dir()?;
    let path = path(id);
    File::options()
        .write(true)
        .create_new(true)
        .mode(0o444)
        .open(&path)?;
    // A namespace belongs to a thread: this one has no other use.
    let made = thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, || mount_new(&path))?;
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    if let Err(error) = made {
        remove(id)?;
        return Err(error);
    }
    Ok(path)
}

fn mount_new(path: &Path) -> io::Result<()> {
    // SAFETY: a new network namespace changes no descriptor and no memory.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
    Ok(mount_bind(OWN, path)?)
}

/// Makes the directory a mount of its own that is shared with other mount namespaces.
/// `ip netns` would do it at its first use, on top of what is mounted there by then, and
/// it could not be unmounted any more.
fn share_dir() -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(DIR)?;
    let shared = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
    match mount_change(DIR, shared) {
        Err(Errno::INVAL) => {
            mount_bind_recursive(DIR, DIR)?;
            Ok(mount_change(DIR, shared)?)
        }
        result => Ok(result?),
    }
}

/// Removes the namespace's name; the namespace goes with the last process or socket in
/// it. What is gone already is no error.
pub(super) fn remove(id: &Id) -> io::Result<()> {
    let path = path(id);
    match unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // Nothing is mounted there, or nothing is there.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
