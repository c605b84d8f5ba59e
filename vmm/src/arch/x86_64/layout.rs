//! Where things are in guest physical memory, each with its reason.
//!
//! ```text
//! 0x0000_0500  GDT, for the registers' hidden parts to agree with memory
//! 0x0000_7000  boot_params, the "zero page"
//! 0x0000_8000  setup_data with the random seed
//! 0x0000_9000  page tables: the first GiB, identity
//! 0x0002_0000  kernel command line
//! 0x0009_fc00  MP table, in the last KiB of conventional memory
//! 0x0010_0000  kernel; the initramfs ends where low memory does
//! 0xc000_0000  hole: device registers, I/O APIC, local APIC, KVM's own pages
//! 0x1_0000_0000  the rest of memory
//! ```

/// Global descriptor table; below it is the real-mode interrupt table.
pub const GDT: u64 = 0x500;
/// Zero page. Any page below 640 KiB would do.
pub const BOOT_PARAMS: u64 = 0x7000;
/// `setup_data` entry with the seed of the guest's random number generator.
pub const RANDOM_SEED: u64 = 0x8000;
/// Top-level page table; the next two pages hold the next two levels.
pub const PML4: u64 = 0x9000;
/// Page directory pointer table.
pub const PDPT: u64 = 0xa000;
/// Page directory: 512 pages of 2 MiB.
pub const PAGE_DIRECTORY: u64 = 0xb000;
/// Kernel command line.
pub const CMDLINE: u64 = 0x20000;
/// Largest command line in bytes, with its end: COMMAND_LINE_SIZE of x86.
pub const CMDLINE_MAX: usize = 2048;
/// The MP table: the MP specification (section 4) has it searched for in the
/// last KiB of conventional memory.
pub const MPTABLE: u64 = 0x9_fc00;
/// Length in bytes of what is kept for the MP table: up to the end of conventional memory.
pub const MPTABLE_SIZE: u64 = 0x400;
/// Where the kernel may begin: above the legacy hole.
pub const HIGH_MEMORY: u64 = 0x10_0000;
/// Where low memory ends: the upper GiB below 4 GiB belongs to devices.
pub const HOLE_START: u64 = 0xc000_0000;
/// Where memory goes on above the hole.
pub const HOLE_END: u64 = 0x1_0000_0000;
/// Registers of the first virtio device; a page each.
pub const DEVICES: u64 = 0xd000_0000;
/// I/O APIC, its architectural default.
pub const IO_APIC: u32 = 0xfec0_0000;
/// Local APICs, their architectural default.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages that KVM needs on Intel for the task state of real mode.
pub const KVM_TSS: usize = 0xfffb_d000;
/// First interrupt of a virtio device: the ones below belong to a PC's timer, keyboard and such.
pub const FIRST_IRQ: u32 = 5;
/// Last pin of the I/O APIC.
pub const LAST_IRQ: u32 = 23;
