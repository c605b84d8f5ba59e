//! The device rules of a container: a BPF program on its cgroup.
//!
//! cgroup v2 has no files for this; the kernel asks a program at each `mknod`
//! and `open` of a device. Rules are looked through from the last to the first
//! and the first that matches decides, so later rules win as the specification
//! wants. What no rule matches is denied. Without this a container that may
//! `mknod` could open any block device of its pod.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
use thiserror::Error;

/// Rules of one container; the program stays far below the kernel's limit.
const MAX_RULES: usize = 256;

/// Why the rules cannot be applied.
#[derive(Debug, Error)]
pub(crate) enum DeviceRuleError {
    /// More rules than anybody needs.
    #[error("linux.resources.devices: more than {MAX_RULES} rules")]
    TooMany,
    /// A letter that is none of `rwm`.
    #[error("linux.resources.devices[{0}].access: must be made of the letters r, w and m")]
    Access(usize),
    /// A type that the kernel does not tell apart.
    #[error("linux.resources.devices[{0}].type: must be a, b or c")]
    Type(usize),
    /// A number that no device has.
    #[error("linux.resources.devices[{0}]: major and minor must be device numbers or -1")]
    Number(usize),
    /// The kernel refused.
    #[error("cannot apply the device rules: {0}")]
    Kernel(#[from] io::Error),
}

/// Kinds and accesses of `struct bpf_cgroup_dev_ctx`, linux/bpf.h.
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;
const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const EVERYTHING: i32 = MKNOD | READ | WRITE;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Rule {
    allow: bool,
    /// `None`: both kinds.
    kind: Option<i32>,
    access: i32,
    /// `None`: any number.
    major: Option<i32>,
    minor: Option<i32>,
}

const fn allowed(kind: i32, major: i32, minor: Option<i32>) -> Rule {
    Rule {
        allow: true,
        kind: Some(kind),
        access: EVERYTHING,
        major: Some(major),
        minor,
    }
}

/// What every container may use: the devices that the specification makes a
/// runtime supply, terminals, and making (not opening) device files.
const DEFAULT_RULES: [Rule; 11] = [
    Rule {
        allow: true,
        kind: Some(CHARACTER),
        access: MKNOD,
        major: None,
        minor: None,
    },
    Rule {
        allow: true,
        kind: Some(BLOCK),
        access: MKNOD,
        major: None,
        minor: None,
    },
    allowed(CHARACTER, 1, Some(3)), // null
    allowed(CHARACTER, 1, Some(5)), // zero
    allowed(CHARACTER, 1, Some(7)), // full
    allowed(CHARACTER, 1, Some(8)), // random
    allowed(CHARACTER, 1, Some(9)), // urandom
    allowed(CHARACTER, 5, Some(0)), // tty
    allowed(CHARACTER, 5, Some(1)), // console
    allowed(CHARACTER, 5, Some(2)), // ptmx
    allowed(CHARACTER, 136, None),  // pts
];

/// Applies the specification's rules and the default ones to a cgroup.
pub(crate) fn apply(cgroup: &Path, rules: &[LinuxDeviceCgroup]) -> Result<(), DeviceRuleError> {
    let rules = effective_rules(rules)?;
    let program = load(&compile(&rules))?;
    attach(&program, &File::open(cgroup)?)?;
    Ok(())
}

fn effective_rules(rules: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>, DeviceRuleError> {
    if rules.len() > MAX_RULES {
        return Err(DeviceRuleError::TooMany);
    }
    let mut effective = Vec::with_capacity(rules.len() + DEFAULT_RULES.len());
    for (index, rule) in rules.iter().enumerate() {
        effective.extend(parse(index, rule)?);
    }
    effective.extend(DEFAULT_RULES);
    Ok(effective)
}

/// A rule of the specification; `None` when it grants or denies nothing.
fn parse(index: usize, rule: &LinuxDeviceCgroup) -> Result<Option<Rule>, DeviceRuleError> {
    let kind = match rule.typ() {
        None | Some(LinuxDeviceType::A) => None,
        Some(LinuxDeviceType::B) => Some(BLOCK),
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(CHARACTER),
        Some(LinuxDeviceType::P) => return Err(DeviceRuleError::Type(index)),
    };
    let number = |number: Option<i64>| match number {
        None | Some(-1) => Ok(None),
        Some(number) => match i32::try_from(number) {
            Ok(number) if number >= 0 => Ok(Some(number)),
            _ => Err(DeviceRuleError::Number(index)),
        },
    };
    let access = match rule.access() {
        None => EVERYTHING,
        Some(letters) => letters.chars().try_fold(0, |access, letter| {
            Ok(access
                | match letter {
                    'm' => MKNOD,
                    'r' => READ,
                    'w' => WRITE,
                    _ => return Err(DeviceRuleError::Access(index)),
                })
        })?,
    };
    let rule = Rule {
        allow: rule.allow(),
        kind,
        access,
        major: number(rule.major())?,
        minor: number(rule.minor())?,
    };
    Ok((access != 0).then_some(rule))
}

/// `struct bpf_insn`, linux/bpf.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Instruction {
    code: u8,
    /// Destination in the low half, source in the high one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const LOAD_WORD: u8 = 0x61;
const AND_IMMEDIATE: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const MOVE: u8 = 0xbc;
const MOVE_IMMEDIATE: u8 = 0xb4;
const JUMP_UNLESS_EQUAL: u8 = 0x56;
const JUMP_IF_EQUAL: u8 = 0x16;
const EXIT: u8 = 0x95;

/// Registers while the program runs.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: from << 4 | to,
        offset,
        immediate,
    }
}

fn compile(rules: &[Rule]) -> Vec<Instruction> {
    // The first word of the context is the access above the kind.
    let mut program = vec![
        instruction(LOAD_WORD, KIND, CONTEXT, 0, 0),
        instruction(AND_IMMEDIATE, KIND, 0, 0, 0xffff),
        instruction(LOAD_WORD, ACCESS, CONTEXT, 0, 0),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let before = program.len();
        compile_rule(rule, &mut program);
        if program.len() - before == ANSWER {
            // It matches everything; the kernel refuses code that cannot run.
            return program;
        }
    }
    program.push(instruction(MOVE_IMMEDIATE, RESULT, 0, 0, 0));
    program.push(instruction(EXIT, 0, 0, 0, 0));
    program
}

/// Instructions that answer and end the program.
const ANSWER: usize = 2;

/// Ends the program with the rule's answer if it matches, else falls through.
fn compile_rule(rule: &Rule, program: &mut Vec<Instruction>) {
    let mut tests = Vec::new();
    for (register, value) in [(KIND, rule.kind), (MAJOR, rule.major), (MINOR, rule.minor)] {
        if let Some(value) = value {
            tests.push(instruction(JUMP_UNLESS_EQUAL, register, 0, 0, value));
        }
    }
    if rule.access != EVERYTHING {
        tests.push(instruction(MOVE, SCRATCH, ACCESS, 0, 0));
        if rule.allow {
            // Allows a request that asks for nothing else.
            tests.push(instruction(AND_IMMEDIATE, SCRATCH, 0, 0, !rule.access));
            tests.push(instruction(JUMP_UNLESS_EQUAL, SCRATCH, 0, 0, 0));
        } else {
            // Denies a request that asks for this among others.
            tests.push(instruction(AND_IMMEDIATE, SCRATCH, 0, 0, rule.access));
            tests.push(instruction(JUMP_IF_EQUAL, SCRATCH, 0, 0, 0));
        }
    }
    let answer: [_; ANSWER] = [
        instruction(MOVE_IMMEDIATE, RESULT, 0, 0, i32::from(rule.allow)),
        instruction(EXIT, 0, 0, 0, 0),
    ];
    let count = tests.len();
    for (index, test) in tests.iter_mut().enumerate() {
        let is_jump = test.code == JUMP_UNLESS_EQUAL || test.code == JUMP_IF_EQUAL;
        if is_jump {
            // Past the remaining tests and the answer; a rule is a few long.
            test.offset = i16::try_from(count - index - 1 + ANSWER).unwrap_or(i16::MAX);
        }
    }
    program.extend(tests);
    program.extend(answer);
}

/// `bpf(2)` commands and constants, linux/bpf.h.
const BPF_PROG_LOAD: i32 = 5;
const BPF_PROG_ATTACH: i32 = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;

/// The part of `union bpf_attr` that loads a program.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
}

/// The part of `union bpf_attr` that attaches a program.
#[repr(C)]
#[derive(Default)]
struct AttachAttributes {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let attributes = LoadAttributes {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(program.len()).unwrap_or(u32::MAX),
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..LoadAttributes::default()
    };
    let fd = bpf(BPF_PROG_LOAD, &attributes)?;
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn attach(program: &OwnedFd, cgroup: &File) -> io::Result<()> {
    let attributes = AttachAttributes {
        target: cgroup.as_raw_fd().unsigned_abs(),
        program: program.as_raw_fd().unsigned_abs(),
        attach_type: BPF_CGROUP_DEVICE,
        flags: 0,
    };
    bpf(BPF_PROG_ATTACH, &attributes)?;
    Ok(())
}

fn bpf<A>(command: i32, attributes: &A) -> io::Result<i32> {
    // SAFETY: `attributes` is the start of a `union bpf_attr` of the size given,
    // and the memory it points to lives as long as the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<A>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}

#[cfg(test)]
#[path = "devices_test.rs"]
mod tests;
