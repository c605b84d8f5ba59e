//! virtio-net (virtio 1.2, section 5.1): the pod's interface, on a tap.
//!
//! [`features`] says what is offered and what that means for the tap. Frames
//! take one of two paths, which the monitor chooses once: [`kernel`] hands the
//! queues to vhost-net where the host has it, [`in_process`] moves frames
//! between the tap and guest memory on the device's own thread. Checksums and
//! segmentation are left to whoever is last in both: frames of up to 64 KiB
//! travel with their offload header as it is.
//!
//! There is one pair of queues. More pairs would each be a tap queue and a
//! worker of their own, as [`in_process`] and [`kernel`] know no more than one.

mod features;
mod in_process;
mod kernel;
mod receive;
mod tap;
mod transfer;
mod transmit;

use std::io;
use std::os::fd::OwnedFd;

use thiserror::Error;
use vm_memory::ByteValued;

use self::kernel::KernelNet;
use self::tap::Tap;
use super::device::{ActivateError, ActiveDevice, VirtioDevice, read_space};
use super::worker::Worker;
use crate::jail::seccomp::ThreadKind;

const DEVICE_TYPE: u32 = 1;
const RECEIVE_QUEUE: usize = 0;
const TRANSMIT_QUEUE: usize = 1;
const QUEUE_SIZES: [u16; 2] = [256, 256];

/// Length in bytes of the header before each frame (section 5.1.6).
const HEADER_LEN: u8 = 12;
/// Longest frame in bytes: a full IP packet behind an Ethernet header with a
/// VLAN tag.
const MAX_FRAME: usize = 65536 + 18;
/// Longest frame with its header, in bytes.
const MAX_MESSAGE: usize = HEADER_LEN as usize + MAX_FRAME;

/// What the interface is made of.
#[derive(Debug)]
pub struct NetConfig {
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Its MTU in bytes, at least 68.
    pub mtu: u16,
    /// A tap (`IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`), already created.
    pub tap: OwnedFd,
    /// `/dev/vhost-net`, freshly opened, where the host has it.
    pub vhost: Option<OwnedFd>,
}

/// Why there is no network device.
#[derive(Debug, Error)]
pub enum NetError {
    /// The descriptor is not a tap, or not one with the right flags.
    #[error(
        "the tap must be made with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR, its flags are {0:#06x}"
    )]
    TapFlags(u16),
    /// The tap refuses something.
    #[error("cannot {what} the tap: {source}")]
    Tap {
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// vhost-net refuses something.
    #[error("vhost-net: cannot {what}: {source}")]
    Vhost {
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        source: vhost::Error,
    },
    /// An MTU that IPv4 forbids.
    #[error("an MTU of {0} bytes is less than the 68 that IPv4 asks for")]
    Mtu(u16),
    /// The thread did not start.
    #[error("cannot start the thread that moves frames: {0}")]
    Thread(io::Error),
}

/// The configuration space (section 5.1.4), up to the last field that has a
/// feature offered here.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct ConfigSpace {
    mac: [u8; 6],
    status: [u8; 2],
    max_queue_pairs: [u8; 2],
    mtu: [u8; 2],
}

// SAFETY: bytes only, without padding; any value is valid.
unsafe impl ByteValued for ConfigSpace {}

/// The network device.
#[derive(Debug)]
pub struct Net {
    config: ConfigSpace,
    features: u64,
    in_kernel: bool,
    worker: Worker,
}

impl Net {
    /// A device on `config`'s tap, with its thread started. What the tap and
    /// vhost-net can do is found out here, and decides what is offered.
    ///
    /// # Errors
    /// [`NetError`].
    pub fn spawn(config: NetConfig) -> Result<Self, NetError> {
        if config.mtu < 68 {
            return Err(NetError::Mtu(config.mtu));
        }
        let tap = Tap::new(config.tap)?;
        let mut offered = features::offered(tap.probe_offloads());
        let kernel = match config.vhost {
            Some(vhost) => Some(KernelNet::new(vhost)?),
            None => None,
        };
        if let Some(kernel) = &kernel {
            offered &= features::offered_by_vhost(kernel.features());
        }
        let in_kernel = kernel.is_some();
        let worker = Worker::spawn(ThreadKind::Net, move |mailbox| match kernel {
            Some(kernel) => kernel::run(kernel, &tap, &mailbox),
            None => in_process::run(&tap, &mailbox),
        })
        .map_err(NetError::Thread)?;
        Ok(Self {
            config: ConfigSpace {
                mac: config.mac,
                status: features::LINK_UP.to_le_bytes(),
                max_queue_pairs: 1u16.to_le_bytes(),
                mtu: config.mtu.to_le_bytes(),
            },
            features: offered,
            in_kernel,
            worker,
        })
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn name(&self) -> &'static str {
        "net"
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_space(self.config.as_slice(), offset, data);
    }

    fn interrupts_from_kernel(&self) -> bool {
        self.in_kernel
    }

    fn activate(&mut self, active: ActiveDevice) -> Result<(), ActivateError> {
        for queue in [RECEIVE_QUEUE, TRANSMIT_QUEUE] {
            if !matches!(active.queues.get(queue), Some(Some(_))) {
                return Err(ActivateError::MissingQueue(queue));
            }
        }
        self.worker.activate(active)
    }

    fn reset(&mut self) {
        self.worker.reset();
    }
}

#[cfg(test)]
mod path_test;
#[cfg(test)]
mod tap_test;
