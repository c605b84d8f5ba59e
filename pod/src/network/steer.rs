//! Steers connections to a socket that listens elsewhere, by a program of the kernel
//! (`BPF_PROG_TYPE_SK_LOOKUP`, Documentation/bpf/prog_sk_lookup.rst of Linux).
//!
//! The program takes no packet from anybody: it is asked who listens when a connection arrives,
//! and nothing of it is seen in addresses, routes or rules of the namespace. It goes when its
//! link is closed, also by this process's death.

use std::ffi::{CStr, c_int};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Index of `lo` in every network namespace.
const LOOPBACK: i32 = 1;

/// Commands of bpf(2), `enum bpf_cmd` of linux/bpf.h.
const MAP_CREATE: c_int = 0;
const MAP_UPDATE: c_int = 2;
const PROGRAM_LOAD: c_int = 5;
const LINK_CREATE: c_int = 28;

/// `BPF_MAP_TYPE_SOCKMAP`, `BPF_PROG_TYPE_SK_LOOKUP` and `BPF_SK_LOOKUP`.
const SOCKET_MAP: u32 = 15;
const SOCKET_LOOKUP: u32 = 30;
const AT_SOCKET_LOOKUP: u32 = 36;

/// Lets the program use every function of the kernel's.
const LICENSE: &CStr = c"GPL";

/// Parts of `union bpf_attr`. What a shorter one leaves out is zero.
#[repr(C)]
struct MapCreate {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

#[repr(C)]
struct MapUpdate {
    map: u32,
    _unused: u32,
    key: *const u32,
    value: *const u32,
    flags: u64,
}

#[repr(C)]
struct ProgramLoad {
    kind: u32,
    instruction_count: u32,
    instructions: *const Instruction,
    license: *const libc::c_char,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// `struct bpf_insn`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// Gives `listener` all TCP connections to addresses of `lo` of the network namespace, whatever
/// their port, until the descriptor is closed.
///
/// # Errors
/// The kernel's; it has such programs from Linux 5.9 on, where `CONFIG_BPF_SYSCALL` is set.
pub(super) fn loopback_to(
    listener: BorrowedFd<'_>,
    namespace: BorrowedFd<'_>,
) -> io::Result<OwnedFd> {
    let map = bpf(
        MAP_CREATE,
        &MapCreate {
            kind: SOCKET_MAP,
            key_size: 4,
            value_size: 4,
            max_entries: 1,
        },
    )?;
    put(map.as_fd(), listener)?;
    let program = load(&steering(number(map.as_fd())))?;
    bpf(
        LINK_CREATE,
        &LinkCreate {
            program: number(program.as_fd()),
            target: number(namespace),
            attach_type: AT_SOCKET_LOOKUP,
            flags: 0,
        },
    )
}

/// Makes `socket` the map's only element.
fn put(map: BorrowedFd<'_>, socket: BorrowedFd<'_>) -> io::Result<()> {
    let (key, value) = (0, number(socket));
    let update = MapUpdate {
        map: number(map),
        _unused: 0,
        key: &raw const key,
        value: &raw const value,
        flags: 0,
    };
    call(MAP_UPDATE, &update).map(drop)
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    bpf(
        PROGRAM_LOAD,
        &ProgramLoad {
            kind: SOCKET_LOOKUP,
            instruction_count: u32::try_from(program.len()).map_err(io::Error::other)?,
            instructions: program.as_ptr(),
            license: LICENSE.as_ptr(),
            log_level: 0,
            log_size: 0,
            log: 0,
            kernel_version: 0,
            flags: 0,
            name: *b"nacre_localhost\0",
            interface: 0,
            attach_type: AT_SOCKET_LOOKUP,
        },
    )
}

/// The program. Its argument, `struct bpf_sk_lookup`, comes in register 1, its answer goes out in
/// register 0; registers 6 and 7 outlive calls, and 10 is the end of the stack.
fn steering(map: u32) -> [Instruction; 21] {
    const PROTOCOL: i16 = 12;
    const INTERFACE: i16 = 64;
    const TCP: i32 = libc::IPPROTO_TCP;
    const MAP_LOOKUP: i32 = 1;
    const RELEASE: i32 = 86;
    const ASSIGN: i32 = 124;
    const PASS: i32 = 1;
    let op = |code, to: u8, from: u8, offset, immediate| Instruction {
        code,
        registers: from << 4 | to,
        offset,
        immediate,
    };
    let set = |to, value| op(0xb7, to, 0, 0, value);
    let copy = |to, from| op(0xbf, to, from, 0, 0);
    let add = |to, value| op(0x07, to, 0, 0, value);
    let load = |to, from, offset| op(0x61, to, from, offset, 0);
    let store = |to, offset, value| op(0x62, to, 0, offset, value);
    let skip_if = |register, value, count| op(0x15, register, 0, count, value);
    let skip_unless = |register, value, count| op(0x55, register, 0, count, value);
    let call = |function| op(0x85, 0, 0, 0, function);
    // Source register 1 says that the number is a map's descriptor.
    let set_map = |to| [op(0x18, to, 1, 0, map.cast_signed()), op(0, 0, 0, 0, 0)];
    let [map_low, map_high] = set_map(1);
    [
        copy(6, 1),
        load(2, 6, INTERFACE),
        skip_unless(2, LOOPBACK, 16),
        load(2, 6, PROTOCOL),
        skip_unless(2, TCP, 14),
        store(10, -4, 0),
        copy(2, 10),
        add(2, -4),
        map_low,
        map_high,
        call(MAP_LOOKUP),
        skip_if(0, 0, 7),
        copy(7, 0),
        copy(1, 6),
        copy(2, 7),
        set(3, 0),
        call(ASSIGN),
        copy(1, 7),
        call(RELEASE),
        set(0, PASS),
        op(0x95, 0, 0, 0, 0),
    ]
}

/// A descriptor as bpf(2) wants it.
fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// A command that answers with a new descriptor.
fn bpf<T>(command: c_int, attributes: &T) -> io::Result<OwnedFd> {
    let fd = call(command, attributes)?;
    // SAFETY: the kernel has just opened it for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn call<T>(command: c_int, attributes: &T) -> io::Result<c_int> {
    // SAFETY: `T` is one of the `repr(C)` parts of `union bpf_attr` above; what it points to is
    // borrowed by the callers until this returns, and the kernel keeps none of it.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes, std::mem::size_of::<T>()) };
    match c_int::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
