//! The monitor: a minimal virtual machine monitor for one pod, on KVM.

pub mod jail;
pub mod virtio;
