//! Runs one vCPU: what its guest does to ports and device registers, until the
//! machine ends.

use std::io;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::arch::current::ports::{self, PortEffect};
use crate::bus::DeviceBus;
use crate::console::Console;
use crate::control::ExitReason;
use crate::counters::{ExitCounters, ExitKind};

/// What all vCPUs share.
pub struct Shared {
    /// Device registers.
    pub bus: DeviceBus,
    /// The kernel's console.
    pub console: Arc<Mutex<Console>>,
    /// Counts of exits.
    pub exits: Arc<ExitCounters>,
}

/// Runs the vCPU until the machine ends, and says why.
pub fn run(vcpu: &mut VcpuFd, shared: &Shared) -> ExitReason {
    loop {
        let exit = match vcpu.run() {
            Ok(exit) => exit,
            Err(error) if is_interruption(&error) => continue,
            Err(error) => return ExitReason::Failed(format!("KVM cannot run a vCPU: {error}")),
        };
        if let ControlFlow::Break(reason) = handle(exit, shared) {
            return reason;
        }
    }
}

fn is_interruption(error: &kvm_ioctls::Error) -> bool {
    let kind = io::Error::from_raw_os_error(error.errno()).kind();
    matches!(kind, io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}

fn handle(exit: VcpuExit<'_>, shared: &Shared) -> ControlFlow<ExitReason> {
    shared.exits.count(kind(&exit));
    match exit {
        VcpuExit::IoOut(port, data) => {
            if ports::write(&shared.console, port, data) == PortEffect::Reset {
                return ControlFlow::Break(ExitReason::GuestReset);
            }
        }
        VcpuExit::IoIn(port, data) => ports::read(port, data),
        VcpuExit::MmioRead(address, data) => shared.bus.read(address, data),
        VcpuExit::MmioWrite(address, data) => shared.bus.write(address, data),
        VcpuExit::Shutdown => return ControlFlow::Break(ExitReason::TripleFault),
        VcpuExit::FailEntry(reason, cpu) => {
            let text =
                format!("the processor refused to enter the guest: reason {reason:#x}, CPU {cpu}");
            return ControlFlow::Break(ExitReason::Failed(text));
        }
        VcpuExit::InternalError => {
            let text = "KVM met something in the guest that it cannot emulate (internal error)";
            return ControlFlow::Break(ExitReason::Failed(text.to_owned()));
        }
        VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen => {}
        other => {
            let text = format!("KVM stopped a vCPU for an unknown reason: {other:?}");
            return ControlFlow::Break(ExitReason::Failed(text));
        }
    }
    ControlFlow::Continue(())
}

fn kind(exit: &VcpuExit<'_>) -> ExitKind {
    match exit {
        VcpuExit::IoIn(..) | VcpuExit::IoOut(..) => ExitKind::Pio,
        VcpuExit::MmioRead(..) | VcpuExit::MmioWrite(..) => ExitKind::Mmio,
        _ => ExitKind::Other,
    }
}
