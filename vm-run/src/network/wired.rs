//! Pods in network namespaces that somebody else has wired, and what killed ones left there.
//!
//! Such a namespace goes on without its pod, but a redirect that was left takes all that arrives.
//! A file for each pod says where to look for it.

use std::path::{Path, PathBuf};

use nacre_pod::network::Network;

use super::leftover::{self, Leftover, forget};
use super::owner::{Owner, Owners};
use super::{NetworkError, system};

/// Beside the state of CNI networks.
const DIR: &str = "/var/lib/nacre/wired";

fn owners() -> Owners {
    Owners::new(DIR.into())
}

/// Takes down that a pod uses the namespace `path`. A pod without such a note works all the same.
pub(super) fn note(path: &Path) -> Option<Owner> {
    let noted = std::path::absolute(path).and_then(|path| {
        let owner = owners().create()?;
        owner.write(path.as_os_str())?;
        Ok(owner)
    });
    noted
        .inspect_err(|error| {
            log::warn!(
                "after a crash, nobody will clean {}: {DIR}: {error}",
                path.display()
            );
        })
        .ok()
}

/// Removes what dead processes have left in such namespaces.
pub(super) fn collect() -> Result<Vec<Leftover>, NetworkError> {
    let owners = owners();
    let ids = owners.ids().map_err(system(|| format!("read {DIR}")))?;
    leftover::collect(&owners, ids, clear)
}

fn clear(owner: Owner) -> Result<bool, NetworkError> {
    let file = || format!("use the file {DIR}/{}", owner.id());
    let path = PathBuf::from(owner.read().map_err(system(file))?);
    // One that was killed before it could say where has done nothing there.
    let found = path.is_absolute() && Network::clear(&path)?;
    forget(owner)?;
    Ok(found)
}
