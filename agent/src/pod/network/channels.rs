//! How many pairs of queues of a device the kernel uses.
//!
//! A driver decides that when it finds its device, while one CPU runs; when the others do,
//! somebody has to say that there may be a pair for each.

use std::io;

use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// `SIOCETHTOOL` of linux/sockios.h.
const ETHTOOL: Opcode = 0x8946;

/// Commands of linux/ethtool.h.
const GET_CHANNELS: u32 = 0x3c;
const SET_CHANNELS: u32 = 0x3d;

/// `struct ethtool_channels`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Channels {
    command: u32,
    max_rx: u32,
    max_tx: u32,
    max_other: u32,
    max_combined: u32,
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

/// Has the device `name` use a pair of queues for each of `cpus`, as far as it has them.
pub(super) fn use_for(name: &str, cpus: u32) -> io::Result<()> {
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let mut channels = Channels {
        command: GET_CHANNELS,
        ..Channels::default()
    };
    match ask(&socket, name, &mut channels) {
        // Not all devices have queues to choose from.
        Err(Errno::OPNOTSUPP) => return Ok(()),
        result => result?,
    }
    let wanted = cpus.min(channels.max_combined);
    if wanted == 0 || wanted == channels.combined {
        return Ok(());
    }
    channels.command = SET_CHANNELS;
    channels.combined = wanted;
    Ok(ask(&socket, name, &mut channels)?)
}

fn ask(socket: impl AsFd, name: &str, channels: &mut Channels) -> Result<(), Errno> {
    // SAFETY: all of ifreq is integers and arrays of them, in every field of its union.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays the terminating zero.
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1]
        .iter_mut()
        .zip(name.bytes())
    {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = std::ptr::from_mut(channels).cast();
    // SAFETY: SIOCETHTOOL reads a `struct ifreq` whose data is what the command says, here
    // a `struct ethtool_channels`, which it reads and writes; both outlive the call.
    unsafe { ioctl(socket, Updater::<{ ETHTOOL }, _>::new(&mut request)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_without_queues_to_choose_from_stays_as_it_is() {
        use_for("lo", 4).unwrap();
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error() {
        let error = use_for("no-such-device0", 4).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }
}
