//! Local APIC: its two interrupt pins as a PC's firmware leaves them, virtual
//! wire mode (MultiProcessor Specification 1.4, section 3.6.2.2).

use kvm_ioctls::VcpuFd;

const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const DELIVERY_MODE: u32 = 0b111 << 8;
const DELIVER_NMI: u32 = 0b100 << 8;
const DELIVER_EXTINT: u32 = 0b111 << 8;

/// Connects LINT0 to the interrupt controller and LINT1 to NMI.
///
/// # Errors
/// What KVM answers.
pub fn set_up(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut state = vcpu.get_lapic()?;
    for (register, mode) in [(LVT_LINT0, DELIVER_EXTINT), (LVT_LINT1, DELIVER_NMI)] {
        let bytes = &mut state.regs[register..register + 4];
        let mut value = [0; 4];
        for (to, from) in value.iter_mut().zip(&*bytes) {
            *to = from.cast_unsigned();
        }
        let set = (u32::from_le_bytes(value) & !DELIVERY_MODE | mode).to_le_bytes();
        for (to, from) in bytes.iter_mut().zip(set) {
            *to = from.cast_signed();
        }
    }
    vcpu.set_lapic(&state)
}
