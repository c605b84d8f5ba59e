//! The life of a monitor: closes the jail, assembles the machine, runs it, and
//! serves the control socket until one of them ends.

use std::fs::File;
use std::io::{self, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier};
use std::thread;

use kvm_ioctls::{VcpuFd, VmFd};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::time::{ClockId, clock_gettime};
use thiserror::Error;

use crate::bus::DeviceBus;
use crate::client::QueuePairFds;
use crate::config::{BLOCK_SLOTS, DiskConfig, MonitorConfig};
use crate::control::{Event, ExitReason, ExitReport, MonitorSocket, Request, Stats};
use crate::counters::ExitCounters;
use crate::handed::{self, Handed, MissingFd};
use crate::jail::seccomp::{self, ThreadKind};
use crate::jail::{self, JailError, SHARE_IN_JAIL};
use crate::machine::{BootFiles, Devices, Machine, MachineError};
use crate::memory;
use crate::vcpu::{self, Shared};
use crate::virtio::GuestMemory;
use crate::virtio::balloon::Balloon;
use crate::virtio::blk::{Blk, Slot};
use crate::virtio::device::VirtioDevice;
use crate::virtio::fs::{Fs, FsError};
use crate::virtio::net::{Net, NetConfig, NetError};
use crate::virtio::rng::Rng;
use crate::virtio::vsock::{Connector, Vsock};

/// Why a monitor could not start its machine. The text is the message.
#[derive(Debug, Error)]
pub enum StartError {
    /// It was not started by a front door, or by one of another version.
    #[error(transparent)]
    Fds(#[from] MissingFd),
    /// The configuration cannot be read.
    #[error("the configuration is none: {0}")]
    Config(#[from] serde_json::Error),
    /// The jail stays open.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// No share.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// No network.
    #[error(transparent)]
    Net(#[from] NetError),
    /// No machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A thread or an eventfd could not be had.
    #[error("cannot start {what}: {source}")]
    Host {
        /// What was to start.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

/// Runs a machine from start to end. Everything there is to say goes to the
/// control socket.
///
/// # Errors
/// [`StartError::Fds`] when there is no control socket to say it on.
pub fn run() -> Result<(), StartError> {
    let up_ns = now_ns();
    let Handed {
        config,
        control,
        kvm,
        boot,
    } = Handed::take()?;
    let control = Arc::new(control);
    let report = match Running::start(config, &control, kvm, boot, up_ns) {
        Ok(running) => running.serve(&control),
        Err(error) => ExitReport {
            reason: ExitReason::Failed(error.to_string()),
            console: String::new(),
        },
    };
    if let Err(error) = control.send(&Event::Exited(report), None) {
        log::error!("cannot report the end: {error}");
    }
    Ok(())
}

/// A machine whose vCPUs run.
struct Running {
    /// Kept open for the interrupts' sake.
    _vm: VmFd,
    shared: Arc<Shared>,
    connector: Connector,
    slots: Slots,
    memory: Arc<GuestMemory>,
    ends: Receiver<ExitReason>,
    ended: OwnedFd,
}

impl Running {
    fn start(
        config: File,
        control: &Arc<MonitorSocket>,
        kvm: OwnedFd,
        boot: BootFiles,
        up_ns: u64,
    ) -> Result<Self, StartError> {
        let config: MonitorConfig = serde_json::from_reader(BufReader::new(config))?;
        let network = handed::network(&config)?;
        jail::enter(&config.jail, &config.share)?;

        let exits = Arc::new(ExitCounters::default());
        let (devices, connector) = devices(&config, network, control, &exits)?;
        let (slots, empty) = Slots::spawn(devices.len())?;
        let devices = Devices {
            ordinary: devices,
            slots: empty,
        };
        let machine = Machine::assemble(&config, kvm, boot, devices, exits)?;
        let ended = eventfd(0, EventfdFlags::CLOEXEC).map_err(|source| StartError::Host {
            what: "an eventfd",
            source: source.into(),
        })?;
        let (send_end, ends) = channel();
        control
            .send(
                &Event::KernelEntered {
                    at_ns: now_ns(),
                    up_ns,
                },
                None,
            )
            .map_err(|source| StartError::Host {
                what: "the report to the front door",
                source,
            })?;
        // The guest runs when every thread is under its filter, this one included.
        let filtered = Arc::new(Barrier::new(machine.vcpus.len() + 1));
        for vcpu in machine.vcpus {
            start_vcpu(vcpu, &machine.shared, send_end.clone(), &ended, &filtered)?;
        }
        seccomp::enter(ThreadKind::Main);
        filtered.wait();
        let (shared, memory) = (machine.shared, machine.memory);
        Ok(Self {
            _vm: machine.vm,
            shared,
            connector,
            slots,
            memory,
            ends,
            ended,
        })
    }

    /// Answers the front door until the machine ends.
    fn serve(&self, control: &MonitorSocket) -> ExitReport {
        let reason = loop {
            let mut polled = [
                PollFd::new(&self.ended, PollFlags::IN),
                PollFd::new(control, PollFlags::IN),
            ];
            match poll(&mut polled, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => break ExitReason::Failed(format!("cannot wait for events: {error}")),
            }
            if let Ok(reason) = self.ends.try_recv() {
                break reason;
            }
            if !polled[1].revents().is_empty()
                && let Some(reason) = self.answer(control)
            {
                break reason;
            }
        };
        ExitReport {
            reason,
            console: self.console_tail(),
        }
    }

    /// Serves one request; some end the machine.
    fn answer(&self, control: &MonitorSocket) -> Option<ExitReason> {
        let (request, descriptor) = match control.receive() {
            Ok(Some(message)) => message,
            // The front door is gone.
            Ok(None) => return Some(ExitReason::FrontDoorGone),
            Err(error) => return Some(ExitReason::Failed(format!("control socket: {error}"))),
        };
        let reply = match request {
            Request::Connect { port } => {
                self.connect(port, descriptor);
                return None;
            }
            Request::Stats { question } => {
                let stats = Stats {
                    exits: self.shared.exits.read(),
                    memory_touched: memory::touched(&self.memory).unwrap_or(0),
                };
                Event::Stats { question, stats }
            }
            Request::Console { question } => Event::Console {
                question,
                text: self.console_tail(),
            },
            Request::AttachDisk {
                question,
                slot,
                disk,
            } => Event::Slot {
                question,
                answer: self.slots.attach(slot, &disk, descriptor),
            },
            Request::DetachDisk { question, slot } => Event::Slot {
                question,
                answer: self.slots.detach(slot, &self.shared.bus),
            },
        };
        if let Err(error) = control.send(&reply, None) {
            log::warn!("cannot answer the front door: {error}");
        }
        None
    }

    /// A socket that is not passed on is closed, which tells its other end.
    fn connect(&self, port: u32, socket: Option<OwnedFd>) {
        let result = match socket {
            Some(socket) => self
                .connector
                .connect(port, socket)
                .map_err(|error| error.to_string()),
            None => Err("no socket came with the request".to_owned()),
        };
        if let Err(error) = result {
            log::warn!("cannot connect to port {port} of the guest: {error}");
        }
    }

    fn console_tail(&self) -> String {
        self.shared
            .console
            .lock()
            .map(|console| console.tail())
            .unwrap_or_default()
    }
}

/// Where block devices are attached while the machine runs.
struct Slots {
    /// Number of the first one's device on the bus; the others follow.
    first: usize,
    slots: Vec<Slot>,
}

impl Slots {
    /// Empty slots whose devices come behind so many others, and these devices.
    fn spawn(first: usize) -> Result<(Self, Vec<Box<dyn VirtioDevice>>), StartError> {
        let slots: Vec<_> = (0..BLOCK_SLOTS).map(|_| Slot::default()).collect();
        let device = |slot: &Slot| Ok(Box::new(Blk::spawn(slot.clone())?) as Box<dyn VirtioDevice>);
        let devices: io::Result<Vec<_>> = slots.iter().map(device).collect();
        let devices = devices.map_err(|source| StartError::Host {
            what: "the threads of block devices",
            source,
        })?;
        Ok((Self { first, slots }, devices))
    }

    /// Puts a disk into a slot; returns the number of its device.
    fn attach(&self, slot: u32, disk: &DiskConfig, fd: Option<OwnedFd>) -> Result<u32, String> {
        let (index, slot) = self.find(slot)?;
        let fd = fd.ok_or("no device came with the request")?;
        slot.insert(fd, disk).map_err(|error| error.to_string())?;
        Ok(index)
    }

    /// Takes the disk out of a slot, whether the guest has let go of it or not.
    fn detach(&self, slot: u32, bus: &DeviceBus) -> Result<u32, String> {
        let (index, slot) = self.find(slot)?;
        // In this order: a driver that comes in between finds no disk.
        slot.remove();
        bus.reset(index as usize);
        Ok(index)
    }

    fn find(&self, number: u32) -> Result<(u32, &Slot), String> {
        let number = number as usize;
        let slot = self.slots.get(number).ok_or("there is no such slot")?;
        let index = u32::try_from(self.first + number).map_err(|error| error.to_string())?;
        Ok((index, slot))
    }
}

/// The machine's devices in the guest's order, those that boot needs first.
fn devices(
    config: &MonitorConfig,
    network: Vec<Vec<QueuePairFds>>,
    control: &Arc<MonitorSocket>,
    exits: &Arc<ExitCounters>,
) -> Result<(Vec<Box<dyn VirtioDevice>>, Connector), StartError> {
    let (vsock, connector) = Vsock::spawn(
        config.guest_cid,
        &config.host_ports,
        announce(control, exits),
    )
    .map_err(|source| StartError::Host {
        what: "vsock",
        source,
    })?;
    let fs = Fs::spawn(&config.share_tag, Path::new(SHARE_IN_JAIL))?;
    let mut devices: Vec<Box<dyn VirtioDevice>> =
        vec![Box::new(vsock), Box::new(fs), Box::<Rng>::default()];
    for (device, pairs) in config.network.iter().zip(network) {
        let config = NetConfig {
            mac: device.mac,
            pairs,
        };
        devices.push(Box::new(Net::spawn(config)?));
    }
    devices.push(Box::<Balloon>::default());
    Ok((devices, connector))
}

/// Passes connections of the guest on to the front door, one for each port: a guest has no use
/// for more, and could else have the front door, which is root, take them without end.
fn announce(
    control: &Arc<MonitorSocket>,
    exits: &Arc<ExitCounters>,
) -> impl FnMut(u32, OwnedFd) -> io::Result<()> + Send + 'static {
    let (control, exits) = (Arc::clone(control), Arc::clone(exits));
    let mut announced = Vec::new();
    move |port, socket| {
        if announced.contains(&port) {
            let error = "the guest has been connected to it before";
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, error));
        }
        let event = Event::Accepted {
            port,
            at_ns: now_ns(),
            exits: exits.read().total(),
        };
        control.send(&event, Some(socket.as_fd()))?;
        announced.push(port);
        Ok(())
    }
}

fn start_vcpu(
    mut vcpu: VcpuFd,
    shared: &Arc<Shared>,
    ends: Sender<ExitReason>,
    ended: &OwnedFd,
    filtered: &Arc<Barrier>,
) -> Result<(), StartError> {
    let failed = |source| StartError::Host {
        what: "a vCPU",
        source,
    };
    let (shared, filtered) = (Arc::clone(shared), Arc::clone(filtered));
    let ended = ended.try_clone().map_err(failed)?;
    let body = move || {
        seccomp::enter(ThreadKind::Vcpu);
        filtered.wait();
        let reason = vcpu::run(&mut vcpu, &shared);
        // Whoever is first decides; nobody listens after that.
        let _ = ends.send(reason);
        let _ = rustix::io::write(&ended, &1_u64.to_ne_bytes());
    };
    thread::Builder::new()
        .name(ThreadKind::Vcpu.name().to_owned())
        .spawn(body)
        .map_err(failed)?;
    Ok(())
}

/// `CLOCK_MONOTONIC` in nanoseconds, the same for all processes of the host.
fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_filled_once_and_emptied_as_often_as_one_likes() {
        let (slots, devices) = Slots::spawn(3).unwrap();
        assert_eq!(devices.len(), BLOCK_SLOTS as usize);
        let bus = DeviceBus::default();
        let config = DiskConfig {
            bytes: 512,
            block_size: 512,
            read_only: false,
            serial: "7:0".to_owned(),
        };
        let disk = || Some(OwnedFd::from(File::open("/dev/null").unwrap()));
        slots.attach(1, &config, None).unwrap_err();
        assert_eq!(slots.attach(1, &config, disk()), Ok(4));
        slots.attach(1, &config, disk()).unwrap_err();
        assert_eq!(slots.attach(0, &config, disk()), Ok(3));
        for _ in 0..2 {
            assert_eq!(slots.detach(1, &bus), Ok(4));
        }
        assert_eq!(slots.attach(1, &config, disk()), Ok(4));
        slots.attach(BLOCK_SLOTS, &config, disk()).unwrap_err();
        slots.detach(u32::MAX, &bus).unwrap_err();
    }

    #[test]
    fn each_port_is_announced_once() {
        let (front_door, monitor) = crate::control::pair().unwrap();
        let mut announce = announce(&Arc::new(monitor), &Arc::default());
        let socket = || std::fs::File::open("/dev/null").unwrap().into();
        announce(1024, socket()).unwrap();
        announce(1025, socket()).unwrap();
        announce(1024, socket()).unwrap_err();
        for expected in [1024, 1025] {
            let (event, descriptor) = front_door.receive().unwrap().unwrap();
            assert!(matches!(event, Event::Accepted { port, .. } if port == expected));
            assert!(descriptor.is_some());
        }
        front_door.receive().unwrap_err();
    }
}
