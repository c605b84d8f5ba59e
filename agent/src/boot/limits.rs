//! Resource limits of the agent, and those that containers begin with.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::error::{Doing, Error};

/// Descriptors that a process may ask for, as service managers allow.
const DESCRIPTORS: u64 = 512 * 1024;

/// Descriptors that a process has unless it asks: programs that use `select`
/// break above.
const USUAL_DESCRIPTORS: u64 = 1024;

/// Lifts the kernel's limits for its first process, which are those of a login:
/// a container's specification sets its own, or means "as many as needed".
pub(super) fn lift() -> Result<(), Error> {
    let doing = "cannot lift the resource limits";
    set(Resource::Nofile, Some(DESCRIPTORS), Some(DESCRIPTORS)).doing(doing)?;
    set(Resource::Nproc, None, None).doing(doing)
}

/// What a container gets of the agent's own limits.
pub(crate) fn for_container() -> rustix::io::Result<()> {
    let hard = getrlimit(Resource::Nofile).maximum;
    let soft = hard.map_or(USUAL_DESCRIPTORS, |hard| hard.min(USUAL_DESCRIPTORS));
    set(Resource::Nofile, Some(soft), hard)
}

fn set(resource: Resource, current: Option<u64>, maximum: Option<u64>) -> rustix::io::Result<()> {
    setrlimit(resource, Rlimit { current, maximum })
}
