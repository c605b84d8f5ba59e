//! KVM: the device, its capabilities, and what kind of virtualisation it stands on.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use kvm_bindings::KVM_API_VERSION;
use kvm_ioctls::{Cap, Kvm};

use super::Finding;
use super::cpu::{Cpu, Extension};

const DEVICE: &str = "/dev/kvm";
const VIRTUALISATION: &str = "virtualisation";

/// What the monitor cannot do without.
const NEEDED: [(Cap, &str); 6] = [
    (Cap::UserMemory, "user memory"),
    (Cap::SetTssAddr, "TSS address"),
    (Cap::Irqchip, "interrupt controllers"),
    (Cap::Irqfd, "irqfd"),
    (Cap::Ioeventfd, "ioeventfd"),
    (Cap::ExtCpuid, "CPUID"),
];

/// Also says whether a guest can be tried.
pub(super) fn check(cpu: &Cpu) -> (Vec<Finding>, bool) {
    let device = File::options().read(true).write(true).open(DEVICE);
    let exists = Path::new(DEVICE).exists();
    let virtualisation = virtualisation(cpu, exists, module().as_deref());
    let is_hardware = cpu.extension.is_some();
    match device {
        Ok(_) => {
            let capabilities = capabilities();
            let is_usable = is_hardware && super::can_run(std::slice::from_ref(&capabilities));
            (vec![capabilities, virtualisation], is_usable)
        }
        Err(error) => {
            let owner = fs::metadata(DEVICE).ok().map(|device| device.gid());
            let unusable = unusable(&error, cpu, owner);
            (vec![unusable, virtualisation], false)
        }
    }
}

fn capabilities() -> Finding {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => {
            let advice = "see the kernel's log (dmesg) for what KVM says";
            return Finding::fail("KVM", format!("cannot use {DEVICE}: {error}"), advice);
        }
    };
    let version = kvm.get_api_version();
    if version.cast_unsigned() != KVM_API_VERSION {
        return Finding::fail(
            "KVM",
            format!("{DEVICE} speaks version {version} of the API, not {KVM_API_VERSION}"),
            "use a kernel whose KVM is upstream's",
        );
    }
    let missing: Vec<_> = NEEDED
        .iter()
        .filter(|(capability, _)| !kvm.check_extension(*capability))
        .map(|(_, name)| *name)
        .collect();
    if !missing.is_empty() {
        return Finding::fail(
            "KVM",
            format!("{DEVICE} lacks {}", missing.join(", ")),
            "use a kernel whose KVM is built with them (CONFIG_KVM_INTEL or CONFIG_KVM_AMD)",
        );
    }
    if !kvm.check_extension(Cap::TscDeadlineTimer) {
        return Finding::warn(
            "KVM",
            format!("{DEVICE} has no TSC deadline timer"),
            "timers of the guest cost more; a newer kernel has it",
        );
    }
    Finding::ok("KVM", format!("{DEVICE} has all that is needed"))
}

/// Why the device cannot be opened.
fn unusable(error: &io::Error, cpu: &Cpu, owner: Option<u32>) -> Finding {
    match error.kind() {
        io::ErrorKind::NotFound => {
            let advice = match cpu.extension {
                Some(Extension::Vmx) => "modprobe kvm_intel",
                Some(Extension::Svm) => "modprobe kvm_amd",
                None => "this machine needs hardware virtualisation first: see the next line",
            };
            Finding::fail("KVM", format!("there is no {DEVICE}"), advice)
        }
        io::ErrorKind::PermissionDenied => {
            let owner = owner.map(|group| format!(", or as a member of group {group}"));
            let advice = format!("run this as root{}", owner.unwrap_or_default());
            Finding::fail("KVM", format!("{DEVICE} may not be opened"), advice)
        }
        _ => Finding::fail(
            "KVM",
            format!("{DEVICE} cannot be opened: {error}"),
            "see the kernel's log (dmesg); another hypervisor may use the processor",
        ),
    }
}

/// The loaded module of KVM that does the work.
fn module() -> Option<String> {
    let modules = fs::read_dir("/sys/module").ok()?;
    let mut names = modules
        .filter_map(|module| module.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("kvm_"));
    names.next()
}

fn virtualisation(cpu: &Cpu, has_device: bool, module: Option<&str>) -> Finding {
    match (cpu.extension, &cpu.hypervisor) {
        (Some(extension), None) => {
            Finding::ok(VIRTUALISATION, format!("hardware, {}", extension.name()))
        }
        (Some(extension), Some(hypervisor)) => Finding::ok(
            VIRTUALISATION,
            format!(
                "nested: {} inside a virtual machine of {hypervisor}",
                extension.name()
            ),
        ),
        (None, hypervisor) => {
            let place = match hypervisor {
                Some(hypervisor) => format!("this virtual machine of {hypervisor}"),
                None => "this processor".into(),
            };
            let detail = if has_device {
                let module = module.map(|name| format!(" ({name})")).unwrap_or_default();
                format!(
                    "a software KVM{module} that cannot run an ordinary kernel: {place} has \
                     neither VT-x nor AMD-V"
                )
            } else {
                format!("none: {place} has neither VT-x nor AMD-V")
            };
            Finding::fail(VIRTUALISATION, detail, switch_on(cpu))
        }
    }
}

fn switch_on(cpu: &Cpu) -> String {
    let name = if cpu.is_intel { "VT-x" } else { "SVM" };
    match &cpu.hypervisor {
        Some(_) => {
            "switch nested virtualisation on for it where it is run, or use another machine".into()
        }
        None => format!("switch {name} on in the firmware's settings"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn cpu(extension: Option<Extension>, hypervisor: Option<&str>) -> Cpu {
        Cpu {
            extension,
            hypervisor: hypervisor.map(Into::into),
            is_intel: true,
        }
    }

    #[test]
    fn the_kind_of_virtualisation_is_said() {
        let hardware = virtualisation(&cpu(Some(Extension::Vmx), None), true, None);
        assert_eq!(
            hardware.to_string(),
            "ok    virtualisation: hardware, Intel VT-x"
        );
        let nested = virtualisation(&cpu(Some(Extension::Svm), Some("KVM")), true, None);
        assert_eq!(
            nested.to_string(),
            "ok    virtualisation: nested: AMD-V inside a virtual machine of KVM"
        );
    }

    #[test]
    fn a_software_kvm_is_told_from_hardware_and_named() {
        let software = virtualisation(&cpu(None, Some("KVM")), true, Some("kvm_pvm"));
        assert_eq!(software.verdict, Verdict::Fail);
        assert!(software.detail.contains("software KVM (kvm_pvm)"));
        assert!(software.advice.contains("nested"), "{software}");
        let none = virtualisation(&cpu(None, None), false, None);
        assert_eq!(none.verdict, Verdict::Fail);
        assert!(none.detail.starts_with("none: "), "{none}");
        assert!(none.advice.contains("firmware"), "{none}");
    }

    #[test]
    fn a_missing_device_is_told_from_a_forbidden_one() {
        let missing = io::Error::from(io::ErrorKind::NotFound);
        let intel = cpu(Some(Extension::Vmx), None);
        let finding = unusable(&missing, &intel, None);
        assert_eq!(
            finding.to_string(),
            "FAIL  KVM: there is no /dev/kvm — modprobe kvm_intel"
        );
        let finding = unusable(&missing, &cpu(None, None), None);
        assert!(finding.advice.contains("hardware virtualisation"));

        let forbidden = io::Error::from(io::ErrorKind::PermissionDenied);
        let finding = unusable(&forbidden, &intel, Some(104));
        assert_eq!(
            finding.to_string(),
            "FAIL  KVM: /dev/kvm may not be opened — run this as root, or as a member of group 104"
        );
        let busy = io::Error::from(io::ErrorKind::ResourceBusy);
        assert!(unusable(&busy, &intel, None).advice.contains("dmesg"));
    }
}
