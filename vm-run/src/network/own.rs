//! The network namespace that this process shows as the pod's.
//!
//! Hooks find a container's network by the process identifier that they are told. In the
//! host's namespace they would change the host's network.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use super::Choice;

/// This process's, whichever thread asks.
const OWN: &str = "/proc/self/ns/net";

/// Moves the calling thread, the first one of its process, into the namespace of the network
/// that was chosen, and tells what the choice is by then. Where no network was chosen, it is
/// a new one, which hooks may wire. Where plugins make the pod's, it is an empty one.
pub(crate) fn enter(choice: Choice) -> io::Result<Choice> {
    if let Choice::Namespace(path) = &choice {
        let namespace = File::open(path)?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        return Ok(choice);
    }
    // SAFETY: a new network namespace changes no descriptor and no memory.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
    Ok(match choice {
        Choice::None => Choice::Hooks(OWN.into()),
        choice => choice,
    })
}
