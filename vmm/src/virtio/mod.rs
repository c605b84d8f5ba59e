//! Virtio devices and the transport that shows them to the guest.
//!
//! [`mmio`] is the transport (virtio 1.2, section 4.2), [`device`] the contract
//! between it and a device, [`queue`] the checked view of a virtqueue that all
//! devices use, [`worker`] the thread on which a device moves its data. Nothing
//! that a driver writes is trusted: what breaks the specification ends in
//! [`interrupt::Interrupt::fail_device`], never in a panic.

mod activation;
pub mod balloon;
pub mod blk;
pub mod device;
pub mod fs;
pub mod interrupt;
pub mod mmio;
pub mod net;
pub mod queue;
pub mod rng;
#[cfg(test)]
pub mod testing;
mod vectors;
pub mod vsock;
pub mod worker;

/// Guest memory as all devices see it.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
