//! What dead processes have left of their pods' networks, whichever kind these are.

use super::owner::{Id, Owner, Owners};
use super::{NetworkError, system};

/// What was found of a pod whose process is gone.
#[derive(Debug)]
pub(crate) struct Leftover {
    pub(crate) id: Id,
    /// Whether there was anything; all of it is gone.
    pub(crate) removed: Result<bool, NetworkError>,
}

/// Removes what belongs to those of `ids` whose owners are dead.
pub(super) fn collect(
    owners: &Owners,
    ids: Vec<Id>,
    remove: impl Fn(Owner) -> Result<bool, NetworkError>,
) -> Result<Vec<Leftover>, NetworkError> {
    let mut leftovers = Vec::new();
    for id in ids {
        let owner = owners
            .take_over(&id)
            .map_err(system(|| format!("look whether {id} is in use")))?;
        if let Some(owner) = owner {
            leftovers.push(Leftover {
                id,
                removed: remove(owner),
            });
        }
    }
    Ok(leftovers)
}

/// Removes an owner's file, once nothing is left that belongs to it.
pub(super) fn forget(owner: Owner) -> Result<(), NetworkError> {
    let id = owner.id().clone();
    owner
        .forget()
        .map_err(system(|| format!("remove the file of {id}")))
}
