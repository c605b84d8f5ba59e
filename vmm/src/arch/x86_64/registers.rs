//! Registers and tables of a processor that enters a 64-bit kernel: long mode,
//! flat segments, the first GiB mapped onto itself.

use kvm_bindings::{kvm_fpu, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};

use super::layout::{BOOT_PARAMS, GDT, PAGE_DIRECTORY, PDPT, PML4};
use crate::virtio::GuestMemory;

const CR0_PROTECTED: u64 = 1;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LONG_MODE_ENABLED: u64 = 1 << 8;
const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;
/// The bit of RFLAGS that is always set.
const RFLAGS_RESERVED: u64 = 2;

const PAGE_PRESENT_WRITABLE: u64 = 0b11;
const PAGE_LARGE: u64 = 1 << 7;
const LARGE_PAGE: u64 = 2 << 20;

/// x87 control word and MXCSR after reset.
const FPU_CONTROL: u16 = 0x37f;
const MXCSR: u32 = 0x1f80;

/// Flat 64-bit code, selector 0x10, and flat data, selector 0x18, as the boot
/// protocol asks for (`__BOOT_CS`, `__BOOT_DS`).
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const DESCRIPTORS: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// Why a processor could not be prepared.
#[derive(Debug, Error)]
pub enum RegistersError {
    /// KVM refused.
    #[error("KVM refuses the boot processor's registers: {0}")]
    Kvm(#[from] kvm_ioctls::Error),
    /// Guest memory cannot be written.
    #[error("cannot write the boot processor's tables: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// Prepares the boot processor to enter a kernel at `entry`.
///
/// # Errors
/// [`RegistersError`].
pub fn set_up(
    vcpu: &VcpuFd,
    memory: &GuestMemory,
    entry: GuestAddress,
) -> Result<(), RegistersError> {
    write_page_tables(memory)?;
    for (index, descriptor) in (0..).zip(DESCRIPTORS) {
        memory.write_obj(descriptor, GuestAddress(GDT + 8 * index))?;
    }
    vcpu.set_fpu(&kvm_fpu {
        fcw: FPU_CONTROL,
        mxcsr: MXCSR,
        ..Default::default()
    })?;
    vcpu.set_regs(&kvm_regs {
        rip: entry.0,
        rsi: BOOT_PARAMS,
        rflags: RFLAGS_RESERVED,
        ..Default::default()
    })?;
    set_system_registers(vcpu)?;
    Ok(())
}

fn set_system_registers(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut sregs = vcpu.get_sregs()?;
    let data = segment(DATA_SELECTOR, 0x3);
    sregs.cs = kvm_segment {
        l: 1,
        db: 0,
        ..segment(CODE_SELECTOR, 0xb)
    };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.gdt.base = GDT;
    sregs.gdt.limit = 8 * 4 - 1;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cr3 = PML4;
    sregs.cr4 |= CR4_PAE;
    sregs.cr0 |= CR0_PROTECTED | CR0_PAGING;
    sregs.efer |= EFER_LONG_MODE_ENABLED | EFER_LONG_MODE_ACTIVE;
    vcpu.set_sregs(&sregs)
}

/// A present, flat segment of 4 GiB that was accessed.
fn segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        selector,
        type_,
        limit: u32::MAX,
        present: 1,
        s: 1,
        g: 1,
        db: 1,
        ..Default::default()
    }
}

fn write_page_tables(memory: &GuestMemory) -> Result<(), vm_memory::GuestMemoryError> {
    memory.write_obj(PDPT | PAGE_PRESENT_WRITABLE, GuestAddress(PML4))?;
    memory.write_obj(PAGE_DIRECTORY | PAGE_PRESENT_WRITABLE, GuestAddress(PDPT))?;
    for index in 0..512 {
        let page = (index * LARGE_PAGE) | PAGE_LARGE | PAGE_PRESENT_WRITABLE;
        memory.write_obj(page, GuestAddress(PAGE_DIRECTORY + 8 * index))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_tables_map_the_first_gib_onto_itself() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write_page_tables(&memory).unwrap();
        let entry = |at| memory.read_obj::<u64>(GuestAddress(at)).unwrap();
        assert_eq!(entry(PML4), PDPT | 3);
        assert_eq!(entry(PDPT), PAGE_DIRECTORY | 3);
        assert_eq!(
            entry(PAGE_DIRECTORY + 8 * 511),
            ((1 << 30) - LARGE_PAGE) | 0x83
        );
    }
}
