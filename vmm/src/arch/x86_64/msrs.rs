//! Model-specific registers that a kernel expects firmware to have set.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

const IA32_MISC_ENABLE: u32 = 0x1a0;
const MISC_FAST_STRINGS: u64 = 1;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLED: u64 = 1 << 11;
const MTRR_WRITE_BACK: u64 = 6;

/// Sets fast strings, and write-back as the type of all memory.
///
/// # Errors
/// What KVM answers.
pub fn set_up(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let entries = [
        entry(IA32_MISC_ENABLE, MISC_FAST_STRINGS),
        entry(IA32_MTRR_DEF_TYPE, MTRR_ENABLED | MTRR_WRITE_BACK),
    ];
    let msrs = Msrs::from_entries(&entries).map_err(|_| kvm_ioctls::Error::new(libc::ENOMEM))?;
    let set = vcpu.set_msrs(&msrs)?;
    if set == entries.len() {
        Ok(())
    } else {
        Err(kvm_ioctls::Error::new(libc::EINVAL))
    }
}
