//! The zero page: what the kernel is told about its memory, command line and
//! initramfs (Documentation/arch/x86/zero-page.rst).

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};

use super::layout::{
    BOOT_PARAMS, CMDLINE, CMDLINE_MAX, HIGH_MEMORY, HOLE_START, MPTABLE, RANDOM_SEED,
};
use super::memory_map::MemoryRange;
use crate::virtio::GuestMemory;

const BOOT_FLAG_MAGIC: u16 = 0xaa55;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// "Undefined" boot loader without an identifier of its own.
const LOADER_TYPE_UNDEFINED: u8 = 0xff;
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
const SETUP_RNG_SEED: u32 = 9;
const PAGE: u64 = 4096;

/// Length in bytes of the random seed.
pub const SEED_LEN: usize = 32;

/// What does not fit into guest memory.
#[derive(Debug, Error)]
pub enum BootParamsError {
    /// The command line is longer than the kernel reads.
    #[error("the kernel command line has {0} bytes, more than {max} fit", max = CMDLINE_MAX - 1)]
    CmdlineTooLong(usize),
    /// There is no room for the initramfs between the kernel and the end of low memory.
    #[error(
        "an initramfs of {initramfs} bytes does not fit behind the kernel: {memory} bytes of memory are too few"
    )]
    NoRoom {
        /// Length of the initramfs in bytes.
        initramfs: u64,
        /// Guest memory in bytes.
        memory: u64,
    },
    /// Guest memory cannot be written.
    #[error("cannot write boot parameters: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// Where an initramfs of `len` bytes goes: to the end of low memory, page-aligned.
///
/// # Errors
/// [`BootParamsError::NoRoom`] when it would reach into the kernel, which ends at `kernel_end`.
pub fn initramfs_address(
    memory: &[MemoryRange],
    kernel_end: u64,
    len: u64,
) -> Result<GuestAddress, BootParamsError> {
    let total: u64 = memory.iter().map(|range| range.len).sum();
    let end = total.min(HOLE_START);
    end.checked_sub(len)
        .map(|start| start / PAGE * PAGE)
        .filter(|start| *start >= kernel_end)
        .map(GuestAddress)
        .ok_or(BootParamsError::NoRoom {
            initramfs: len,
            memory: total,
        })
}

/// What the kernel is told.
#[derive(Debug)]
pub struct BootInfo<'a> {
    /// Guest memory.
    pub ranges: &'a [MemoryRange],
    /// Command line.
    pub cmdline: &'a str,
    /// Address and length of the initramfs.
    pub initramfs: (GuestAddress, u64),
    /// For the kernel's random number generator.
    pub seed: [u8; SEED_LEN],
}

/// Writes zero page, command line and seed.
///
/// # Errors
/// [`BootParamsError`] when something does not fit.
pub fn write(memory: &GuestMemory, info: &BootInfo<'_>) -> Result<(), BootParamsError> {
    write_cmdline(memory, info.cmdline)?;
    write_seed(memory, info.seed)?;

    let mut params = boot_params::default();
    params.hdr.boot_flag = BOOT_FLAG_MAGIC;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.type_of_loader = LOADER_TYPE_UNDEFINED;
    params.hdr.kernel_alignment = 0x0100_0000;
    params.hdr.setup_data = RANDOM_SEED;
    (params.hdr.cmd_line_ptr, params.ext_cmd_line_ptr) = split(CMDLINE);
    params.hdr.cmdline_size = truncated(info.cmdline.len() as u64 + 1);
    (params.hdr.ramdisk_image, params.ext_ramdisk_image) = split(info.initramfs.0.0);
    (params.hdr.ramdisk_size, params.ext_ramdisk_size) = split(info.initramfs.1);

    let entries = memory_entries(info.ranges);
    for (slot, entry) in params.e820_table.iter_mut().zip(&entries) {
        *slot = *entry;
    }
    params.e820_entries = u8::try_from(entries.len()).unwrap_or(u8::MAX);
    memory.write_obj(params, GuestAddress(BOOT_PARAMS))?;
    Ok(())
}

fn memory_entries(ranges: &[MemoryRange]) -> Vec<boot_e820_entry> {
    let entry = |addr, end: u64, type_| boot_e820_entry {
        addr,
        size: end - addr,
        type_,
    };
    let mut entries = vec![
        entry(0, MPTABLE, E820_RAM),
        entry(MPTABLE, HIGH_MEMORY, E820_RESERVED),
    ];
    for range in ranges {
        let start = range.start.0.max(HIGH_MEMORY);
        entries.push(entry(start, range.start.0 + range.len, E820_RAM));
    }
    entries
}

fn write_cmdline(memory: &GuestMemory, cmdline: &str) -> Result<(), BootParamsError> {
    if cmdline.len() >= CMDLINE_MAX {
        return Err(BootParamsError::CmdlineTooLong(cmdline.len()));
    }
    memory.write_slice(cmdline.as_bytes(), GuestAddress(CMDLINE))?;
    memory.write_obj(0_u8, GuestAddress(CMDLINE + cmdline.len() as u64))?;
    Ok(())
}

/// A `struct setup_data` that is the last of its list.
fn write_seed(memory: &GuestMemory, seed: [u8; SEED_LEN]) -> Result<(), BootParamsError> {
    let mut entry = Vec::with_capacity(16 + SEED_LEN);
    entry.extend_from_slice(&0_u64.to_le_bytes());
    entry.extend_from_slice(&SETUP_RNG_SEED.to_le_bytes());
    entry.extend_from_slice(&truncated(SEED_LEN as u64).to_le_bytes());
    entry.extend_from_slice(&seed);
    memory.write_slice(&entry, GuestAddress(RANDOM_SEED))?;
    Ok(())
}

fn truncated(value: u64) -> u32 {
    split(value).0
}

/// Low and high 32 bits.
fn split(value: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    (
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    )
}

#[cfg(test)]
mod tests {
    use super::super::memory_map::ranges;
    use super::*;

    const MIB: u64 = 1 << 20;

    fn written(cmdline: &str, bytes: u64) -> Result<(GuestMemory, boot_params), BootParamsError> {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let info = BootInfo {
            ranges: &ranges(bytes),
            cmdline,
            initramfs: (GuestAddress(0x12_3450_0000), 77),
            seed: [7; SEED_LEN],
        };
        write(&memory, &info)?;
        let params = memory.read_obj(GuestAddress(BOOT_PARAMS)).unwrap();
        Ok((memory, params))
    }

    #[test]
    fn the_kernel_finds_its_command_line_initramfs_and_seed() {
        let (memory, params) = written("quiet", 128 * MIB).unwrap();
        let mut cmdline = [0xff; 6];
        memory
            .read_slice(&mut cmdline, GuestAddress(CMDLINE))
            .unwrap();
        assert_eq!(&cmdline, b"quiet\0");
        let (image, size) = (params.hdr.ramdisk_image, params.hdr.ramdisk_size);
        assert_eq!(
            (image, params.ext_ramdisk_image, size),
            (0x3450_0000, 0x12, 77)
        );
        let seed_type: u32 = memory.read_obj(GuestAddress(RANDOM_SEED + 8)).unwrap();
        assert_eq!(seed_type, SETUP_RNG_SEED);
    }

    #[test]
    fn the_memory_map_covers_all_memory_but_the_legacy_hole() {
        let (_, params) = written("", 8 << 30).unwrap();
        let table: Vec<_> = params.e820_table[..usize::from(params.e820_entries)]
            .iter()
            .map(|entry| (entry.addr, entry.addr + entry.size, entry.type_))
            .collect();
        assert_eq!(
            table,
            [
                (0, MPTABLE, E820_RAM),
                (MPTABLE, HIGH_MEMORY, E820_RESERVED),
                (HIGH_MEMORY, HOLE_START, E820_RAM),
                (4 << 30, 9 << 30, E820_RAM),
            ]
        );
    }

    #[test]
    fn a_command_line_that_the_kernel_would_cut_is_an_error() {
        let error = written(&"x".repeat(CMDLINE_MAX), 128 * MIB).err().unwrap();
        assert!(matches!(error, BootParamsError::CmdlineTooLong(_)));
    }

    #[test]
    fn an_initramfs_lies_behind_the_kernel_or_is_refused() {
        let memory = ranges(64 * MIB);
        let address = initramfs_address(&memory, 20 * MIB, 10 * MIB + 1).unwrap();
        assert_eq!(address, GuestAddress(54 * MIB - PAGE));
        assert!(matches!(
            initramfs_address(&memory, 60 * MIB, 10 * MIB),
            Err(BootParamsError::NoRoom { .. })
        ));
        assert!(matches!(
            initramfs_address(&memory, 0, 65 * MIB),
            Err(BootParamsError::NoRoom { .. })
        ));
    }
}
