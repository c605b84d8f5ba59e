//! Further processes in a running container (OCI runtime "exec").
//!
//! The agent starts a helper; the helper joins the container's namespaces, takes
//! on all that the process is to be while it is still outside, and clones itself
//! once, straight into the container's cgroup. So no process of the container's
//! ever sees one that may more than its own, but for the last steps in
//! [`confine`]. No file of the workload's `/proc` is used: what the helper needs,
//! it opens before it joins.

mod agent;
mod confine;
mod filter;
mod inherited;
mod join;
mod priority;
mod pty;

pub(super) use agent::{Execs, exec};
pub(super) use inherited::Inherited;
pub(super) use join::run as join;
