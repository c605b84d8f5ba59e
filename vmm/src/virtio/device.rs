//! The contract between the transport and a device.

use std::sync::Arc;

use thiserror::Error;

use super::GuestMemory;
use super::interrupt::Interrupt;
use super::queue::VirtQueue;

/// How a device learns that the driver has made buffers available.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Notification {
    /// KVM signals the queue's eventfd; the device's worker waits for it.
    EventFd,
    /// The vCPU that wrote the register calls [`VirtioDevice::notify`]; for
    /// devices that are asked too seldom to deserve a thread.
    Inline,
}

/// What a device receives when the driver sets DRIVER_OK.
#[derive(Debug)]
pub struct ActiveDevice {
    /// Guest memory.
    pub memory: Arc<GuestMemory>,
    /// Feature bits that the driver accepted, a subset of those offered.
    pub features: u64,
    /// The device's queues, in order; a queue that the driver left disabled is `None`.
    pub queues: Vec<Option<VirtQueue>>,
    /// How to interrupt the driver.
    pub interrupt: Arc<Interrupt>,
}

impl ActiveDevice {
    /// Takes the queue at `index`.
    ///
    /// # Errors
    /// [`ActivateError::MissingQueue`] when the driver left it disabled.
    pub fn take_queue(&mut self, index: usize) -> Result<VirtQueue, ActivateError> {
        self.queues
            .get_mut(index)
            .and_then(Option::take)
            .ok_or(ActivateError::MissingQueue(index))
    }
}

/// Why a device did not become active.
#[derive(Debug, Error)]
pub enum ActivateError {
    /// The driver set DRIVER_OK without enabling a queue that the device needs.
    #[error("queue {0} is needed but was not enabled")]
    MissingQueue(usize),
    /// The thread that moves the device's data has ended.
    #[error("the device's worker has ended")]
    WorkerGone,
    /// The host refused something that the device needs.
    #[error("{what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
}

/// A virtio device as the transport drives it, on the threads of the vCPUs.
pub trait VirtioDevice: Send {
    /// Device identifier of virtio 1.2, section 5.
    fn device_type(&self) -> u32;

    /// Name for log lines.
    fn name(&self) -> &'static str;

    /// Feature bits that are offered, besides those of the transport.
    fn features(&self) -> u64;

    /// Largest size of each queue, in order: a power of two each.
    fn queue_max_sizes(&self) -> &[u16];

    /// Reads the device's configuration space. Bytes beyond its end stay as they are (zero).
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// How the device wants to be notified.
    fn notification(&self) -> Notification {
        Notification::EventFd
    }

    /// The interrupt is raised without a word from the monitor (vhost), so that
    /// the transport must always report it as one of a used ring.
    fn interrupts_from_kernel(&self) -> bool {
        false
    }

    /// The driver has set DRIVER_OK.
    ///
    /// # Errors
    /// [`ActivateError`]; the transport then marks the device as needing reset.
    fn activate(&mut self, active: ActiveDevice) -> Result<(), ActivateError>;

    /// The driver wrote `queue` to the notification register of an
    /// [`Inline`](Notification::Inline) device.
    fn notify(&mut self, queue: u16) {
        let _ = queue;
    }

    /// The driver has reset the device: on return it holds no queue, touches no
    /// guest memory, and can be activated anew.
    fn reset(&mut self);
}

/// Reads a configuration space that is `space`, whatever the driver asks for; see
/// [`VirtioDevice::read_config`].
pub(super) fn read_space(space: &[u8], offset: u64, data: &mut [u8]) {
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    for (byte, value) in data.iter_mut().zip(space.get(start..).unwrap_or_default()) {
        *byte = *value;
    }
}
