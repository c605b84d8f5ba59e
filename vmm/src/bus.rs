//! Which device answers at an address of the guest's physical memory.

use std::sync::Mutex;

use crate::arch::current::layout::DEVICES;
use crate::virtio::mmio::{MmioTransport, SIZE};

/// The devices' registers, one page each from [`DEVICES`] on. Where no device
/// is, writes are lost and reads give ones.
#[derive(Default)]
pub struct DeviceBus {
    devices: Vec<Mutex<MmioTransport>>,
}

impl DeviceBus {
    /// Adds a device behind the last; returns the address of its registers.
    pub fn add(&mut self, device: MmioTransport) -> u64 {
        let address = self.next_address();
        self.devices.push(Mutex::new(device));
        address
    }

    /// Where the registers of the next device will be.
    #[must_use]
    pub fn next_address(&self) -> u64 {
        DEVICES + SIZE * self.devices.len() as u64
    }

    /// A vCPU reads `data.len()` bytes at `address`.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((device, offset)) => {
                data.fill(0);
                device.read(offset, data);
            }
            None => data.fill(0xff),
        }
    }

    /// A vCPU writes `data` at `address`.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((mut device, offset)) = self.find(address) {
            device.write(offset, data);
        }
    }

    /// Resets the device at `index`, whatever its driver thinks of it.
    pub fn reset(&self, index: usize) {
        if let Some(device) = self.devices.get(index)
            && let Ok(mut device) = device.lock()
        {
            device.reset();
        }
    }

    fn find(&self, address: u64) -> Option<(std::sync::MutexGuard<'_, MmioTransport>, u64)> {
        let offset = address.checked_sub(DEVICES)?;
        let index = usize::try_from(offset / SIZE).ok()?;
        // A poisoned lock: the device's thread died in it, so it does not answer.
        let device = self.devices.get(index)?.lock().ok()?;
        Some((device, offset % SIZE))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vm_memory::GuestAddress;

    use super::*;
    use crate::virtio::GuestMemory;
    use crate::virtio::rng::Rng;

    #[test]
    fn a_device_answers_in_its_page_and_nothing_beside_it() {
        let memory = Arc::new(GuestMemory::from_ranges(&[(GuestAddress(0), 4096)]).unwrap());
        let mut bus = DeviceBus::default();
        let address = bus.add(MmioTransport::new(Box::<Rng>::default(), memory).unwrap());
        assert_eq!(address, DEVICES);
        let mut data = [0; 4];
        bus.read(DEVICES, &mut data);
        assert_eq!(&data, b"virt");
        for nothing in [DEVICES + SIZE, DEVICES - 4, 0, u64::MAX] {
            bus.read(nothing, &mut data);
            assert_eq!(data, [0xff; 4]);
            bus.write(nothing, &data);
        }
    }
}
