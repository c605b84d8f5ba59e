//! PID 1 of the guest: boots it, serves the host, and runs the pod's containers.
//!
//! `main.rs` composes [`boot`]; the service itself ([`serve`]) takes its sockets
//! and its program from outside, so that it runs on any transport.

pub mod boot;
pub mod log;
pub mod transport;

mod container;
mod copy_tree;
mod error;
mod pod;
mod poll;
mod reaper;
mod service;
mod share;
mod stats;
mod streams;
mod volumes;

pub use container::{Role, run_helper};
pub use error::Error;
pub use pod::loopback_up;
pub use service::{Serve, Service, serve};
