//! Loads the guest kernel and its initramfs into guest memory.

use std::fs::File;
use std::io;

use linux_loader::loader::{Elf, KernelLoader};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};

use crate::arch::current::boot_params::{self, BootParamsError};
use crate::arch::current::layout::HIGH_MEMORY;
use crate::arch::current::memory_map::MemoryRange;
use crate::virtio::GuestMemory;

/// Why a kernel could not be loaded.
#[derive(Debug, Error)]
pub enum KernelError {
    /// The file is not what it should be.
    #[error("the kernel file is no uncompressed x86-64 ELF kernel (a vmlinux): {0}")]
    NoKernel(String),
    /// It does not fit.
    #[error("the kernel does not fit into {} MiB of guest memory: give the guest more", .0 >> 20)]
    NoRoom(u64),
    /// The initramfs does not fit.
    #[error(transparent)]
    Initramfs(#[from] BootParamsError),
    /// The initramfs cannot be read.
    #[error("cannot read the initramfs: {0}")]
    Read(io::Error),
}

/// Where things have been put.
#[derive(Clone, Copy, Debug)]
pub struct Loaded {
    /// The kernel's first instruction in 64-bit mode.
    pub entry: GuestAddress,
    /// Address and length in bytes of the initramfs.
    pub initramfs: (GuestAddress, u64),
}

/// Loads both.
///
/// # Errors
/// [`KernelError`].
pub fn load(
    memory: &GuestMemory,
    ranges: &[MemoryRange],
    kernel: &mut File,
    initramfs: &mut File,
) -> Result<Loaded, KernelError> {
    let low = ranges.first().map_or(0, |range| range.len);
    let loaded =
        Elf::load(memory, None, kernel, Some(GuestAddress(HIGH_MEMORY))).map_err(|error| {
            use linux_loader::loader::Error::Elf;
            use linux_loader::loader::elf::Error::ReadKernelImage;
            match error {
                // The file is long enough for its headers, so it was the memory that ended.
                Elf(ReadKernelImage) => KernelError::NoRoom(low),
                error => KernelError::NoKernel(error.to_string()),
            }
        })?;
    if loaded.kernel_end > low {
        return Err(KernelError::NoRoom(low));
    }
    let initramfs = load_initramfs(memory, ranges, loaded.kernel_end, initramfs)?;
    Ok(Loaded {
        entry: loaded.kernel_load,
        initramfs,
    })
}

fn load_initramfs(
    memory: &GuestMemory,
    ranges: &[MemoryRange],
    kernel_end: u64,
    file: &mut File,
) -> Result<(GuestAddress, u64), KernelError> {
    let len = file.metadata().map_err(KernelError::Read)?.len();
    let address = boot_params::initramfs_address(ranges, kernel_end, len)?;
    let count = usize::try_from(len).map_err(|error| KernelError::Read(io::Error::other(error)))?;
    memory
        .read_exact_volatile_from(address, file, count)
        .map_err(|error| KernelError::Read(io::Error::other(error)))?;
    Ok((address, len))
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::*;
    use crate::arch::current::memory_map::ranges;
    use crate::memory::PodMemory;

    fn file(content: &[u8]) -> File {
        let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::empty()).unwrap();
        let mut file = File::from(fd);
        file.write_all(content).unwrap();
        file.rewind().unwrap();
        file
    }

    /// An ELF file with one segment at 1 MiB, as short as can be.
    fn elf(memsz: u64) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 56 + 4];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[16] = 2; // ET_EXEC
        bytes[18] = 62; // x86-64
        bytes[24..32].copy_from_slice(&HIGH_MEMORY.to_le_bytes());
        bytes[32] = 64; // program headers
        bytes[52] = 64;
        bytes[54] = 56;
        bytes[56] = 1;
        let header = &mut bytes[64..120];
        header[0] = 1; // PT_LOAD
        header[8] = 120;
        header[24..32].copy_from_slice(&HIGH_MEMORY.to_le_bytes());
        header[32] = 4;
        header[40..48].copy_from_slice(&memsz.to_le_bytes());
        bytes[120..].copy_from_slice(b"code");
        bytes
    }

    fn load_into(mib: u64, kernel: &[u8], initramfs: &[u8]) -> Result<Loaded, KernelError> {
        let ranges = ranges(mib << 20);
        let memory = PodMemory::new(&ranges).unwrap();
        load(
            memory.mapped(),
            &ranges,
            &mut file(kernel),
            &mut file(initramfs),
        )
    }

    #[test]
    fn a_kernel_and_its_initramfs_are_loaded() {
        let loaded = load_into(32, &elf(4096), &[1; 5000]).unwrap();
        assert_eq!(loaded.entry, GuestAddress(HIGH_MEMORY));
        assert_eq!(loaded.initramfs, (GuestAddress((32 << 20) - 8192), 5000));
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        for bytes in [&b""[..], b"#!/bin/sh\n", &[0; 200], &elf(4)[..100]] {
            let error = load_into(32, bytes, b"").unwrap_err();
            assert!(matches!(error, KernelError::NoKernel(_)), "{error}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(matches!(
            load_into(32, &elf(33 << 20), b""),
            Err(KernelError::NoRoom(_))
        ));
        let error = load_into(32, &elf(31 << 20), &[1; 4096]).unwrap_err();
        assert!(matches!(error, KernelError::Initramfs(_)), "{error}");
    }
}
