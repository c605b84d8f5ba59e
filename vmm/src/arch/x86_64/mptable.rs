//! The MP table: how the kernel finds its processors and interrupt lines
//! without ACPI (MultiProcessor Specification 1.4, chapter 4).

use vm_memory::{Bytes, GuestAddress};

use super::layout::{IO_APIC, LAST_IRQ, LOCAL_APIC, MPTABLE};
use crate::virtio::GuestMemory;

const APIC_VERSION: u8 = 0x14;
const CPU_ENABLED: u8 = 1;
const CPU_BOOT: u8 = 2;
const IO_APIC_ENABLED: u8 = 1;
const INT_TYPE_INT: u8 = 0;
const INT_TYPE_NMI: u8 = 1;
const INT_TYPE_EXTINT: u8 = 3;
const ALL_APICS: u8 = 0xff;
const ISA_BUS: u8 = 0;

/// Writes the table for `cpus` processors, numbered from 0.
///
/// # Errors
/// When guest memory cannot be written.
pub fn write(memory: &GuestMemory, cpus: u8) -> Result<(), vm_memory::GuestMemoryError> {
    // The pointer is where the kernel searches, the table itself right behind.
    let pointer = floating_pointer(MPTABLE + 16);
    memory.write_slice(&pointer, GuestAddress(MPTABLE))?;
    memory.write_slice(&table(cpus), GuestAddress(MPTABLE + 16))
}

/// MP floating pointer structure (section 4.1).
fn floating_pointer(table: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(b"_MP_");
    bytes[4..8].copy_from_slice(&table.to_le_bytes()[..4]);
    bytes[8] = 1; // length in units of 16 bytes
    bytes[9] = 4; // specification 1.4
    bytes[10] = checksum(&bytes);
    bytes
}

/// MP configuration table (sections 4.2 and 4.3).
fn table(cpus: u8) -> Vec<u8> {
    let entries = entries(cpus);
    let count = u16::try_from(entries.len()).unwrap_or(u16::MAX);
    let body = entries.concat();
    let length = u16::try_from(HEADER_LEN + body.len()).unwrap_or(u16::MAX);

    let mut bytes = Vec::with_capacity(HEADER_LEN + body.len());
    bytes.extend_from_slice(b"PCMP");
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&[4, 0]); // specification 1.4, checksum to come
    bytes.extend_from_slice(b"NACRE   ");
    bytes.extend_from_slice(b"POD         ");
    bytes.extend_from_slice(&[0; 6]); // no OEM table
    bytes.extend_from_slice(&count.to_le_bytes());
    bytes.extend_from_slice(&LOCAL_APIC.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]); // no extended table
    bytes.extend_from_slice(&body);
    bytes[7] = checksum(&bytes);
    bytes
}

const HEADER_LEN: usize = 44;

fn entries(cpus: u8) -> Vec<Vec<u8>> {
    let io_apic_id = cpus;
    let mut entries: Vec<Vec<u8>> = (0..cpus).map(processor).collect();
    entries.push([&[1, ISA_BUS][..], b"ISA   "].concat());
    let io_apic = [2, io_apic_id, APIC_VERSION, IO_APIC_ENABLED];
    entries.push([io_apic, IO_APIC.to_le_bytes()].concat());
    for irq in 0..=u8::try_from(LAST_IRQ).unwrap_or(u8::MAX) {
        entries.push(interrupt(3, INT_TYPE_INT, irq, io_apic_id, irq));
    }
    entries.push(interrupt(4, INT_TYPE_EXTINT, 0, 0, 0));
    entries.push(interrupt(4, INT_TYPE_NMI, 0, ALL_APICS, 1));
    entries
}

fn processor(id: u8) -> Vec<u8> {
    let flags = if id == 0 {
        CPU_ENABLED | CPU_BOOT
    } else {
        CPU_ENABLED
    };
    let mut entry = vec![0, id, APIC_VERSION, flags];
    entry.extend_from_slice(&0x600_u32.to_le_bytes()); // family 6
    entry.extend_from_slice(&0x201_u32.to_le_bytes()); // an APIC and an FPU on the chip
    entry.extend_from_slice(&[0; 8]);
    entry
}

/// An interrupt line to an I/O APIC (`kind` 3) or to local APICs (`kind` 4),
/// with the bus's own polarity and trigger mode.
fn interrupt(kind: u8, int_type: u8, irq: u8, apic: u8, pin: u8) -> Vec<u8> {
    vec![kind, int_type, 0, 0, ISA_BUS, irq, apic, pin]
}

fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0, |sum: u8, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use super::super::layout::MPTABLE_SIZE;
    use super::*;
    use crate::config::MAX_VCPUS;

    fn sum(bytes: &[u8]) -> u8 {
        bytes
            .iter()
            .fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn both_checksums_are_right_and_lengths_agree() {
        for cpus in [1, 2, 8] {
            let table = table(cpus);
            assert_eq!(sum(&table), 0);
            assert_eq!(
                usize::from(u16::from_le_bytes([table[4], table[5]])),
                table.len()
            );
        }
        assert_eq!(sum(&floating_pointer(MPTABLE + 16)), 0);
    }

    #[test]
    fn the_largest_table_fits_into_its_memory() {
        assert!(16 + table(MAX_VCPUS).len() as u64 <= MPTABLE_SIZE);
    }

    #[test]
    fn each_processor_has_an_entry_and_one_is_the_boot_processor() {
        let processors: Vec<_> = entries(3)
            .into_iter()
            .filter(|entry| entry[0] == 0)
            .collect();
        let facts: Vec<_> = processors
            .iter()
            .map(|entry| (entry.len(), entry[1], entry[3]))
            .collect();
        assert_eq!(facts, [(20, 0, 3), (20, 1, 1), (20, 2, 1)]);
    }
}
