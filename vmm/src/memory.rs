//! Guest memory: one memory file, mapped where the guest has its memory.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use rustix::fs::{MemfdFlags, fstat, ftruncate, memfd_create};
use thiserror::Error;
use vm_memory::{
    Address as _, FileOffset, GuestMemory as _, GuestMemoryRegion as _, GuestRegionMmap,
};
use vm_memory::{GuestAddress, GuestRegionCollection, MmapRegion};

use crate::arch::current::memory_map::MemoryRange;
use crate::virtio::GuestMemory;

/// Why there is no guest memory.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The host does not give it.
    #[error("cannot get {bytes} bytes of guest memory: {source}")]
    Allocate {
        /// How much was asked for.
        bytes: u64,
        /// The system's answer.
        source: io::Error,
    },
    /// KVM does not take it.
    #[error("KVM refuses the guest's memory: {0}")]
    Kvm(#[from] kvm_ioctls::Error),
}

/// Guest memory and the file behind it.
#[derive(Debug)]
pub struct PodMemory {
    file: File,
    mapped: GuestMemory,
}

impl PodMemory {
    /// Fresh memory, all zero and not yet taken from the host.
    ///
    /// # Errors
    /// [`MemoryError::Allocate`].
    pub fn new(ranges: &[MemoryRange]) -> Result<Self, MemoryError> {
        let bytes = ranges.iter().map(|range| range.len).sum();
        let failed = |source| MemoryError::Allocate { bytes, source };
        let file = memory_file(bytes).map_err(failed)?;
        let mut offset = 0;
        let mut regions = Vec::new();
        for range in ranges {
            regions.push(map(&file, offset, *range).map_err(failed)?);
            offset += range.len;
        }
        let mapped = GuestRegionCollection::from_regions(regions)
            .map_err(|error| failed(io::Error::other(error)))?;
        Ok(Self { file, mapped })
    }

    /// The memory as devices see it.
    #[must_use]
    pub fn mapped(&self) -> &GuestMemory {
        &self.mapped
    }

    /// Gives the memory to a virtual machine.
    ///
    /// # Errors
    /// [`MemoryError::Kvm`].
    pub fn register(&self, vm: &VmFd) -> Result<(), MemoryError> {
        for (slot, region) in (0..).zip(self.mapped.iter()) {
            let kvm_region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the region is mapped as long as `self.mapped`, which the
            // machine keeps until its process ends, and overlaps no other.
            unsafe { vm.set_user_memory_region(kvm_region) }?;
        }
        Ok(())
    }

    /// A second handle on the file, for [`touched`].
    ///
    /// # Errors
    /// What `dup(2)` answers.
    pub fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// The memory for devices, which share it.
    #[must_use]
    pub fn into_mapped(self) -> GuestMemory {
        self.mapped
    }
}

/// Bytes that somebody has touched of the memory behind `file`.
///
/// # Errors
/// What `fstat(2)` answers.
pub fn touched(file: impl AsFd) -> io::Result<u64> {
    let blocks = fstat(file)?.st_blocks;
    Ok(u64::try_from(blocks).unwrap_or(0) * 512)
}

fn memory_file(bytes: u64) -> io::Result<File> {
    let fd = memfd_create("guest-memory", MemfdFlags::CLOEXEC)?;
    ftruncate(&fd, bytes)?;
    Ok(fd.into())
}

fn map(file: &File, offset: u64, range: MemoryRange) -> io::Result<GuestRegionMmap<()>> {
    let len = usize::try_from(range.len).map_err(io::Error::other)?;
    let offset = FileOffset::new(file.try_clone()?, offset);
    let region = MmapRegion::from_file(offset, len).map_err(io::Error::other)?;
    GuestRegionMmap::new(region, range.start).ok_or_else(|| {
        io::Error::other(format!(
            "{:#x} is too high",
            GuestAddress::raw_value(&range.start)
        ))
    })
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;
    use crate::arch::current::memory_map::ranges;

    #[test]
    fn memory_is_taken_from_the_host_when_it_is_touched() {
        let memory = PodMemory::new(&ranges(4 << 30)).unwrap();
        let file = memory.file().unwrap();
        assert_eq!(touched(&file).unwrap(), 0);
        memory
            .mapped()
            .write_obj(1_u8, GuestAddress(0x5000))
            .unwrap();
        memory
            .mapped()
            .write_obj(1_u8, GuestAddress(4 << 30))
            .unwrap();
        assert_eq!(touched(&file).unwrap(), 8192);
    }

    #[test]
    fn the_hole_is_no_memory() {
        let memory = PodMemory::new(&ranges(4 << 30)).unwrap();
        assert!(
            memory
                .mapped()
                .write_obj(1_u8, GuestAddress(0xd000_0000))
                .is_err()
        );
    }
}
