//! The data path in the host's kernel: vhost-net moves frames between the tap
//! and guest memory, kicked and interrupting without a word from the monitor.
//! Each pair of queues has an instance of it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use vhost::vhost_kern::VhostKernBackend;
use vhost::vhost_kern::vhost_binding::{VHOST_NET_SET_BACKEND, vhost_vring_file};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::QueueT;
use vm_memory::{Address, GuestMemory as _, GuestMemoryRegion};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::control::rest;
use super::tap::Tap;
use super::{NetError, RECEIVE_QUEUE, TRANSMIT_QUEUE, features};
use crate::virtio::GuestMemory;
use crate::virtio::activation::{End, PathError, run_with, wait};
use crate::virtio::device::ActiveDevice;
use crate::virtio::queue::VirtQueue;
use crate::virtio::worker::Mailbox;

/// An instance of vhost-net that this process owns.
pub(super) struct KernelNet {
    fd: OwnedFd,
    features: u64,
    /// The memory of the guest whose device is active, else none at all.
    memory: Arc<GuestMemory>,
    /// Signalled for a ring that vhost-net cannot make sense of.
    broken: EventFd,
}

impl KernelNet {
    /// Takes `/dev/vhost-net` over.
    ///
    /// # Errors
    /// What the kernel answers, or that this vhost-net is too old.
    pub(super) fn new(fd: OwnedFd) -> Result<Self, NetError> {
        let failed = |what| move |source| NetError::Vhost { what, source };
        let broken = EventFd::new(EFD_NONBLOCK)
            .map_err(vhost::Error::IOError)
            .map_err(failed("make an eventfd"))?;
        let mut net = Self {
            fd,
            features: 0,
            memory: Arc::new(GuestMemory::new()),
            broken,
        };
        net.set_owner().map_err(failed("take it over"))?;
        net.features = net.get_features().map_err(failed("ask for its features"))?;
        if net.features & features::NEEDED_OF_VHOST != features::NEEDED_OF_VHOST {
            return Err(failed("use one without virtio 1.x rings")(
                vhost::Error::InvalidOperation,
            ));
        }
        Ok(net)
    }

    /// Features that it takes part in.
    pub(super) fn features(&self) -> u64 {
        self.features
    }

    fn start(
        &self,
        active: &ActiveDevice,
        queues: &[VirtQueue; 2],
        tap: &Tap,
    ) -> vhost::Result<()> {
        self.set_features(features::told_to_vhost(active.features))?;
        self.set_mem_table(&regions(&active.memory))?;
        for (index, queue) in queues.iter().enumerate() {
            self.set_up_ring(index, queue, active)?;
        }
        for index in [RECEIVE_QUEUE, TRANSMIT_QUEUE] {
            self.set_backend(index, Some(tap.as_fd()))?;
        }
        Ok(())
    }

    fn set_up_ring(
        &self,
        index: usize,
        queue: &VirtQueue,
        active: &ActiveDevice,
    ) -> vhost::Result<()> {
        let rings = queue.rings();
        self.set_vring_num(index, rings.size())?;
        self.set_vring_addr(
            index,
            &VringConfigData {
                queue_max_size: rings.max_size(),
                queue_size: rings.size(),
                flags: 0,
                desc_table_addr: rings.desc_table(),
                used_ring_addr: rings.used_ring(),
                avail_ring_addr: rings.avail_ring(),
                log_addr: None,
            },
        )?;
        self.set_vring_base(index, rings.next_avail())?;
        self.set_vring_call(index, active.interrupt.irqfd())?;
        self.set_vring_err(index, &self.broken)?;
        self.set_vring_kick(index, queue.kick())
    }

    /// Ends the moving of frames; guest memory is not touched afterwards.
    fn stop(&self) -> vhost::Result<()> {
        self.set_backend(RECEIVE_QUEUE, None)?;
        self.set_backend(TRANSMIT_QUEUE, None)
    }

    fn set_backend(&self, index: usize, tap: Option<BorrowedFd<'_>>) -> vhost::Result<()> {
        let backend = vhost_vring_file {
            // One of two queues.
            index: u32::try_from(index).unwrap_or(u32::MAX),
            fd: tap.map_or(-1, |tap| tap.as_raw_fd()),
        };
        // SAFETY: the kernel reads one vhost_vring_file, which lives until the
        // call returns.
        let result = unsafe { ioctl_with_ref(self, VHOST_NET_SET_BACKEND(), &backend) };
        if result < 0 {
            Err(vhost::Error::IoctlError(std::io::Error::last_os_error()))
        } else {
            Ok(())
        }
    }
}

impl AsRawFd for KernelNet {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl VhostKernBackend for KernelNet {
    type AS = Arc<GuestMemory>;

    fn mem(&self) -> &Self::AS {
        &self.memory
    }
}

fn regions(memory: &GuestMemory) -> Vec<VhostUserMemoryRegionInfo> {
    memory
        .iter()
        .map(|region| VhostUserMemoryRegionInfo {
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            ..VhostUserMemoryRegionInfo::default()
        })
        .collect()
}

/// The thread: starts vhost-net when the device becomes active and stops it
/// when it is reset.
pub(super) fn run(mut net: KernelNet, tap: &Tap, mailbox: &Mailbox) {
    let mut pause = 0;
    run_with("net", mailbox, |active, mailbox| {
        // A guest can reset and start the device without end; its first start waits for nothing.
        rest(std::mem::replace(&mut pause, 1));
        tap.set_offloads(features::tap_offloads(active.features))
            .map_err(PathError::host("set the offloads of the tap"))?;
        net.memory = Arc::clone(&active.memory);
        let result = serve(&net, active, tap, mailbox);
        let stopped = net.stop();
        net.memory = Arc::new(GuestMemory::new());
        stopped.map_err(|error| vhost_failed("stop vhost-net", error))?;
        result
    });
}

fn vhost_failed(what: &'static str, error: vhost::Error) -> PathError {
    PathError::host(what)(std::io::Error::other(error))
}

const MAILBOX: u64 = 0;
const BROKEN: u64 = 1;

fn serve(
    net: &KernelNet,
    mut active: ActiveDevice,
    tap: &Tap,
    mailbox: &Mailbox,
) -> Result<End, PathError> {
    let queues = [
        active.take_queue(RECEIVE_QUEUE)?,
        active.take_queue(TRANSMIT_QUEUE)?,
    ];
    let epoll = Epoll::new().map_err(PathError::host("make an epoll"))?;
    for (fd, token) in [
        (mailbox.as_raw_fd(), MAILBOX),
        (net.broken.as_raw_fd(), BROKEN),
    ] {
        epoll
            .ctl(
                ControlOperation::Add,
                fd,
                EpollEvent::new(EventSet::IN, token),
            )
            .map_err(PathError::host("watch a descriptor"))?;
    }
    net.start(&active, &queues, tap)
        .map_err(|error| vhost_failed("start vhost-net", error))?;
    loop {
        wait(&epoll, &mut [EpollEvent::default(); 2])
            .map_err(PathError::host("wait for events"))?;
        if let Some(end) = End::ask(mailbox) {
            return Ok(end);
        }
        if net.broken.read().is_ok() {
            return Err(PathError::host("follow the driver's rings")(
                std::io::ErrorKind::InvalidData.into(),
            ));
        }
    }
}
