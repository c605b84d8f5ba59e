//! The monitor: a minimal virtual machine monitor for one pod, on KVM.
//!
//! A front door uses [`config`], [`control`] and [`client`]; the rest is the
//! inside of the `nacre-vmm` binary.

#![cfg_attr(
    test,
    allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_possible_wrap
    )
)]

pub mod arch;
pub mod bus;
pub mod client;
pub mod cmdline;
pub mod config;
pub mod console;
pub mod control;
pub mod counters;
pub mod handed;
pub mod heap;
pub mod jail;
pub mod kernel;
pub mod logger;
pub mod machine;
pub mod memory;
pub mod monitor;
pub mod vcpu;
pub mod virtio;
