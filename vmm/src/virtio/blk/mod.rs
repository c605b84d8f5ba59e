//! virtio-blk (virtio 1.2, section 5.2): a block device of the host, in a slot that was there
//! when the guest booted.
//!
//! A guest finds its devices once, at boot. So there are slots: devices that say they are none
//! (device identifier 0, "no function", section 4.2.2) until a [`Slot`] is given a disk. The
//! agent then has the guest's driver look again. Each slot has a thread of its own
//! ([`session`]), so that a slow disk holds up nothing else.
//!
//! Data goes between guest memory and the host's page cache without a copy, and to the device
//! when the driver asks for a flush; a driver that cannot ask has every write flushed.

mod disk;
mod parts;
mod request;
mod session;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX,
};

use self::disk::Disk;
use self::session::Session;
use super::device::{ActivateError, ActiveDevice, VirtioDevice, read_space};
use super::worker::Worker;
use crate::config::DiskConfig;
use crate::jail::seccomp::ThreadKind;

const DEVICE_TYPE: u32 = 2;
/// Device identifier of a place without a device.
const NO_DEVICE: u32 = 0;
const QUEUE_SIZE: u16 = 128;
const QUEUE_SIZES: [u16; 1] = [QUEUE_SIZE];

/// Most buffers of data in a request, and of the whole request with header and status.
const MAX_SEGMENTS: u32 = 126;
const MAX_DESCRIPTORS: usize = MAX_SEGMENTS as usize + 2;
/// Most bytes in one buffer.
const MAX_SEGMENT: u32 = 256 << 10;
/// Most bytes of data in a request.
const MAX_DATA: u32 = MAX_SEGMENTS * MAX_SEGMENT;

/// Length in bytes of what is used of the configuration space: up to `blk_size`.
const CONFIG_LEN: usize = 24;

/// A disk is in the slot already.
#[derive(Debug, Error)]
#[error("the slot is taken")]
pub struct Occupied;

/// Where a disk is put in and taken out while the guest runs.
#[derive(Clone, Debug, Default)]
pub struct Slot(Arc<Mutex<Option<Arc<Disk>>>>);

impl Slot {
    /// Puts a disk in.
    ///
    /// # Errors
    /// [`Occupied`].
    pub fn insert(&self, fd: OwnedFd, config: &DiskConfig) -> Result<(), Occupied> {
        let mut place = self.lock();
        if place.is_some() {
            return Err(Occupied);
        }
        *place = Some(Arc::new(Disk::new(fd, config)));
        Ok(())
    }

    /// Takes the disk out, if there is one. A device that is active still holds it until it is
    /// reset.
    pub fn remove(&self) {
        *self.lock() = None;
    }

    fn disk(&self) -> Option<Arc<Disk>> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Disk>>> {
        // The place is whole whenever a panic may happen.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The device in a slot.
#[derive(Debug)]
pub struct Blk {
    slot: Slot,
    worker: Worker<Session>,
}

impl Blk {
    /// The device of a slot, with its thread started.
    ///
    /// # Errors
    /// What the start of a thread answers.
    pub fn spawn(slot: Slot) -> io::Result<Self> {
        let worker = Worker::spawn(ThreadKind::Blk, |mailbox| session::run(&mailbox))?;
        Ok(Self { slot, worker })
    }
}

impl VirtioDevice for Blk {
    fn device_type(&self) -> u32 {
        if self.slot.disk().is_some() {
            DEVICE_TYPE
        } else {
            NO_DEVICE
        }
    }

    fn name(&self) -> &'static str {
        "blk"
    }

    fn features(&self) -> u64 {
        let Some(disk) = self.slot.disk() else {
            return 0;
        };
        let always = 1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_FLUSH;
        always | u64::from(disk.is_read_only()) << VIRTIO_BLK_F_RO
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let Some(disk) = self.slot.disk() else {
            return;
        };
        let mut space = [0; CONFIG_LEN];
        space[..8].copy_from_slice(&disk.sectors().to_le_bytes());
        space[8..12].copy_from_slice(&MAX_SEGMENT.to_le_bytes());
        space[12..16].copy_from_slice(&MAX_SEGMENTS.to_le_bytes());
        space[20..].copy_from_slice(&disk.block_size().to_le_bytes());
        read_space(&space, offset, data);
    }

    fn activate(&mut self, mut active: ActiveDevice) -> Result<(), ActivateError> {
        let disk = self.slot.disk().ok_or_else(|| ActivateError::Host {
            what: "there is no disk in this slot",
            source: io::ErrorKind::NotFound.into(),
        })?;
        self.worker.activate(Session {
            queue: active.take_queue(0)?,
            memory: active.memory,
            interrupt: active.interrupt,
            disk,
            write_through: active.features & 1 << VIRTIO_BLK_F_FLUSH == 0,
        })
    }

    fn reset(&mut self) {
        self.worker.reset();
    }
}

#[cfg(test)]
#[path = "slot_test.rs"]
mod tests;
