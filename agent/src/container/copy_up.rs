//! `tmpcopyup`: a tmpfs that begins with what the root file system has in its place.
//!
//! libcontainer has no such option. So the helper mounts and fills the tmpfs in a mount
//! namespace of its own, which goes with it, and the container gets it as a bind mount.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::{Mount, Spec};
use pathrs::Root;
use pathrs::flags::OpenFlags;
use rustix::fs::{Mode, OFlags, fstat, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change,
    move_mount,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::report::Failure;
use crate::copy_tree;

/// The option.
const OPTION: &str = "tmpcopyup";

/// Directories within each other that are copied.
const MAX_DEPTH: usize = 256;

/// Makes and fills such mounts below the directory `bundle`, and puts bind mounts of them
/// in their place. The process must have one thread.
pub(super) fn prepare(spec: &mut Spec, rootfs: &Path, bundle: &Path) -> Result<(), Failure> {
    let mounts = spec.mounts_mut().iter_mut().flatten().enumerate();
    let mut wanted = mounts.filter(|(_, mount)| is_wanted(mount)).peekable();
    if wanted.peek().is_none() {
        return Ok(());
    }
    own_mounts().map_err(|error| Failure::internal(format!("mount namespace: {error}")))?;
    for (index, mount) in wanted {
        let place = bundle.join(format!("copy-up-{index}"));
        fill(mount, rootfs, &place).map_err(|error| {
            let destination = mount.destination().display();
            Failure::invalid(format!(
                "mounts[{index}]: {OPTION} of {destination}: {error}"
            ))
        })?;
        let options = mount.options().iter().flatten();
        let kept = options.filter(|option| is_of_the_mount(option)).cloned();
        let kept = kept.chain(["bind".to_owned()]).collect();
        mount.set_options(Some(kept));
        mount.set_typ(Some("bind".to_owned()));
        mount.set_source(Some(place));
    }
    Ok(())
}

fn is_wanted(mount: &Mount) -> bool {
    let has_option = mount
        .options()
        .iter()
        .flatten()
        .any(|option| option == OPTION);
    has_option && mount.typ().as_deref() == Some("tmpfs")
}

/// Options of the file system have a value, those of a mount have none.
fn is_of_the_mount(option: &str) -> bool {
    option != OPTION && !option.contains('=')
}

fn own_mounts() -> io::Result<()> {
    // SAFETY: a new mount namespace changes no descriptor and no memory.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    Ok(mount_change("/", private)?)
}

fn fill(mount: &Mount, rootfs: &Path, place: &Path) -> io::Result<()> {
    let tmpfs = new_tmpfs(mount)?;
    let root = Root::open(rootfs).map_err(io::Error::other)?;
    // Resolved inside the root: the image may have planted links.
    let below = root.resolve(mount.destination());
    let below = below.and_then(|handle| handle.reopen(OpenFlags::O_DIRECTORY));
    // What is not there, or no directory, has nothing to copy.
    if let Ok(below) = below {
        // The mount's own descriptor is no more than its name.
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let inside = openat(&tmpfs, ".", flags, Mode::empty())?;
        copy_tree::directory(&below, inside.as_fd(), MAX_DEPTH)?;
        let has_mode = mount
            .options()
            .iter()
            .flatten()
            .any(|option| option.starts_with("mode="));
        let stat = fstat(&below)?;
        copy_tree::own(inside.as_fd(), &stat)?;
        if !has_mode {
            rustix::fs::fchmod(&inside, Mode::from_raw_mode(stat.st_mode))?;
        }
    }
    fs::create_dir(place)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(move_mount(&tmpfs, "", rustix::fs::CWD, place, flags)?)
}

fn new_tmpfs(mount: &Mount) -> io::Result<OwnedFd> {
    let tmpfs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&tmpfs, "source", "tmpfs")?;
    for option in mount.options().iter().flatten() {
        if let Some((name, value)) = option.split_once('=') {
            fsconfig_set_string(&tmpfs, name, value)?;
        } else if option == "noswap" {
            fsconfig_set_flag(&tmpfs, option.as_str())?;
        }
    }
    fsconfig_create(&tmpfs)?;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    Ok(fsmount(&tmpfs, flags, MountAttrFlags::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_of_the_mount_or_of_the_file_system() {
        for option in ["tmpcopyup", "size=65536k", "mode=1777"] {
            assert!(!is_of_the_mount(option), "{option}");
        }
        for option in ["nosuid", "ro", "rprivate"] {
            assert!(is_of_the_mount(option), "{option}");
        }
    }
}
