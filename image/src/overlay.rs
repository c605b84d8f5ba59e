//! Layers, one above the other, as one tree.

use std::ffi::CString;
use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::error::ImageError;
use crate::run_dir::RunDir;

/// An overlay that is mounted; it goes when it is dropped.
#[derive(Debug)]
pub struct Overlay {
    root: PathBuf,
}

impl Overlay {
    /// Mounts `layers`, from the lowest up, with the directory `upper` of the run on top, which
    /// takes what is written. All is in the run's directory, named after `upper`; the mount is
    /// in the caller's mount namespace.
    ///
    /// # Errors
    /// The system's answer.
    pub fn mount(run: &RunDir, layers: &[PathBuf], upper: &Path) -> Result<Self, ImageError> {
        let mounted = || -> io::Result<Self> {
            let root = run.make_dir("root")?;
            let work = run.make_dir("work")?;
            // There must be one.
            let nothing = run.make_dir("nothing")?;
            let lower = layers
                .iter()
                .rev()
                .chain(layers.is_empty().then_some(&nothing));
            let lower = lower
                .map(|path| open(path))
                .collect::<io::Result<Vec<_>>>()?;
            let (upper, work) = (open(upper)?, open(&work)?);
            let options = options(&lower, &upper, &work)?;
            mount(
                c"overlay",
                &root,
                c"overlay",
                MountFlags::empty(),
                options.as_c_str(),
            )?;
            Ok(Self { root })
        };
        mounted().map_err(ImageError::system("cannot mount the image's layers"))
    }

    /// Where it is mounted.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Unmounts it and removes what was made for it but `upper`.
    pub(crate) fn close(self, run: &RunDir) -> io::Result<()> {
        drop(self);
        for name in ["root", "work", "nothing"] {
            run.remove_dir(name)?;
        }
        Ok(())
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.root, UnmountFlags::DETACH) {
            log::warn!("{}: cannot be unmounted: {error}", self.root.display());
        }
    }
}

/// Makes a directory of the run's that is to be mounted above `layers`. It looks like the root
/// below it, which it hides.
///
/// # Errors
/// The system's answer.
pub fn make_upper(run: &RunDir, name: &str, layers: &[PathBuf]) -> io::Result<PathBuf> {
    let upper = run.make_dir(name)?;
    let mode = match layers.last() {
        Some(below) => {
            let metadata = fs::symlink_metadata(below)?;
            chown(&upper, Some(metadata.uid()), Some(metadata.gid()))?;
            metadata.mode() & 0o7777
        }
        None => 0o755,
    };
    fs::set_permissions(&upper, Permissions::from_mode(mode))?;
    Ok(upper)
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Options of overlayfs. Directories are named by descriptors: all options must fit into a page,
/// and 128 paths would not. What the kernel may have been told to do otherwise is switched off,
/// so that layers look alike wherever they were unpacked.
fn options(lower: &[OwnedFd], upper: &OwnedFd, work: &OwnedFd) -> io::Result<CString> {
    let mut options = String::from("lowerdir=");
    for (number, layer) in lower.iter().enumerate() {
        let colon = if number == 0 { "" } else { ":" };
        // Writing to a string does not fail.
        let _ = write!(options, "{colon}/proc/self/fd/{}", layer.as_raw_fd());
    }
    let _ = write!(
        options,
        ",upperdir=/proc/self/fd/{},workdir=/proc/self/fd/{}",
        upper.as_raw_fd(),
        work.as_raw_fd()
    );
    // What is written need not be there after a crash.
    options.push_str(",index=off,metacopy=off,redirect_dir=nofollow,xino=off,volatile");
    Ok(CString::new(options)?)
}
