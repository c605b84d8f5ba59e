//! Runs a few instructions of a guest, the way a pod's kernel is entered: in
//! 64-bit mode, with paging.
//!
//! They write one byte to a port and halt. A KVM that only seems to work, or a
//! nested one that hangs, is found out here rather than in the middle of a boot.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap};

use super::Finding;

const WHAT: &str = "guest code";

/// Far more than an emulated machine takes.
const DEADLINE: Duration = Duration::from_secs(10);

/// `mov al, 0x4e; out 0x42, al; hlt`
const CODE: [u8; 5] = [0xb0, VALUE, 0xe6, PORT, 0xf4];
const VALUE: u8 = 0x4e;
const PORT: u8 = 0x42;

const MEMORY: usize = 2 << 20;
const CODE_AT: u64 = 0x1000;
const PML4_AT: u64 = 0x2000;
const PDPT_AT: u64 = 0x3000;
const DIRECTORY_AT: u64 = 0x4000;

// Intel SDM volume 3, 4.5: present and writable; a page of 2 MiB.
const TABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7 | TABLE;

// Intel SDM volume 3, 2.5 and 2.2.1.
const CR0_PE: u64 = 1;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

pub(super) fn check() -> Finding {
    let (sender, receiver) = mpsc::channel();
    let start = Instant::now();
    let thread = thread::Builder::new()
        .name("probe".into())
        // Nobody is left to tell when it comes too late.
        .spawn(move || drop(sender.send(run())));
    if let Err(error) = thread {
        return Finding::fail(WHAT, format!("cannot start a thread: {error}"), "try again");
    }
    // A vCPU that hangs keeps its thread until the process ends.
    let result = match receiver.recv_timeout(DEADLINE) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => Err(format!(
            "a vCPU did not stop within {} s",
            DEADLINE.as_secs()
        )),
        Err(RecvTimeoutError::Disconnected) => Err("the probe died".into()),
    };
    match result {
        Ok(()) => {
            let took = start.elapsed().as_secs_f64() * 1e3;
            Finding::ok(WHAT, format!("a vCPU ran it and halted, in {took:.1} ms"))
        }
        Err(why) => Finding::fail(
            WHAT,
            why,
            "this KVM does not work: see the kernel's log (dmesg), try a newer kernel",
        ),
    }
}

fn run() -> Result<(), String> {
    let failed = |step: &'static str| move |error| format!("cannot {step}: {error}");
    let kvm = Kvm::new().map_err(failed("open KVM"))?;
    let vm = kvm
        .create_vm()
        .map_err(failed("create a virtual machine"))?;
    // After the machine, so that it is unmapped before: the machine's descriptor
    // is closed by then.
    let memory = memory()?;
    give(&vm, &memory)?;
    let mut vcpu = vm.create_vcpu(0).map_err(failed("create a vCPU"))?;
    // Some KVMs hold what is set below against what the vCPU is said to be able to do.
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .and_then(|cpuid| vcpu.set_cpuid2(&cpuid))
        .map_err(failed("describe a vCPU"))?;
    enter_long_mode(&vcpu).map_err(failed("set up a vCPU"))?;
    expect(
        &mut vcpu,
        "write to a port",
        |exit| matches!(exit, VcpuExit::IoOut(port, [VALUE]) if *port == u16::from(PORT)),
    )?;
    expect(&mut vcpu, "halt", |exit| matches!(exit, VcpuExit::Hlt))
}

/// Guest memory with the code and page tables that map it where it is.
fn memory() -> Result<GuestMemoryMmap, String> {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)])
        .map_err(|error| format!("cannot map guest memory: {error}"))?;
    let tables = [
        (PML4_AT, PDPT_AT | TABLE),
        (PDPT_AT, DIRECTORY_AT | TABLE),
        (DIRECTORY_AT, LARGE_PAGE),
    ];
    for (at, entry) in tables {
        memory
            .write_obj(entry, GuestAddress(at))
            .map_err(|error| error.to_string())?;
    }
    memory
        .write_slice(&CODE, GuestAddress(CODE_AT))
        .map_err(|error| error.to_string())?;
    Ok(memory)
}

fn give(vm: &VmFd, memory: &GuestMemoryMmap) -> Result<(), String> {
    let host = memory
        .get_host_address(GuestAddress(0))
        .map_err(|error| error.to_string())?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY as u64,
        userspace_addr: host as u64,
    };
    // SAFETY: the region is all of `memory`, which stays mapped until the only
    // vCPU has run; nothing else is kept there.
    unsafe { vm.set_user_memory_region(region) }
        .map_err(|error| format!("cannot give memory to the guest: {error}"))
}

fn enter_long_mode(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut sregs = vcpu.get_sregs()?;
    // Intel SDM volume 3, 3.4.5: flat segments, 64-bit code.
    let segment = |selector, type_, l| kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(l == 0),
        s: 1,
        l,
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    };
    sregs.cs = segment(0x8, 0xb, 1);
    let data = segment(0x10, 0x3, 0);
    (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
    (sregs.fs, sregs.gs) = (data, data);
    sregs.cr3 = PML4_AT;
    sregs.cr4 |= CR4_PAE;
    sregs.cr0 |= CR0_PE | CR0_PG;
    sregs.efer |= EFER_LME | EFER_LMA;
    vcpu.set_sregs(&sregs)?;

    let mut regs = vcpu.get_regs()?;
    regs.rip = CODE_AT;
    // Bit 1 is always set.
    regs.rflags = 2;
    vcpu.set_regs(&regs)
}

fn expect(
    vcpu: &mut VcpuFd,
    what: &str,
    is_it: impl Fn(&VcpuExit<'_>) -> bool,
) -> Result<(), String> {
    match vcpu.run() {
        Ok(exit) if is_it(&exit) => Ok(()),
        Ok(exit) => Err(format!("a vCPU was to {what}, and did: {exit:?}")),
        Err(error) => Err(format!("a vCPU does not run: {error}")),
    }
}
