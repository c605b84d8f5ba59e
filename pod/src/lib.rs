//! One pod from cold to gone.
//!
//! A front door reads a [`bundle`](spec), puts its files into the
//! [share](host), boots a [monitor](boot) and runs containers in it through the
//! [agent]; [stdio] carries their bytes. Everything that a pod leaves on the
//! host belongs to a process or to a mount namespace of the front door's own,
//! so that nothing stays when it is killed.

pub mod agent;
pub mod assets;
pub mod boot;
pub mod cgroup;
pub mod check;
pub mod diagnosis;
pub mod disks;
pub mod hooks;
pub mod host;
mod monitor;
pub mod network;
pub mod pod;
mod poll;
pub mod port_forward;
pub mod process;
pub mod processes;
pub mod room;
pub mod spec;
pub mod status;
pub mod stdio;
pub mod text;
pub mod timing;
mod volumes;
