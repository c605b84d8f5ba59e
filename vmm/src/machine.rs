//! Assembles a virtual machine: memory, devices, kernel, vCPUs.

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::{Arc, Mutex};

use kvm_bindings::KVM_API_VERSION;
use kvm_ioctls::{IoEventAddress, Kvm, VcpuFd, VmFd};
use rustix::rand::{GetRandomFlags, getrandom};
use thiserror::Error;

use crate::arch::current::boot_params::{self, BootInfo, BootParamsError, SEED_LEN};
use crate::arch::current::layout::{FIRST_IRQ, KVM_TSS, LAST_IRQ};
use crate::arch::current::registers::{self, RegistersError};
use crate::arch::current::{cpuid, lapic, memory_map, mptable, msrs};
use crate::bus::DeviceBus;
use crate::cmdline;
use crate::config::{MAX_MEMORY_MIB, MAX_VCPUS, MIN_MEMORY_MIB, MonitorConfig};
use crate::console::Console;
use crate::counters::ExitCounters;
use crate::kernel::{self, KernelError};
use crate::memory::{MemoryError, PodMemory};
use crate::vcpu::Shared;
use crate::virtio::GuestMemory;
use crate::virtio::device::VirtioDevice;
use crate::virtio::mmio::{MmioTransport, NOTIFY};

/// Why a machine could not be assembled. The text is the message.
#[derive(Debug, Error)]
pub enum MachineError {
    /// A number in the configuration is out of range.
    #[error("{what} must be {min} to {max}, not {value}")]
    OutOfRange {
        /// Which.
        what: &'static str,
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
        /// What was asked for.
        value: u64,
    },
    /// KVM refused a step.
    #[error("KVM: cannot {step}: {source}")]
    Kvm {
        /// What was tried.
        step: &'static str,
        /// Its answer.
        source: kvm_ioctls::Error,
    },
    /// The descriptor is not `/dev/kvm`, or a very old one.
    #[error("KVM has API version {0}, not {KVM_API_VERSION}")]
    ApiVersion(i32),
    /// There are more devices than interrupt lines.
    #[error("{0} devices are more than there are interrupt lines")]
    TooManyDevices(usize),
    /// The host refused something else.
    #[error("cannot {step}: {source}")]
    Host {
        /// What was tried.
        step: &'static str,
        /// Its answer.
        source: io::Error,
    },
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The kernel or its initramfs.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// What the kernel is told.
    #[error(transparent)]
    BootParams(#[from] BootParamsError),
    /// The boot processor.
    #[error(transparent)]
    Registers(#[from] RegistersError),
    /// The MP table.
    #[error("cannot write the MP table: {0}")]
    MpTable(vm_memory::GuestMemoryError),
}

fn kvm_error(step: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> MachineError {
    move |source| MachineError::Kvm { step, source }
}

/// What the kernel is booted from.
#[derive(Debug)]
pub struct BootFiles {
    /// An uncompressed ELF kernel.
    pub kernel: File,
    /// The initramfs.
    pub initramfs: File,
}

/// The devices of a machine.
pub struct Devices {
    /// In the guest's order, each with an interrupt line of its own.
    pub ordinary: Vec<Box<dyn VirtioDevice>>,
    /// Slots, behind them: where lines are few they share the last.
    pub slots: Vec<Box<dyn VirtioDevice>>,
}

/// A machine that is ready to run.
pub struct Machine {
    /// The vCPUs, the boot processor first.
    pub vcpus: Vec<VcpuFd>,
    /// What they share.
    pub shared: Arc<Shared>,
    /// Guest memory.
    pub memory: Arc<GuestMemory>,
    /// The virtual machine. KVM disconnects all interrupts when this is closed,
    /// even though the vCPUs go on.
    pub vm: VmFd,
}

impl Machine {
    /// Assembles the machine.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn assemble(
        config: &MonitorConfig,
        kvm: OwnedFd,
        mut boot: BootFiles,
        devices: Devices,
        exits: Arc<ExitCounters>,
    ) -> Result<Self, MachineError> {
        check(config)?;
        let ranges = memory_map::ranges(config.memory_mib << 20);
        let (kvm, vm) = create_vm(kvm)?;
        let memory = PodMemory::new(&ranges)?;
        memory.register(&vm)?;
        let memory = Arc::new(memory.into_mapped());

        let (bus, lines) = attach(&vm, &memory, devices)?;
        let loaded = kernel::load(&memory, &ranges, &mut boot.kernel, &mut boot.initramfs)?;
        let info = BootInfo {
            ranges: &ranges,
            cmdline: &cmdline::build(config.verbose_kernel, &lines),
            initramfs: loaded.initramfs,
            seed: seed()?,
        };
        boot_params::write(&memory, &info)?;
        mptable::write(&memory, config.vcpus).map_err(MachineError::MpTable)?;

        let vcpus = create_vcpus(&kvm, &vm, config.vcpus)?;
        if let Some(boot_processor) = vcpus.first() {
            registers::set_up(boot_processor, &memory, loaded.entry)?;
        }
        let console = Arc::new(Mutex::new(Console::new(config.verbose_kernel)));
        let shared = Arc::new(Shared {
            bus,
            console,
            exits,
        });
        Ok(Self {
            vcpus,
            shared,
            memory,
            vm,
        })
    }
}

fn check(config: &MonitorConfig) -> Result<(), MachineError> {
    let in_range = |what, value, min, max| {
        if (min..=max).contains(&value) {
            Ok(())
        } else {
            Err(MachineError::OutOfRange {
                what,
                min,
                max,
                value,
            })
        }
    };
    in_range(
        "the number of vCPUs",
        config.vcpus.into(),
        1,
        MAX_VCPUS.into(),
    )?;
    in_range(
        "guest memory in MiB",
        config.memory_mib,
        MIN_MEMORY_MIB,
        MAX_MEMORY_MIB,
    )
}

fn create_vm(kvm: OwnedFd) -> Result<(Kvm, VmFd), MachineError> {
    // SAFETY: the descriptor is owned here and handed over; that it is KVM's is
    // what the version shows.
    let kvm = unsafe { kvm_ioctls::Kvm::from_raw_fd(kvm.into_raw_fd()) };
    let version = kvm.get_api_version();
    if version.cast_unsigned() != KVM_API_VERSION {
        return Err(MachineError::ApiVersion(version));
    }
    let vm = kvm
        .create_vm()
        .map_err(kvm_error("create a virtual machine"))?;
    vm.set_tss_address(KVM_TSS)
        .map_err(kvm_error("place its own pages"))?;
    vm.create_irq_chip()
        .map_err(kvm_error("create interrupt controllers"))?;
    Ok((kvm, vm))
}

/// Puts the devices on the bus and connects their eventfds; also returns
/// address and interrupt of each.
fn attach(
    vm: &VmFd,
    memory: &Arc<GuestMemory>,
    devices: Devices,
) -> Result<(DeviceBus, Vec<(u64, u32)>), MachineError> {
    let own_lines = FIRST_IRQ..LAST_IRQ;
    let count = devices.ordinary.len();
    if count > own_lines.len() {
        return Err(MachineError::TooManyDevices(count));
    }
    let mut bus = DeviceBus::default();
    let mut lines = Vec::new();
    let devices = devices.ordinary.into_iter().chain(devices.slots);
    for (irq, device) in own_lines.chain(std::iter::repeat(LAST_IRQ)).zip(devices) {
        let transport = MmioTransport::new(device, Arc::clone(memory)).map_err(|source| {
            MachineError::Host {
                step: "create a device",
                source,
            }
        })?;
        vm.register_irqfd(transport.interrupt().irqfd(), irq)
            .map_err(kvm_error("connect an interrupt"))?;
        let notify = IoEventAddress::Mmio(bus.next_address() + NOTIFY);
        for (queue, kick) in (0_u32..).zip(transport.kicks()) {
            vm.register_ioevent(kick, &notify, queue)
                .map_err(kvm_error("connect a queue"))?;
        }
        lines.push((bus.add(transport), irq));
    }
    Ok((bus, lines))
}

fn create_vcpus(kvm: &Kvm, vm: &VmFd, count: u8) -> Result<Vec<VcpuFd>, MachineError> {
    let supported = cpuid::supported(kvm).map_err(kvm_error("tell what the processor supports"))?;
    let create = |id: u8| {
        let vcpu = vm
            .create_vcpu(id.into())
            .map_err(kvm_error("create a vCPU"))?;
        vcpu.set_cpuid2(&cpuid::for_vcpu(&supported, id, count))
            .map_err(kvm_error("set CPUID"))?;
        msrs::set_up(&vcpu).map_err(kvm_error("set model-specific registers"))?;
        lapic::set_up(&vcpu).map_err(kvm_error("set up a local APIC"))?;
        Ok(vcpu)
    };
    (0..count).map(create).collect()
}

fn seed() -> Result<[u8; SEED_LEN], MachineError> {
    let mut seed = [0; SEED_LEN];
    getrandom(&mut seed, GetRandomFlags::empty()).map_err(|source| MachineError::Host {
        step: "get a random seed",
        source: source.into(),
    })?;
    Ok(seed)
}
