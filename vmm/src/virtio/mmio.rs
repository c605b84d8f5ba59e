//! The virtio-mmio transport (virtio 1.2, section 4.2.2), version 2 only.
//!
//! One [`MmioTransport`] shows one device in one page of guest physical memory.
//! The driver walks the device through the status bits; queue registers can be
//! written between FEATURES_OK and DRIVER_OK and at no other time, so that an
//! active device's queues never change under it.

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio as reg;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::GuestMemory;
use super::device::{ActiveDevice, Notification, VirtioDevice};
use super::interrupt::{self, Interrupt};
use super::queue::VirtQueue;

/// Size in bytes of the registers and the configuration space of one device.
pub const SIZE: u64 = 0x1000;
/// Offset of the register that a driver writes a queue's number to.
pub const NOTIFY: u64 = reg::VIRTIO_MMIO_QUEUE_NOTIFY as u64;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"NACR");
const CONFIG: u64 = reg::VIRTIO_MMIO_CONFIG as u64;

const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// The status bits in the order in which a driver sets them (section 3.1.1).
const STEPS: [u32; 4] = [
    VIRTIO_CONFIG_S_ACKNOWLEDGE,
    VIRTIO_CONFIG_S_DRIVER,
    VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_DRIVER_OK,
];

/// A device behind its registers.
pub struct MmioTransport {
    device: Box<dyn VirtioDevice>,
    memory: Arc<GuestMemory>,
    interrupt: Arc<Interrupt>,
    kicks: Vec<EventFd>,
    queues: Vec<Queue>,
    status: u32,
    queue_select: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
}

impl MmioTransport {
    /// Puts a device behind registers.
    ///
    /// # Errors
    /// What `eventfd(2)` answers, or a queue size that is no power of two.
    pub fn new(device: Box<dyn VirtioDevice>, memory: Arc<GuestMemory>) -> io::Result<Self> {
        let sizes = device.queue_max_sizes();
        let kicks = sizes
            .iter()
            .map(|_| EventFd::new(EFD_NONBLOCK))
            .collect::<Result<_, _>>()?;
        let queues = new_queues(&*device)?;
        let interrupt = Arc::new(Interrupt::new(device.name())?);
        Ok(Self {
            device,
            memory,
            interrupt,
            kicks,
            queues,
            status: 0,
            queue_select: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
        })
    }

    /// The device's interrupt line, to be connected to KVM.
    #[must_use]
    pub fn interrupt(&self) -> &Arc<Interrupt> {
        &self.interrupt
    }

    /// Eventfds for KVM to signal when a queue's number is written to
    /// [`NOTIFY`]; none for a device that is notified on the vCPU.
    #[must_use]
    pub fn kicks(&self) -> &[EventFd] {
        match self.device.notification() {
            Notification::EventFd => &self.kicks,
            Notification::Inline => &[],
        }
    }

    /// The driver reads `data.len()` bytes at `offset` of the page.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.device.read_config(offset, data);
        } else if let Ok(data) = <&mut [u8; 4]>::try_from(data) {
            *data = self.read_register(offset).to_le_bytes();
        }
    }

    /// The driver writes `data` at `offset` of the page. Configuration spaces
    /// are read-only; registers are 32 bits wide and nothing else.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if let Ok(data) = <[u8; 4]>::try_from(data)
            && offset < CONFIG
        {
            self.write_register(offset, u32::from_le_bytes(data));
        }
    }

    fn read_register(&self, offset: u64) -> u32 {
        let Ok(offset) = u32::try_from(offset) else {
            return 0;
        };
        match offset {
            reg::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            reg::VIRTIO_MMIO_VERSION => VERSION,
            reg::VIRTIO_MMIO_DEVICE_ID => self.device.device_type(),
            reg::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            reg::VIRTIO_MMIO_DEVICE_FEATURES => {
                half(self.offered_features(), self.device_features_select)
            }
            reg::VIRTIO_MMIO_QUEUE_NUM_MAX => self
                .selected_queue()
                .map_or(0, |queue| u32::from(queue.max_size())),
            reg::VIRTIO_MMIO_QUEUE_READY => self
                .selected_queue()
                .map_or(0, |queue| u32::from(queue.ready())),
            reg::VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt_status(),
            reg::VIRTIO_MMIO_STATUS => self.status(),
            // The configuration of no device changes while it is read, and no
            // device has shared memory: its length reads as -1 (section 4.2.2).
            reg::VIRTIO_MMIO_SHM_LEN_LOW | reg::VIRTIO_MMIO_SHM_LEN_HIGH => u32::MAX,
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        let Ok(offset) = u32::try_from(offset) else {
            return;
        };
        match offset {
            reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_select = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_select = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES => self.accept_features(value),
            reg::VIRTIO_MMIO_QUEUE_SEL => self.queue_select = value,
            reg::VIRTIO_MMIO_QUEUE_NOTIFY => self.notify(value),
            reg::VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            reg::VIRTIO_MMIO_STATUS => self.set_status(value),
            _ => self.set_up_queue(offset, value),
        }
    }

    fn offered_features(&self) -> u64 {
        self.device.features() | TRANSPORT_FEATURES
    }

    fn status(&self) -> u32 {
        if self.interrupt.has_failed() {
            self.status | VIRTIO_CONFIG_S_NEEDS_RESET
        } else {
            self.status
        }
    }

    fn interrupt_status(&self) -> u32 {
        let status = self.interrupt.status();
        if self.is_active() && self.device.interrupts_from_kernel() {
            status | interrupt::USED_RING
        } else {
            status
        }
    }

    fn has(&self, bit: u32) -> bool {
        self.status & bit != 0
    }

    fn is_active(&self) -> bool {
        self.has(VIRTIO_CONFIG_S_DRIVER_OK)
    }

    fn accept_features(&mut self, value: u32) {
        if !self.has(VIRTIO_CONFIG_S_DRIVER) || self.has(VIRTIO_CONFIG_S_FEATURES_OK) {
            return;
        }
        let (keep, shift) = match self.driver_features_select {
            0 => (0xffff_ffff_0000_0000, 0),
            1 => (0x0000_0000_ffff_ffff, 32),
            _ => return,
        };
        self.driver_features = self.driver_features & keep | u64::from(value) << shift;
    }

    fn features_are_acceptable(&self) -> bool {
        let unknown = self.driver_features & !self.offered_features();
        unknown == 0 && self.driver_features & 1 << VIRTIO_F_VERSION_1 != 0
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        if value & VIRTIO_CONFIG_S_FAILED != 0 {
            self.status |= VIRTIO_CONFIG_S_FAILED;
        }
        let reached = STEPS.iter().take_while(|step| self.has(**step)).count();
        let Some(next) = STEPS.get(reached) else {
            return;
        };
        let up_to_next: u32 = STEPS[..=reached].iter().sum();
        if value & !VIRTIO_CONFIG_S_FAILED != up_to_next {
            return;
        }
        match *next {
            VIRTIO_CONFIG_S_FEATURES_OK if !self.features_are_acceptable() => {}
            VIRTIO_CONFIG_S_DRIVER_OK => self.activate(),
            step => self.status |= step,
        }
    }

    fn activate(&mut self) {
        self.status |= VIRTIO_CONFIG_S_DRIVER_OK;
        let result = self.active_queues().and_then(|queues| {
            let active = ActiveDevice {
                memory: Arc::clone(&self.memory),
                features: self.driver_features,
                queues,
                interrupt: Arc::clone(&self.interrupt),
            };
            self.device
                .activate(active)
                .map_err(|error| error.to_string())
        });
        if let Err(error) = result {
            self.interrupt.fail_device(&error);
        }
    }

    fn active_queues(&mut self) -> Result<Vec<Option<VirtQueue>>, String> {
        let event_idx = self.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let queues = new_queues(&*self.device).map_err(|error| error.to_string())?;
        let configured = self.queues.iter().zip(&self.kicks).zip(queues).enumerate();
        configured
            .map(|(index, ((configured, kick), mut queue))| {
                if !configured.ready() {
                    return Ok(None);
                }
                copy_setup(configured, &mut queue);
                queue.set_event_idx(event_idx);
                if !queue.is_valid(&*self.memory) {
                    return Err(format!(
                        "queue {index} is not within guest memory or misaligned"
                    ));
                }
                let kick = kick.try_clone().map_err(|error| error.to_string())?;
                Ok(Some(VirtQueue::new(
                    queue,
                    kick,
                    Arc::clone(&self.interrupt),
                )))
            })
            .collect()
    }

    /// What a driver does by writing a status of 0: the device then holds no queue.
    pub fn reset(&mut self) {
        if self.is_active() {
            self.device.reset();
        }
        self.queues.iter_mut().for_each(Queue::reset);
        self.interrupt.reset();
        self.status = 0;
        self.queue_select = 0;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.driver_features = 0;
    }

    fn notify(&mut self, queue: u32) {
        let Ok(queue) = u16::try_from(queue) else {
            return;
        };
        if !self.is_active() || usize::from(queue) >= self.queues.len() {
            return;
        }
        match self.device.notification() {
            Notification::Inline => self.device.notify(queue),
            // Reached only where KVM does not know the eventfd.
            Notification::EventFd => {
                if let Err(error) = self.kicks[usize::from(queue)].write(1) {
                    log::warn!("{}: cannot pass on a kick: {error}", self.device.name());
                }
            }
        }
    }

    fn selected_queue(&self) -> Option<&Queue> {
        self.queues.get(usize::try_from(self.queue_select).ok()?)
    }

    fn set_up_queue(&mut self, offset: u32, value: u32) {
        if !self.has(VIRTIO_CONFIG_S_FEATURES_OK) || self.is_active() {
            return;
        }
        let Ok(selected) = usize::try_from(self.queue_select) else {
            return;
        };
        let Some(queue) = self.queues.get_mut(selected) else {
            return;
        };
        let value_or_nothing = Some(value);
        match offset {
            reg::VIRTIO_MMIO_QUEUE_NUM => {
                // A size that does not fit is as wrong as 0, which no queue accepts.
                queue.set_size(u16::try_from(value).unwrap_or(0));
            }
            reg::VIRTIO_MMIO_QUEUE_READY => queue.set_ready(value == 1),
            reg::VIRTIO_MMIO_QUEUE_DESC_LOW => queue.set_desc_table_address(value_or_nothing, None),
            reg::VIRTIO_MMIO_QUEUE_DESC_HIGH => {
                queue.set_desc_table_address(None, value_or_nothing)
            }
            reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW => {
                queue.set_avail_ring_address(value_or_nothing, None)
            }
            reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => {
                queue.set_avail_ring_address(None, value_or_nothing)
            }
            reg::VIRTIO_MMIO_QUEUE_USED_LOW => queue.set_used_ring_address(value_or_nothing, None),
            reg::VIRTIO_MMIO_QUEUE_USED_HIGH => queue.set_used_ring_address(None, value_or_nothing),
            _ => {}
        }
    }
}

fn new_queues(device: &dyn VirtioDevice) -> io::Result<Vec<Queue>> {
    let sizes = device.queue_max_sizes().iter();
    sizes
        .map(|size| Queue::new(*size).map_err(io::Error::other))
        .collect()
}

/// Copies what a driver has written from the registers' queue to a fresh one.
fn copy_setup(from: &Queue, to: &mut Queue) {
    let halves = |address: u64| (Some(half(address, 0)), Some(half(address, 1)));
    to.set_size(from.size());
    let (low, high) = halves(from.desc_table());
    to.set_desc_table_address(low, high);
    let (low, high) = halves(from.avail_ring());
    to.set_avail_ring_address(low, high);
    let (low, high) = halves(from.used_ring());
    to.set_used_ring_address(low, high);
    to.set_ready(true);
}

/// The low (0) or high (1) 32 bits; there are no others.
fn half(value: u64, index: u32) -> u32 {
    let bytes = value.to_le_bytes();
    let [a, b, c, d, e, f, g, h] = bytes;
    match index {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

#[cfg(test)]
#[path = "mmio_test.rs"]
mod tests;
