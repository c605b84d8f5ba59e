//! virtio-net (virtio 1.2, section 5.1): the pod's interface, on a tap.
//!
//! [`features`] says what is offered and what that means for the tap. Frames
//! take one of two paths, which the monitor chooses once: [`kernel`] hands the
//! queues to vhost-net where the host has it, [`in_process`] moves frames
//! between the tap and guest memory on the device's own thread. Checksums and
//! segmentation are left to whoever is last in both: frames of up to 64 KiB
//! travel with their offload header as it is.
//!
//! There are as many pairs of queues as whoever made the tap has made queues of it. Each
//! pair is a thread of its own with a queue of the tap and, on that path, an instance of
//! vhost-net. The driver says through the [`control`] queue how many of them it uses; at
//! first it is one. All share the device's one interrupt.

mod control;
mod features;
mod in_process;
mod kernel;
mod receive;
mod tap;
mod transfer;
mod transmit;

use std::io;
use std::sync::Arc;

use thiserror::Error;
use vm_memory::ByteValued;

use self::control::{ActiveControl, FurtherQueues};
use self::kernel::KernelNet;
use self::tap::Tap;
use super::device::{ActivateError, ActiveDevice, VirtioDevice, read_space};
use super::queue::VirtQueue;
use super::worker::Worker;
use crate::client::QueuePairFds;
use crate::config::MAX_QUEUE_PAIRS;
use crate::jail::seccomp::ThreadKind;

const DEVICE_TYPE: u32 = 1;
const RECEIVE_QUEUE: usize = 0;
const TRANSMIT_QUEUE: usize = 1;
const QUEUES_OF_PAIR: usize = 2;
const QUEUE_SIZE: u16 = 256;
const CONTROL_QUEUE_SIZE: u16 = 16;

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
    /// The descriptors of its pairs of queues, 1 to [`MAX_QUEUE_PAIRS`]: all with vhost-net
    /// or none.
    pub pairs: Vec<QueuePairFds>,
}

/// Why there is no network device.
#[derive(Debug, Error)]
pub enum NetError {
    /// The descriptor is not a tap, or not one with the right flags.
    #[error(
        "the tap must be made with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR, its flags are {0:#06x}"
    )]
    TapFlags(u16),
    /// A further descriptor is not a detached queue of a tap that has several.
    #[error(
        "the tap's further queues must be made with IFF_MULTI_QUEUE and detached, the flags of \
         one are {0:#06x}"
    )]
    QueueFlags(u16),
    /// There are none, or too many.
    #[error("a network device has 1 to {MAX_QUEUE_PAIRS} pairs of queues, not {0}")]
    Pairs(usize),
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
    /// The thread did not start.
    #[error("cannot start the thread that moves frames: {0}")]
    Thread(io::Error),
}

/// The configuration space (section 5.1.4), up to the last field that has a
/// feature offered here. There is no MTU in it: that would be the largest that the
/// driver can ever have, and the agent's may change.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct ConfigSpace {
    mac: [u8; 6],
    status: [u8; 2],
    max_queue_pairs: [u8; 2],
}

// SAFETY: bytes only, without padding; any value is valid.
unsafe impl ByteValued for ConfigSpace {}

/// The network device.
#[derive(Debug)]
pub struct Net {
    config: ConfigSpace,
    features: u64,
    queue_sizes: Vec<u16>,
    in_kernel: bool,
    /// One for each pair of queues.
    pairs: Vec<Worker>,
    /// Where there are several pairs.
    control: Option<Worker<ActiveControl>>,
}

impl Net {
    /// A device on `config`'s tap, with its threads started. What the tap and
    /// vhost-net can do is found out here, and decides what is offered.
    ///
    /// # Errors
    /// [`NetError`].
    pub fn spawn(config: NetConfig) -> Result<Self, NetError> {
        let count = config.pairs.len();
        let max_queue_pairs = u8::try_from(count)
            .ok()
            .filter(|count| (1..=MAX_QUEUE_PAIRS).contains(count))
            .ok_or(NetError::Pairs(count))?;
        let pairs = take(config.pairs)?;
        let mut offered = pairs
            .first()
            .map_or(0, |pair| features::offered(pair.tap.probe_offloads()));
        for kernel in pairs.iter().filter_map(|pair| pair.kernel.as_ref()) {
            offered &= features::offered_by_vhost(kernel.features());
        }
        let mut queue_sizes = vec![QUEUE_SIZE; QUEUES_OF_PAIR * count];
        let further = pairs.iter().skip(1).map(|pair| Arc::clone(&pair.tap));
        let control = match count {
            1 => None,
            _ => Some(start_control(FurtherQueues::new(further.collect()))?),
        };
        if control.is_some() {
            offered |= features::SEVERAL_PAIRS;
            queue_sizes.push(CONTROL_QUEUE_SIZE);
        }
        let in_kernel = pairs.iter().any(|pair| pair.kernel.is_some());
        let pairs = pairs.into_iter().map(start_pair);
        Ok(Self {
            config: ConfigSpace {
                mac: config.mac,
                status: features::LINK_UP.to_le_bytes(),
                max_queue_pairs: u16::from(max_queue_pairs).to_le_bytes(),
            },
            features: offered,
            queue_sizes,
            in_kernel,
            pairs: pairs.collect::<Result<_, _>>()?,
            control,
        })
    }
}

/// What a pair of queues is made of, ready to be used.
struct Pair {
    tap: Arc<Tap>,
    kernel: Option<KernelNet>,
}

fn take(pairs: Vec<QueuePairFds>) -> Result<Vec<Pair>, NetError> {
    let take = |(index, pair): (usize, QueuePairFds)| {
        let tap = match index {
            0 => Tap::new(pair.tap)?,
            _ => Tap::further(pair.tap)?,
        };
        Ok(Pair {
            tap: Arc::new(tap),
            kernel: pair.vhost.map(KernelNet::new).transpose()?,
        })
    };
    pairs.into_iter().enumerate().map(take).collect()
}

fn start_pair(Pair { tap, kernel }: Pair) -> Result<Worker, NetError> {
    Worker::spawn(ThreadKind::Net, move |mailbox| match kernel {
        Some(kernel) => kernel::run(kernel, &tap, &mailbox),
        None => in_process::run(&tap, &mailbox),
    })
    .map_err(NetError::Thread)
}

fn start_control(queues: FurtherQueues) -> Result<Worker<ActiveControl>, NetError> {
    Worker::spawn(ThreadKind::NetControl, move |mailbox| {
        control::run(queues, &mailbox);
    })
    .map_err(NetError::Thread)
}

/// What the driver has set up, taken apart.
struct Taken {
    /// The queues of each pair that is complete, up to the first that is not.
    pairs: Vec<[VirtQueue; QUEUES_OF_PAIR]>,
    control: Option<VirtQueue>,
}

impl Taken {
    /// Takes the queues of `active`, whose device has so many pairs at most.
    fn from(active: &mut ActiveDevice, max_pairs: usize) -> Result<Self, ActivateError> {
        // To a driver that knows of one pair, the control queue comes behind that one
        // (section 5.1.2).
        let known = match features::several_pairs(active.features) {
            true => max_pairs,
            false => 1,
        };
        let control = match features::controls(active.features) {
            true => active.take_queue(QUEUES_OF_PAIR * known).ok(),
            false => None,
        };
        let mut pairs = Vec::new();
        for first in (0..known).map(|pair| QUEUES_OF_PAIR * pair) {
            let receive = active.take_queue(first + RECEIVE_QUEUE);
            let transmit = active.take_queue(first + TRANSMIT_QUEUE);
            match (receive, transmit) {
                (Ok(receive), Ok(transmit)) => pairs.push([receive, transmit]),
                (Err(missing), _) | (_, Err(missing)) if first == 0 => return Err(missing),
                _ => break,
            }
        }
        Ok(Self { pairs, control })
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
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_space(self.config.as_slice(), offset, data);
    }

    fn interrupts_from_kernel(&self) -> bool {
        self.in_kernel
    }

    fn activate(&mut self, mut active: ActiveDevice) -> Result<(), ActivateError> {
        let Taken { pairs, control } = Taken::from(&mut active, self.pairs.len())?;
        let usable = pairs.len();
        for (worker, queues) in self.pairs.iter().zip(pairs) {
            worker.activate(ActiveDevice {
                memory: Arc::clone(&active.memory),
                features: active.features,
                queues: queues.map(Some).into(),
                interrupt: Arc::clone(&active.interrupt),
            })?;
        }
        match (&self.control, control) {
            (Some(worker), Some(queue)) => worker.activate(ActiveControl {
                memory: active.memory,
                interrupt: active.interrupt,
                queue,
                pairs: usable,
            }),
            _ => Ok(()),
        }
    }

    fn reset(&mut self) {
        // First, so that the tap fills no queue that nobody reads.
        if let Some(control) = &self.control {
            control.reset();
        }
        for pair in &self.pairs {
            pair.reset();
        }
    }
}

#[cfg(test)]
mod control_test;
#[cfg(test)]
mod pairs_test;
#[cfg(test)]
mod path_test;
#[cfg(test)]
mod tap_test;
