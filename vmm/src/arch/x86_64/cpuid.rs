//! What a guest's processor says of itself: what KVM supports, less what a pod
//! has no use for, with the topology of this machine instead of the host's.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

const LEAF_FEATURES: u32 = 0x1;
const LEAF_CACHES: u32 = 0x4;
const LEAF_PMU: u32 = 0xa;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_EXTENDED_FEATURES: u32 = 0x8000_0001;
const LEAF_AMD_SIZES: u32 = 0x8000_0008;
const LEAF_AMD_CACHES: u32 = 0x8000_001d;
const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001e;

const ECX_VMX: u32 = 1 << 5;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HYPER_THREADING: u32 = 1 << 28;
const EXTENDED_ECX_SVM: u32 = 1 << 2;
const EXTENDED_ECX_TOPOLOGY: u32 = 1 << 22;
const TOPOLOGY_LEVEL_CORE: u32 = 2;
const TOPOLOGY_LEVEL_THREAD: u32 = 1;

/// What KVM can give any guest on this host.
///
/// # Errors
/// What KVM answers.
pub fn supported(kvm: &Kvm) -> Result<CpuId, kvm_ioctls::Error> {
    let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    // Emulated by KVM's local APIC on any processor, so it is not listed everywhere.
    if kvm.check_extension(Cap::TscDeadlineTimer) {
        for entry in cpuid.as_mut_slice() {
            if entry.function == LEAF_FEATURES {
                entry.ecx |= ECX_TSC_DEADLINE;
            }
        }
    }
    Ok(cpuid)
}

/// The processor number `id` of `count`, each a core of its own in one package.
#[must_use]
pub fn for_vcpu(supported: &CpuId, id: u8, count: u8) -> CpuId {
    let mut cpuid = supported.clone();
    for entry in cpuid.as_mut_slice() {
        adapt(entry, u32::from(id), u32::from(count));
    }
    cpuid
}

fn adapt(entry: &mut kvm_cpuid_entry2, id: u32, count: u32) {
    match entry.function {
        LEAF_FEATURES => {
            entry.ebx = entry.ebx & 0x0000_ffff | count << 16 | id << 24;
            entry.ecx = entry.ecx & !ECX_VMX | ECX_HYPERVISOR;
            if count > 1 {
                entry.edx |= EDX_HYPER_THREADING;
            }
        }
        // Caches and their identifiers belong to one core; the package has `count`.
        LEAF_CACHES if entry.eax & 0x1f != 0 => {
            entry.eax = entry.eax & 0x0000_3fff | (count - 1) << 26;
        }
        LEAF_PMU => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2 => topology(entry, id, count),
        LEAF_EXTENDED_FEATURES => entry.ecx &= !(EXTENDED_ECX_SVM | EXTENDED_ECX_TOPOLOGY),
        LEAF_AMD_SIZES => entry.ecx = id_bits(count) << 12 | (count - 1),
        LEAF_AMD_CACHES => entry.eax &= 0x0000_3fff,
        LEAF_AMD_TOPOLOGY => {
            (entry.eax, entry.ebx, entry.ecx) = (id, id, 0);
        }
        _ => {}
    }
}

/// Extended topology: one thread a core, `count` cores a package.
fn topology(entry: &mut kvm_cpuid_entry2, id: u32, count: u32) {
    let level = entry.index;
    (entry.eax, entry.ebx, entry.ecx) = match level {
        0 => (0, 1, TOPOLOGY_LEVEL_THREAD << 8),
        1 => (id_bits(count), count, level | TOPOLOGY_LEVEL_CORE << 8),
        _ => (0, 0, level),
    };
    entry.edx = id;
}

/// Bits that number `count` things.
fn id_bits(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapted(function: u32, index: u32, id: u8, count: u8) -> kvm_cpuid_entry2 {
        let entry = kvm_cpuid_entry2 {
            function,
            index,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: 0,
            ..Default::default()
        };
        let supported = CpuId::from_entries(&[entry]).unwrap();
        for_vcpu(&supported, id, count).as_slice()[0]
    }

    #[test]
    fn a_guest_knows_that_it_is_one_and_cannot_have_guests() {
        let features = adapted(LEAF_FEATURES, 0, 2, 4);
        assert_eq!(features.ebx >> 24, 2);
        assert_eq!(features.ebx >> 16 & 0xff, 4);
        assert_ne!(features.ecx & ECX_HYPERVISOR, 0);
        assert_eq!(features.ecx & ECX_VMX, 0);
        assert_eq!(
            adapted(LEAF_EXTENDED_FEATURES, 0, 0, 1).ecx & EXTENDED_ECX_SVM,
            0
        );
    }

    #[test]
    fn each_vcpu_is_a_core_of_one_package() {
        let threads = adapted(LEAF_TOPOLOGY, 0, 5, 6);
        assert_eq!(
            (threads.eax, threads.ebx, threads.ecx, threads.edx),
            (0, 1, 0x100, 5)
        );
        let cores = adapted(LEAF_TOPOLOGY, 1, 5, 6);
        assert_eq!(
            (cores.eax, cores.ebx, cores.ecx, cores.edx),
            (3, 6, 0x201, 5)
        );
        assert_eq!(adapted(LEAF_AMD_SIZES, 0, 0, 6).ecx, 3 << 12 | 5);
    }
}
