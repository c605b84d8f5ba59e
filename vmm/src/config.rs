//! What a monitor is told when it is started.
//!
//! The front door writes a [`MonitorConfig`] as JSON into a memory file and
//! hands that over together with everything else as open descriptors, at the
//! numbers in [`fds`]: the monitor opens nothing by name.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Largest number of vCPUs: as many as the MP table has room for in its KiB.
pub const MAX_VCPUS: u8 = 32;

/// Smallest guest memory in MiB that a kernel and its initramfs fit into.
pub const MIN_MEMORY_MIB: u64 = 32;

/// Largest guest memory in MiB (1 TiB).
pub const MAX_MEMORY_MIB: u64 = 1 << 20;

/// Largest number of pairs of queues of a network device.
pub const MAX_QUEUE_PAIRS: u8 = 8;

/// Number of slots for block devices.
pub const BLOCK_SLOTS: u32 = 8;

/// A monitor's descriptors, by number.
pub mod fds {
    use std::os::fd::RawFd;

    /// The configuration, JSON.
    pub const CONFIG: RawFd = 3;
    /// The control socket (see [`control`](crate::control)).
    pub const CONTROL: RawFd = 4;
    /// `/dev/kvm`.
    pub const KVM: RawFd = 5;
    /// The guest kernel, an uncompressed ELF image.
    pub const KERNEL: RawFd = 6;
    /// The initramfs.
    pub const INITRAMFS: RawFd = 7;
    /// The tap of the first network device's first pair of queues; its vhost-net
    /// descriptor follows when it has one, then the next pair's and the next device's.
    pub const FIRST_NETWORK: RawFd = 8;
}

/// The virtual machine of one pod.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MonitorConfig {
    /// Number of vCPUs, 1 to [`MAX_VCPUS`].
    pub vcpus: u8,
    /// Guest memory in MiB, [`MIN_MEMORY_MIB`] to [`MAX_MEMORY_MIB`].
    pub memory_mib: u64,
    /// The guest kernel logs everything to the console, not only errors.
    pub verbose_kernel: bool,
    /// The guest's vsock context identifier.
    pub guest_cid: u32,
    /// Ports of the host that the guest may connect to.
    pub host_ports: Vec<u32>,
    /// Tag of the virtio-fs device.
    pub share_tag: String,
    /// The share, a directory tree that is a mount of its own.
    pub share: PathBuf,
    /// An empty directory on which the monitor mounts its root.
    pub jail: PathBuf,
    /// Network devices, in the guest's order.
    pub network: Vec<NetworkConfig>,
}

/// A network device.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// MAC address of the guest's end.
    pub mac: [u8; 6],
    /// Number of pairs of queues, 1 to [`MAX_QUEUE_PAIRS`].
    pub queue_pairs: u8,
    /// A vhost-net descriptor comes with the tap of each pair.
    pub vhost: bool,
}

/// A block device that is put into a slot of a machine that runs.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Its size in bytes; what is less than a sector of 512 is not used.
    pub bytes: u64,
    /// Its logical block in bytes.
    pub block_size: u32,
    /// The guest may not write to it.
    pub read_only: bool,
    /// What the guest may know it by, at most 20 bytes.
    pub serial: String,
}
