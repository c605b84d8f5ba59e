//! Interrupts from a device to its driver.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Bit of the interrupt status register: a used ring has moved.
pub const USED_RING: u32 = 1;
/// Bit of the interrupt status register: configuration or device status has changed.
pub const CONFIGURATION: u32 = 2;

/// The interrupt line of one device, shared by its threads and the transport.
#[derive(Debug)]
pub struct Interrupt {
    device: &'static str,
    irqfd: EventFd,
    status: AtomicU32,
    failed: AtomicBool,
}

impl Interrupt {
    /// A line for the device of that name, not yet connected to KVM.
    ///
    /// # Errors
    /// What `eventfd(2)` answers.
    pub fn new(device: &'static str) -> io::Result<Self> {
        Ok(Self {
            device,
            irqfd: EventFd::new(EFD_NONBLOCK)?,
            status: AtomicU32::new(0),
            failed: AtomicBool::new(false),
        })
    }

    /// The eventfd that KVM turns into an interrupt.
    #[must_use]
    pub fn irqfd(&self) -> &EventFd {
        &self.irqfd
    }

    /// Tells the driver that used buffers wait in some queue.
    pub fn signal_used(&self) {
        self.raise(USED_RING);
    }

    /// Tells the driver that the configuration space has changed.
    pub fn signal_config(&self) {
        self.raise(CONFIGURATION);
    }

    /// Gives up on a driver that broke the rules: logs why, sets
    /// DEVICE_NEEDS_RESET (virtio 1.2, section 2.1.2) and tells the driver. The
    /// device must not touch its queues again before it is reset.
    pub fn fail_device(&self, why: &dyn std::fmt::Display) {
        if !self.failed.swap(true, Ordering::SeqCst) {
            log::warn!(
                "{}: the guest's driver broke the rules, device needs reset: {why}",
                self.device
            );
        }
        self.raise(CONFIGURATION);
    }

    /// Whether [`fail_device`](Self::fail_device) was called since the last reset.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    /// The interrupt status register.
    #[must_use]
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// The driver has handled the reasons in `bits`.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// The state after a device reset.
    pub fn reset(&self) {
        self.status.store(0, Ordering::SeqCst);
        self.failed.store(false, Ordering::SeqCst);
    }

    fn raise(&self, bits: u32) {
        self.status.fetch_or(bits, Ordering::SeqCst);
        if let Err(error) = self.irqfd.write(1) {
            log::warn!("{}: cannot raise the interrupt: {error}", self.device);
        }
    }
}
