//! The end of the guest.

use rustix::system::RebootCommand;

/// Writes out what is cached and resets the machine, which ends it: the monitor
/// takes a reset for the end. Comes back only where the kernel refuses.
pub fn reboot() {
    rustix::fs::sync();
    let error = rustix::system::reboot(RebootCommand::Restart).err();
    log::error!("cannot reboot: {error:?}");
}
