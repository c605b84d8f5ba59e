//! Guest memory: anonymous, so that the host may back it with huge pages.
//!
//! One page table entry of the host then stands for 2 MiB, and a guest that boots
//! leaves for the host 700 times instead of 9,700 times because of memory. A memory
//! file would have huge pages only where the host's administrator allows it
//! (`transparent_hugepage/shmem_enabled`), which is nowhere by default.

use std::io;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use thiserror::Error;
use vm_memory::{
    Address as _, GuestAddress, GuestMemory as _, GuestMemoryRegion as _, GuestRegionCollection,
    GuestRegionMmap, MmapRegion,
};

use crate::arch::current::memory_map::MemoryRange;
use crate::virtio::GuestMemory;

/// Bytes of a huge page, and of a page.
const HUGE_PAGE: usize = 2 << 20;
const PAGE: usize = 4096;

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

/// Guest memory. It stays mapped for as long as the process lives.
#[derive(Debug)]
pub struct PodMemory {
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
        let mut regions = Vec::new();
        for range in ranges {
            regions.push(map(*range).map_err(failed)?);
        }
        let mapped = GuestRegionCollection::from_regions(regions)
            .map_err(|error| failed(io::Error::other(error)))?;
        Ok(Self { mapped })
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

    /// The memory for devices, which share it.
    #[must_use]
    pub fn into_mapped(self) -> GuestMemory {
        self.mapped
    }
}

/// Bytes of the host's memory that are behind guest memory.
///
/// # Errors
/// What `mincore(2)` answers.
pub fn touched(memory: &GuestMemory) -> io::Result<u64> {
    // Of 1 GiB at a time.
    let mut resident = vec![0_u8; (1 << 30) / PAGE];
    let mut pages = 0;
    for region in memory.iter() {
        let len = usize::try_from(region.len()).map_err(io::Error::other)?;
        for offset in (0..len).step_by(resident.len() * PAGE) {
            let len = (len - offset).min(resident.len() * PAGE);
            let resident = &mut resident[..len / PAGE];
            // SAFETY: the range is mapped, and there is a byte for each page of it.
            let looked = unsafe {
                libc::mincore(
                    region.as_ptr().add(offset).cast(),
                    len,
                    resident.as_mut_ptr(),
                )
            };
            if looked != 0 {
                return Err(io::Error::last_os_error());
            }
            pages += resident.iter().filter(|page| **page & 1 == 1).count();
        }
    }
    Ok((pages * PAGE) as u64)
}

fn map(range: MemoryRange) -> io::Result<GuestRegionMmap<()>> {
    let len = usize::try_from(range.len).map_err(io::Error::other)?;
    let address = map_aligned(len)?;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the memory is mapped like this for the rest of the process's life.
    let region = unsafe { MmapRegion::build_raw(address, len, protection, FLAGS) };
    let region = region.map_err(io::Error::other)?;
    GuestRegionMmap::new(region, range.start).ok_or_else(|| {
        io::Error::other(format!(
            "{:#x} is too high",
            GuestAddress::raw_value(&range.start)
        ))
    })
}

const FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// Maps memory at a multiple of [`HUGE_PAGE`]: KVM uses a huge page where it is one
/// for the guest as well, whose ranges begin at such a multiple.
fn map_aligned(len: usize) -> io::Result<*mut u8> {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new mapping, at a place of the kernel's choice, touches no other.
    let start = unsafe {
        mmap_anonymous(
            std::ptr::null_mut(),
            len + HUGE_PAGE,
            ProtFlags::READ | ProtFlags::WRITE,
            flags,
        )
    }?;
    let lead = start.cast::<u8>().align_offset(HUGE_PAGE);
    // SAFETY: only what was just mapped is unmapped, before and behind `len` bytes
    // that stay, and nobody knows of it yet.
    unsafe {
        let aligned = start.cast::<u8>().add(lead);
        if lead > 0 {
            munmap(start, lead)?;
        }
        munmap(aligned.add(len).cast(), HUGE_PAGE - lead)?;
        // A host without huge pages has 4 KiB pages, no more.
        let _ = madvise(aligned.cast(), len, Advice::LinuxHugepage);
        Ok(aligned)
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;
    use crate::arch::current::memory_map::ranges;

    #[test]
    fn memory_is_taken_from_the_host_when_it_is_touched() {
        let memory = PodMemory::new(&ranges(4 << 30)).unwrap();
        let touched = || touched(memory.mapped()).unwrap();
        assert_eq!(touched(), 0);
        for place in [0x5000, 4 << 30] {
            memory
                .mapped()
                .write_obj(1_u8, GuestAddress(place))
                .unwrap();
        }
        // Two pages, of whichever size the host has.
        let pages = [PAGE, HUGE_PAGE].map(|size| 2 * size as u64);
        assert!(pages.contains(&touched()), "{}", touched());
    }

    #[test]
    fn memory_can_be_of_huge_pages_as_the_guest_sees_them() {
        let memory = PodMemory::new(&ranges(4 << 30)).unwrap();
        for region in memory.mapped().iter() {
            assert_eq!(region.start_addr().raw_value() % HUGE_PAGE as u64, 0);
            assert!(region.as_ptr().align_offset(HUGE_PAGE) == 0);
        }
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
