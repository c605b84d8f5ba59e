//! The guest kernel's command line.

use std::fmt::Write;

use crate::virtio::mmio;

/// What every pod's kernel is told, each with its reason.
const ALWAYS: [&str; 11] = [
    // Nothing is behind /dev/console; errors reach the early console.
    "console=ttynull",
    "earlyprintk=serial,0x3f8,115200,keep",
    // All that the agent logs is kept, however much at once.
    "printk.devkmsg=on",
    // Data of a processor takes the pages it needs rather than a large one.
    "percpu_alloc=page",
    // Unused memory goes back to the host by the huge pages that it is made of.
    "page_reporting.page_reporting_order=9",
    // A panic ends the machine at once, by the keyboard controller's reset.
    "panic=-1",
    "reboot=k",
    // The boot processor only: the agent brings the others online, when they are needed.
    "maxcpus=1",
    // kvm-clock and KVM's timers need no check against legacy ones.
    "no_timer_check",
    "tsc=reliable",
    "rdinit=/init",
];

/// Builds the command line of a machine with virtio devices at these addresses
/// and interrupts.
#[must_use]
pub fn build(verbose: bool, devices: &[(u64, u32)]) -> String {
    let mut line = ALWAYS.join(" ");
    line.push_str(if verbose { " loglevel=8" } else { " quiet" });
    for (address, irq) in devices {
        // Writing to a string does not fail.
        let _ = write!(
            line,
            " virtio_mmio.device={}K@{address:#x}:{irq}",
            mmio::SIZE >> 10
        );
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_is_announced() {
        let line = build(false, &[(0xd000_0000, 5), (0xd000_1000, 6)]);
        let devices =
            " quiet virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6";
        assert!(line.ends_with(devices), "{line}");
    }
}
