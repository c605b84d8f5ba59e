//! What of the host a specification wants to see, opened.

use std::path::Path;

use nacre_protocol::GUEST_RESOLV_CONF;
use oci_spec::runtime::{Mount, Spec};

use super::{Refusal, Role};
use crate::host::Source;

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
    let source = Source::open(&path, true, false)
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
        .map(|(index, mount)| Ok((index, open_bind(dir, index, mount)?)))
        .collect()
}

fn open_bind(dir: &Path, index: usize, mount: &Mount) -> Result<Source, Refusal> {
    let field = format!("mounts[{index}].source");
    let Some(source) = mount.source() else {
        return Err(Refusal::new(field, "missing"));
    };
    // A relative source is relative to the bundle (runtime-spec, "mounts").
    let path = dir.join(source);
    Source::open(&path, is_recursive(mount), is_read_only(mount))
        .map_err(|error| Refusal::source(field, &error))
}

/// Adds a mount of the pod's resolv.conf, unless another one is in its place.
pub(super) fn add_resolv_conf(spec: &mut Spec) -> bool {
    let place = Path::new("/etc/resolv.conf");
    let mut all = spec.mounts().clone().unwrap_or_default();
    let is_taken = all.iter().any(|mount| {
        // A root on `/` itself holds the place without a say in it.
        let at = Path::new("/").join(mount.destination());
        at != Path::new("/") && place.starts_with(at)
    });
    if is_taken {
        return false;
    }
    let mut mount = Mount::default();
    mount
        .set_destination(place.into())
        .set_typ(Some("bind".into()))
        .set_source(Some(GUEST_RESOLV_CONF.into()))
        .set_options(Some(vec!["bind".into()]));
    all.push(mount);
    spec.set_mounts(Some(all));
    true
}

pub(super) fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind") || has_option(mount, &["bind", "rbind"])
}

/// A bind mount without `rbind` shows the file system itself, without the
/// mounts below.
fn is_recursive(mount: &Mount) -> bool {
    has_option(mount, &["rbind"])
}

/// The last of `ro` and `rw` counts, as in mount(8).
fn is_read_only(mount: &Mount) -> bool {
    let options = mount.options().as_deref().unwrap_or_default();
    options
        .iter()
        .rev()
        .find_map(|option| match option.as_str() {
            "ro" | "rro" => Some(true),
            "rw" | "rrw" => Some(false),
            _ => None,
        })
        .unwrap_or(false)
}

fn has_option(mount: &Mount, wanted: &[&str]) -> bool {
    let options = mount.options().as_deref().unwrap_or_default();
    options
        .iter()
        .any(|option| wanted.contains(&option.as_str()))
}
