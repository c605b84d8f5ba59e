//! What of the host a specification wants to see, opened.

use std::path::{Path, PathBuf};

use nacre_protocol::{GUEST_HOSTNAME, GUEST_HOSTS, GUEST_RESOLV_CONF};
use oci_spec::runtime::{Mount, Spec};

use super::{Refusal, Role, id_maps};
use crate::host::{Access, Source};
use crate::volumes;

/// Opens the container's root, a directory.
pub(super) fn open_rootfs(dir: &Path, spec: &Spec) -> Result<Source, Refusal> {
    let refuse = |reason: String| Refusal::new("root.path", reason);
    let root = spec
        .root()
        .as_ref()
        .ok_or_else(|| Refusal::new("root", "missing"))?;
    let path = dir.join(root.path());
    // Writable even for a root that the container sees read-only: the guest
    // makes missing mount points in it first, as any runtime does.
    let source = Source::open(&path, true, Access::ReadWrite)
        .map_err(|error| Refusal::source("root.path".into(), &error))?;
    if !source.is_dir() {
        return Err(refuse(format!("{}: not a directory", path.display())));
    }
    Ok(source)
}

/// Opens the sources of all bind mounts from the host, with their number in `mounts`.
pub(super) fn open_binds(
    dir: &Path,
    spec: &Spec,
    role: Role,
) -> Result<Vec<(usize, Source)>, Refusal> {
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    mounts
        .iter()
        .enumerate()
        .filter(|(_, mount)| is_bind(mount) && !role.is_shared_memory(mount))
        .map(|(index, mount)| Ok((index, open_bind(dir, index, mount, spec)?)))
        .collect()
}

fn open_bind(dir: &Path, index: usize, mount: &Mount, spec: &Spec) -> Result<Source, Refusal> {
    let field = format!("mounts[{index}].source");
    let Some(source) = mount.source() else {
        return Err(Refusal::new(field, "missing"));
    };
    // A relative source is relative to the bundle (runtime-spec, "mounts").
    let path = dir.join(source);
    let access = if volumes::is_of_pod(&path) {
        Access::ReadWrite
    } else {
        access(mount)
    };
    let found = Source::open(&path, is_recursive(mount), access)
        .map_err(|error| Refusal::source(field, &error))?;
    let field = format!("mounts[{index}]");
    let Some(users) = id_maps::users_of(mount, &field, spec)? else {
        return Ok(found);
    };
    found.with_users(users).map_err(|error| {
        let path = path.display();
        Refusal::new(field, format!("{path} cannot be ID-mapped: {error}"))
    })
}

/// A file of the pod's own, one for all of its containers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PodFile {
    /// How the C library resolves names (resolv.conf(5)).
    ResolvConf,
    /// Names that it knows by itself (hosts(5)).
    Hosts,
    /// The pod's name (hostname(5)).
    Hostname,
}

impl PodFile {
    /// Where containers have it.
    fn place(self) -> &'static Path {
        Path::new(match self {
            Self::ResolvConf => "/etc/resolv.conf",
            Self::Hosts => "/etc/hosts",
            Self::Hostname => "/etc/hostname",
        })
    }

    fn mount(self, is_read_only: bool) -> Mount {
        let source = match self {
            Self::ResolvConf => GUEST_RESOLV_CONF,
            Self::Hosts => GUEST_HOSTS,
            Self::Hostname => GUEST_HOSTNAME,
        };
        let mut options = vec!["bind".to_owned()];
        if is_read_only {
            options.push("ro".to_owned());
        }
        let mut mount = Mount::default();
        mount
            .set_destination(self.place().into())
            .set_typ(Some("bind".into()))
            .set_source(Some(source.into()))
            .set_options(Some(options));
        mount
    }
}

/// Adds a mount of the pod's resolv.conf, unless another one is in or over its place.
pub(super) fn add_resolv_conf(spec: &mut Spec) -> bool {
    let file = PodFile::ResolvConf;
    let mut all = spec.mounts().clone().unwrap_or_default();
    let is_taken = all.iter().any(|mount| {
        // A root on `/` itself holds the place without a say in it.
        let at = place_of(mount);
        at != Path::new("/") && file.place().starts_with(at)
    });
    if is_taken {
        return false;
    }
    all.push(file.mount(false));
    spec.set_mounts(Some(all));
    true
}

/// Adds mounts of files of the pod, except where another one is in that very place: as
/// containerd does, also over a mount of `/etc`, and read-only in a read-only root.
pub(super) fn add_pod_files(spec: &mut Spec, files: &[PodFile]) {
    let root = spec.root().as_ref();
    let is_read_only = root.is_some_and(|root| root.readonly() == Some(true));
    let mut all = spec.mounts().clone().unwrap_or_default();
    for file in files {
        if !all.iter().any(|mount| place_of(mount) == file.place()) {
            all.push(file.mount(is_read_only));
        }
    }
    spec.set_mounts(Some(all));
}

fn place_of(mount: &Mount) -> PathBuf {
    Path::new("/").join(mount.destination())
}

pub(super) fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind") || has_option(mount, &["bind", "rbind"])
}

/// A bind mount without `rbind` shows the file system itself, without the
/// mounts below.
fn is_recursive(mount: &Mount) -> bool {
    has_option(mount, &["rbind"])
}

/// What the container may write to. `rro` and `rrw` are set last, for the mount and all below
/// it; without them the last of `ro` and `rw` counts, for the mount itself.
pub(super) fn access(mount: &Mount) -> Access {
    let options = mount.options().as_deref().unwrap_or_default();
    let last = options
        .iter()
        .rev()
        .find_map(|option| match option.as_str() {
            "ro" => Some(Access::Below),
            "rw" => Some(Access::ReadWrite),
            _ => None,
        });
    if has_option(mount, &["rro"]) {
        Access::ReadOnly
    } else if has_option(mount, &["rrw"]) {
        Access::ReadWrite
    } else {
        last.unwrap_or(Access::ReadWrite)
    }
}

/// Whether the container may not write to the mount itself.
pub(super) fn is_read_only(mount: &Mount) -> bool {
    access(mount) < Access::ReadWrite
}

fn has_option(mount: &Mount, wanted: &[&str]) -> bool {
    let options = mount.options().as_deref().unwrap_or_default();
    options
        .iter()
        .any(|option| wanted.contains(&option.as_str()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn options_for_all_below_count_last() {
        for (options, expected) in [
            (&["rbind"][..], Access::ReadWrite),
            (&["rbind", "ro"], Access::Below),
            (&["ro", "rw"], Access::ReadWrite),
            (&["rw", "ro"], Access::Below),
            (&["rro", "rw"], Access::ReadOnly),
            (&["rrw", "ro"], Access::ReadWrite),
            (&["rrw", "rro", "rrw"], Access::ReadOnly),
        ] {
            let mount = json!({ "destination": "/x", "options": options });
            let mount = serde_json::from_value(mount).unwrap();
            assert_eq!(access(&mount), expected, "{options:?}");
        }
    }
}
