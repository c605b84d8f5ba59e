//! The cgroup of the host that a monitor is born in.
//!
//! `linux.cgroupsPath` says where the caller accounts for the pod, so all that
//! the pod costs the host is charged there. The limits of `linux.resources` are
//! not written into it: they are the container's, and its own cgroup in the guest
//! enforces them; the guest's memory bounds the whole.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use thiserror::Error;

/// Where cgroup version 2 is mounted.
const ROOT: &str = "/sys/fs/cgroup";

/// The file of a cgroup's processes, and what a process calls itself there.
const MEMBERS: &str = "cgroup.procs";
const MYSELF: &[u8] = b"0";

/// Why the monitor cannot be put where `linux.cgroupsPath` says.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// It is not of the form that is supported.
    #[error("linux.cgroupsPath: {path:?}: {reason}")]
    Path {
        /// As given.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The kernel refused.
    #[error("linux.cgroupsPath: {}: {source}", path.display())]
    Kernel {
        /// Below `/sys/fs/cgroup`.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// A cgroup of the host. Dropping it removes what was made for it.
#[derive(Debug)]
pub struct HostCgroup {
    dir: OwnedFd,
    /// Directories that were made, the deepest last.
    made: Vec<PathBuf>,
}

impl HostCgroup {
    /// Opens the cgroup that `linux.cgroupsPath` names, made if missing.
    ///
    /// # Errors
    /// [`CgroupError`]; nothing is left behind.
    pub fn create(path: &Path) -> Result<Self, CgroupError> {
        if !Path::new(ROOT).join("cgroup.controllers").exists() {
            return Err(CgroupError::Path {
                path: path.to_owned(),
                reason: "this host has no cgroup version 2 at /sys/fs/cgroup",
            });
        }
        Self::create_below(Path::new(ROOT), path)
    }

    fn create_below(root: &Path, path: &Path) -> Result<Self, CgroupError> {
        let names = names(path)?;
        let failed = |path: &Path, error: rustix::io::Errno| CgroupError::Kernel {
            path: path.to_owned(),
            source: error.into(),
        };
        let mut place = root.to_owned();
        let mut made = Made(Vec::new());
        for name in names {
            place.push(name);
            match rustix::fs::mkdir(&place, Mode::from_raw_mode(0o755)) {
                Ok(()) => made.0.push(place.clone()),
                Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(failed(&place, error)),
            }
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::open(&place, flags, Mode::empty())
            .map_err(|error| failed(&place, error))?;
        let delegates = fs::read_to_string(place.join("cgroup.subtree_control"));
        if delegates.is_ok_and(|controllers| !controllers.trim().is_empty()) {
            return Err(CgroupError::Path {
                path: path.to_owned(),
                reason: "has cgroups below it that it hands controllers to, so it can hold no process",
            });
        }
        Ok(Self {
            dir,
            made: std::mem::take(&mut made.0),
        })
    }

    /// Removes the cgroup that `linux.cgroupsPath` names, which a front door that
    /// was killed has left. Harmless when it is gone or still in use.
    pub fn remove(path: &Path) {
        if let Ok(names) = names(path) {
            let place = names
                .iter()
                .fold(PathBuf::from(ROOT), |dir, name| dir.join(name));
            drop(Made(vec![place]));
        }
    }

    /// Moves the calling process there, so that it is accounted for with the pod.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn join(&self) -> io::Result<Joined> {
        let before = fs::read_to_string("/proc/self/cgroup")?;
        let before = before.lines().find_map(|line| line.strip_prefix("0::/"));
        let before = Path::new(ROOT).join(before.ok_or(io::ErrorKind::NotFound)?);
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let members = rustix::fs::openat(&self.dir, MEMBERS, flags, Mode::empty())?;
        fs::File::from(members).write_all(MYSELF)?;
        Ok(Joined { before })
    }

    /// The directory, for a process to be born in.
    ///
    /// # Errors
    /// When there is no free descriptor.
    pub fn dir(&self) -> io::Result<OwnedFd> {
        self.dir.try_clone()
    }
}

/// The calling process's place in a cgroup. Dropping it moves it back to where it was, so
/// that the cgroup can be removed.
#[derive(Debug)]
pub struct Joined {
    before: PathBuf,
}

impl Drop for Joined {
    fn drop(&mut self) {
        let members = self.before.join(MEMBERS);
        if let Err(error) = fs::write(&members, MYSELF) {
            log::debug!("{}: {error}", members.display());
        }
    }
}

impl Drop for HostCgroup {
    fn drop(&mut self) {
        drop(Made(std::mem::take(&mut self.made)));
    }
}

/// Directories that go when nobody needs them.
struct Made(Vec<PathBuf>);

impl Drop for Made {
    fn drop(&mut self) {
        for dir in self.0.iter().rev() {
            // A cgroup that somebody else uses by now is theirs.
            if let Err(error) = rustix::fs::rmdir(dir) {
                log::debug!("{}: {error}", dir.display());
            }
        }
    }
}

/// The names in a path, from the root down.
fn names(path: &Path) -> Result<Vec<OsString>, CgroupError> {
    let refuse = |reason| CgroupError::Path {
        path: path.to_owned(),
        reason,
    };
    if let Some(names) = path.to_str().and_then(systemd_names) {
        return names.ok_or_else(|| refuse("is not of the form slice:prefix:name"));
    }
    let names = path
        .components()
        .filter(|component| !matches!(component, Component::RootDir | Component::CurDir))
        .map(|component| match component {
            Component::Normal(name) => Ok(name.to_owned()),
            _ => Err(refuse("must not contain \"..\"")),
        })
        .collect::<Result<Vec<_>, _>>()?;
    if names.is_empty() {
        return Err(refuse("the root cgroup is not for pods"));
    }
    Ok(names)
}

/// Where systemd puts the unit that `slice:prefix:name` means: `a-b.slice` is
/// below `a.slice` (systemd.slice(5)). The outer `None`: it is of another form.
///
/// The directory is made by hand: a manager that must be asked first would cost
/// each start a round trip, and this cgroup's only limits are those above it.
fn systemd_names(path: &str) -> Option<Option<Vec<OsString>>> {
    let mut parts = path.split(':');
    let (slice, prefix, name) = (parts.next()?, parts.next()?, parts.next()?);
    if path.starts_with('/') || parts.next().is_some() {
        return None;
    }
    let plain = |name: &str| !name.is_empty() && !name.starts_with('.') && !name.contains('/');
    let slice = if slice.is_empty() {
        "system.slice"
    } else {
        slice
    };
    let Some(stem) = slice.strip_suffix(".slice").filter(|stem| plain(stem)) else {
        return Some(None);
    };
    if !plain(name) || prefix.contains('/') {
        return Some(None);
    }
    let ends = stem.match_indices('-').map(|(index, _)| index);
    let slices = ends
        .chain([stem.len()])
        .map(|end| format!("{}.slice", &stem[..end]));
    let unit = match prefix {
        "" => format!("{name}.scope"),
        prefix => format!("{prefix}-{name}.scope"),
    };
    Some(Some(slices.chain([unit]).map(OsString::from).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_directories_are_made_and_removed_again() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("a")).unwrap();
        let cgroup = HostCgroup::create_below(root.path(), Path::new("/a/b/c")).unwrap();
        assert!(root.path().join("a/b/c").is_dir());
        drop(cgroup);
        assert!(!root.path().join("a/b").exists());
        assert!(
            root.path().join("a").is_dir(),
            "somebody else's directory stays"
        );
    }

    #[test]
    fn a_cgroup_that_is_in_use_when_the_pod_goes_stays() {
        let root = tempfile::tempdir().unwrap();
        let cgroup = HostCgroup::create_below(root.path(), Path::new("x")).unwrap();
        std::fs::create_dir(root.path().join("x/others")).unwrap();
        drop(cgroup);
        assert!(root.path().join("x/others").is_dir());
    }

    #[test]
    fn a_cgroup_that_can_hold_no_process_is_refused_and_nothing_is_left() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("a")).unwrap();
        std::fs::write(root.path().join("a/cgroup.subtree_control"), "memory\n").unwrap();
        let error = HostCgroup::create_below(root.path(), Path::new("/a")).unwrap_err();
        assert!(error.to_string().contains("can hold no process"), "{error}");
    }

    #[test]
    fn a_unit_of_systemd_is_below_its_slices() {
        let names = |path| names(Path::new(path)).unwrap();
        assert_eq!(
            names("kubepods-burstable-pod1.slice:cri-containerd:abc"),
            [
                "kubepods.slice",
                "kubepods-burstable.slice",
                "kubepods-burstable-pod1.slice",
                "cri-containerd-abc.scope"
            ]
        );
        assert_eq!(names(":libpod:a"), ["system.slice", "libpod-a.scope"]);
    }

    #[test]
    fn other_forms_are_refused_by_name() {
        for path in ["no-slice:libpod:abc", "a.slice:b:", "/a/../b", "/", ""] {
            let error = names(Path::new(path)).unwrap_err().to_string();
            assert!(error.starts_with("linux.cgroupsPath: "), "{error}");
        }
    }
}
