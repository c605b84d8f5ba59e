//! x86-64: a kernel is entered in 64-bit mode as the Linux boot protocol has it
//! (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol"), without firmware.

pub mod boot_params;
pub mod cpuid;
pub mod lapic;
pub mod layout;
pub mod memory_map;
pub mod mptable;
pub mod msrs;
pub mod ports;
pub mod registers;
