//! What kind of processor this is: whether it has hardware virtualisation, and
//! whether it is one of a virtual machine already.

use std::arch::x86_64::__cpuid;
use std::fs;

/// First CPUID leaf of hypervisors, and the distance to where another interface
/// of the same hypervisor is (KVM behind Hyper-V's, say).
const HYPERVISOR_LEAF: u32 = 0x4000_0000;
const NEXT_INTERFACE: u32 = 0x100;

/// A processor.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Cpu {
    /// Its hardware virtualisation, if the kernel sees it.
    pub(super) extension: Option<Extension>,
    /// The hypervisor that it is made by, if it is virtual.
    pub(super) hypervisor: Option<String>,
    /// The processor is Intel's rather than AMD's.
    pub(super) is_intel: bool,
}

/// Hardware virtualisation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Extension {
    /// Intel's.
    Vmx,
    /// AMD's.
    Svm,
}

impl Extension {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Vmx => "Intel VT-x",
            Self::Svm => "AMD-V",
        }
    }
}

impl Cpu {
    /// The processor that this runs on.
    pub(super) fn of_this_machine() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self::parse(&cpuinfo, hypervisor)
    }

    /// Reads `/proc/cpuinfo`; asks for the hypervisor's name only if there is one.
    fn parse(cpuinfo: &str, hypervisor: impl FnOnce() -> String) -> Self {
        let value = |key: &str| {
            cpuinfo.lines().find_map(|line| {
                let (found, value) = line.split_once(':')?;
                (found.trim_end() == key).then(|| value.trim())
            })
        };
        let has = |flag| {
            value("flags").is_some_and(|flags| flags.split_whitespace().any(|has| has == flag))
        };
        let extension = if has("vmx") {
            Some(Extension::Vmx)
        } else if has("svm") {
            Some(Extension::Svm)
        } else {
            None
        };
        Self {
            extension,
            hypervisor: has("hypervisor").then(hypervisor),
            is_intel: value("vendor_id") == Some("GenuineIntel"),
        }
    }
}

/// The name of the hypervisor below, by its signature.
fn hypervisor() -> String {
    let signature = signature(HYPERVISOR_LEAF);
    let behind = (signature == *b"Microsoft Hv")
        .then(|| self::signature(HYPERVISOR_LEAF + NEXT_INTERFACE))
        .filter(|behind| behind.starts_with(b"KVM"));
    hypervisor_name(behind.unwrap_or(signature))
}

fn signature(leaf: u32) -> [u8; 12] {
    let answer = __cpuid(leaf);
    let mut signature = [0; 12];
    for (to, from) in signature
        .chunks_mut(4)
        .zip([answer.ebx, answer.ecx, answer.edx])
    {
        to.copy_from_slice(&from.to_le_bytes());
    }
    signature
}

fn hypervisor_name(signature: [u8; 12]) -> String {
    let name = match &signature {
        b"KVMKVMKVM\0\0\0" => "KVM",
        b"TCGTCGTCGTCG" => "QEMU's emulation",
        b"Microsoft Hv" => "Hyper-V",
        b"VMwareVMware" => "VMware",
        b"XenVMMXenVMM" => "Xen",
        b"VBoxVBoxVBox" => "VirtualBox",
        b"bhyve bhyve " => "bhyve",
        other => {
            let printable: String = other
                .iter()
                .filter(|byte| byte.is_ascii_graphic())
                .map(|byte| char::from(*byte))
                .collect();
            return if printable.is_empty() {
                "an unnamed hypervisor".into()
            } else {
                format!("the hypervisor {printable}")
            };
        }
    };
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(cpuinfo: &str) -> Cpu {
        Cpu::parse(cpuinfo, || "KVM".into())
    }

    const INTEL: &str = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R)\n\
                         flags\t\t: fpu vme de pse ht vmx smx lm\nvmx flags\t: vnmi preemption_timer\n\
                         bugs\t\t: spectre_v1\n\nprocessor\t: 1\n";

    #[test]
    fn hardware_virtualisation_of_either_vendor_is_seen() {
        let intel = parse(INTEL);
        assert_eq!(intel.extension, Some(Extension::Vmx));
        assert_eq!(intel.hypervisor, None);
        assert!(intel.is_intel);
        let amd = parse("vendor_id\t: AuthenticAMD\nflags\t\t: fpu hypervisor svm svm_lock lm\n");
        assert_eq!(amd.extension, Some(Extension::Svm));
        assert_eq!(amd.hypervisor.as_deref(), Some("KVM"));
        assert!(!amd.is_intel);
    }

    #[test]
    fn a_flag_counts_only_as_a_whole_word_of_the_flags() {
        let none = parse("model name\t: vmx\nflags\t\t: fpu vmxnet svme svm_lock hypervisors\n");
        assert_eq!(none, Cpu::default());
        // What Intel's extension could do if it were not switched off.
        let off = parse("vendor_id\t: GenuineIntel\nflags\t\t: fpu lm\nvmx flags\t: vmx\n");
        assert_eq!(off.extension, None);
    }

    #[test]
    fn a_text_that_says_nothing_gives_a_processor_without_anything() {
        assert_eq!(parse(""), Cpu::default());
        assert_eq!(parse("flags\nflags :\n:::\n"), Cpu::default());
    }

    #[test]
    fn a_hypervisor_without_a_known_signature_is_shown_as_it_signs() {
        assert_eq!(hypervisor_name(*b"TCGTCGTCGTCG"), "QEMU's emulation");
        assert_eq!(
            hypervisor_name(*b"\x1b[2JACME HV\0"),
            "the hypervisor [2JACMEHV"
        );
        assert_eq!(hypervisor_name([0; 12]), "an unnamed hypervisor");
    }
}
