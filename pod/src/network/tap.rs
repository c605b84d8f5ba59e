//! A tap beside an interface, or one that is the interface.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use futures::TryStreamExt;
use libc::{c_int, c_short, ifreq};
use rtnetlink::packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute};
use rtnetlink::{Handle, LinkUnspec};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, Updater, ioctl, opcode};

use super::NetworkError;
use super::netlink::{errno, failed};

const TUN: &str = "/dev/net/tun";

/// What the names of all taps of Nacre begin with; the index of the interface
/// that they belong to follows.
pub(super) const NAME_PREFIX: &str = "nacre";

/// `TUNSETIFF` of linux/if_tun.h.
const SET_INTERFACE: Opcode = opcode::write::<c_int>(b'T', 202);

/// `TUNSETVNETHDRSZ`.
const SET_HEADER_LEN: Opcode = opcode::write::<c_int>(b'T', 216);

/// `TUNSETQUEUE`.
const SET_QUEUE: Opcode = opcode::write::<c_int>(b'T', 217);

/// Flags of `TUNSETIFF`: a tap, of which frames have a virtio-net header.
const FLAGS: c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Bytes before each frame: `struct virtio_net_hdr_v1` (virtio 1.2, 5.1.6).
const HEADER_LEN: c_int = 12;

/// Packets, each of up to 64 KiB, that a tap keeps for a guest that does not read them: the
/// kernel's usual number for one queue, here for all of them. They are the host's memory.
const KEPT: u32 = 1000;

/// An open tap.
pub(super) struct Tap {
    pub(super) name: String,
    /// Its queues, of which only the first is attached: the tap puts no packet into one that
    /// the guest does not read yet.
    pub(super) queues: Vec<OwnedFd>,
}

/// Makes the tap for `interface` with so many queues, in the namespace of the calling
/// thread.
pub(super) fn create(index: u32, interface: &str, queues: u8) -> Result<Tap, NetworkError> {
    let name = format!("{NAME_PREFIX}{index}");
    let several = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
    let first = open()?;
    set_interface(&first, &name, FLAGS | several | libc::IFF_TUN_EXCL).map_err(|error| {
        match error {
            // The name is taken by the tap of a pod that runs.
            Errno::BUSY => NetworkError::InUse(interface.into()),
            error => NetworkError::kernel(format!("create a tap for {interface}"))(error),
        }
    })?;
    set_header_len(&first, &name)?;
    let queues = with_further(first, &name, queues)?;
    Ok(Tap { name, queues })
}

/// Opens a tap that somebody has made for the pod, with as many of its queues: one if it was
/// made for one only.
pub(super) fn take_over(name: &str, queues: u8) -> Result<Tap, NetworkError> {
    let first = open()?;
    let mut available = 1;
    let opened = match set_interface(&first, name, FLAGS) {
        // It was made for several queues.
        Err(Errno::INVAL) => {
            available = queues;
            set_interface(&first, name, FLAGS | libc::IFF_MULTI_QUEUE)
        }
        result => result,
    };
    opened.map_err(|error| match error {
        Errno::BUSY => NetworkError::InUse(name.into()),
        error => NetworkError::kernel(format!("open the tap {name}"))(error),
    })?;
    set_header_len(&first, name)?;
    Ok(Tap {
        name: name.into(),
        queues: with_further(first, name, available)?,
    })
}

/// The first queue of the tap `name`, and as many more, detached, as make `count`.
fn with_further(first: OwnedFd, name: &str, count: u8) -> Result<Vec<OwnedFd>, NetworkError> {
    let mut queues = vec![first];
    for _ in 1..count {
        let queue = open()?;
        set_interface(&queue, name, FLAGS | libc::IFF_MULTI_QUEUE)
            .and_then(|()| detach(&queue))
            .map_err(NetworkError::kernel(format!(
                "add a queue to the tap {name}"
            )))?;
        queues.push(queue);
    }
    Ok(queues)
}

fn open() -> Result<OwnedFd, NetworkError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open(TUN)
        .map(Into::into)
        .map_err(NetworkError::Tun)
}

fn set_header_len(fd: &OwnedFd, name: &str) -> Result<(), NetworkError> {
    // SAFETY: TUNSETVNETHDRSZ reads an int.
    unsafe { ioctl(fd, Setter::<{ SET_HEADER_LEN }, _>::new(HEADER_LEN)) }
        .map_err(NetworkError::kernel(format!("set up the tap {name}")))
}

fn set_interface(fd: &OwnedFd, name: &str, flags: c_int) -> Result<(), Errno> {
    let mut request = request(flags);
    // The last byte stays the terminating zero.
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1]
        .iter_mut()
        .zip(name.bytes())
    {
        *to = from.cast_signed();
    }
    // SAFETY: TUNSETIFF reads and writes a `struct ifreq`.
    unsafe {
        ioctl(
            fd.as_fd(),
            Updater::<{ SET_INTERFACE }, _>::new(&mut request),
        )
    }
}

fn detach(queue: &OwnedFd) -> Result<(), Errno> {
    let request = request(libc::IFF_DETACH_QUEUE);
    // SAFETY: TUNSETQUEUE reads a `struct ifreq`.
    unsafe { ioctl(queue, Setter::<{ SET_QUEUE }, _>::new(request)) }
}

/// A request with these flags and no name.
fn request(flags: c_int) -> ifreq {
    // SAFETY: all of ifreq is integers and arrays of them, in every field of its union.
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    let [low, high, ..] = flags.to_le_bytes();
    request.ifr_ifru.ifru_flags = c_short::from_le_bytes([low, high]);
    request
}

/// Sets the tap up like its interface, except that it is not yet up, and says
/// its index.
pub(super) async fn configure(netlink: &Handle, tap: &Tap, mtu: u16) -> Result<u32, NetworkError> {
    let step = || format!("set up the tap {}", tap.name);
    let links: Vec<_> = netlink
        .link()
        .get()
        .match_name(&tap.name)
        .execute()
        .try_collect()
        .await
        .map_err(failed(step()))?;
    let index = links
        .first()
        .map(|link| link.header.index)
        .ok_or(Errno::NODEV)
        .map_err(NetworkError::kernel(step()))?;

    set_mtu(netlink, index, mtu).await?;
    let queues = u32::try_from(tap.queues.len()).map_or(KEPT, |count| count.max(1));
    let short = LinkAttribute::TxQueueLen(KEPT / queues);
    change_by(netlink, index, short)
        .await
        .map_err(failed(step()))?;

    // The namespace's own stack is not to speak on the tap: its router
    // solicitations would reach the guest.
    let silent =
        LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
            In6AddrGenMode::None,
        )])]);
    match change_by(netlink, index, silent).await {
        // Without IPv6, and with an MTU too small for it, the tap is silent anyway.
        Err(error) if errno(&error) == Some(Errno::AFNOSUPPORT) => {}
        result => result.map_err(failed(step()))?,
    }
    Ok(index)
}

async fn change_by(
    netlink: &Handle,
    index: u32,
    attribute: LinkAttribute,
) -> Result<(), rtnetlink::Error> {
    let link = LinkUnspec::new_with_index(index).append_extra_attribute(attribute);
    netlink.link().change(link.build()).execute().await
}

/// Sets the tap's largest packet.
pub(super) async fn set_mtu(netlink: &Handle, index: u32, mtu: u16) -> Result<(), NetworkError> {
    netlink
        .link()
        .change(LinkUnspec::new_with_index(index).mtu(mtu.into()).build())
        .execute()
        .await
        .map_err(failed("set the MTU of a tap"))
}

/// Lets packets through.
pub(super) async fn bring_up(netlink: &Handle, index: u32, name: &str) -> Result<(), NetworkError> {
    netlink
        .link()
        .change(LinkUnspec::new_with_index(index).up().build())
        .execute()
        .await
        .map_err(failed(format!("bring up the tap {name}")))
}

/// Removes a tap even if somebody still holds its descriptor.
pub(super) async fn delete(netlink: &Handle, index: u32) -> Result<(), NetworkError> {
    match netlink.link().del(index).execute().await {
        Err(error) if errno(&error) == Some(Errno::NODEV) => Ok(()),
        result => result.map_err(failed("remove a tap")),
    }
}
