//! The filter of system calls of a container, compiled once for all its execs.
//!
//! Compiling takes tens of milliseconds with the profiles of engines, where all
//! else of an exec takes a few. So the first exec puts the program beside the
//! profile, in the bundle, which only the agent sees.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use libseccomp::error::SeccompError;
use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};

use crate::container::report::Failure;

/// Names in a bundle: the profile, and the program.
const PROFILE: &str = "seccomp.json";
const PROGRAM: &str = "seccomp.bpf";

/// Bytes of an instruction, `struct sock_filter`.
const INSTRUCTION: usize = 8;

/// A program that is ready to be set.
pub(super) struct Filter {
    program: Vec<libc::sock_filter>,
    flags: libc::c_ulong,
}

/// Puts a profile into a bundle.
pub(super) fn save(profile: &LinuxSeccomp, bundle: &Path) -> io::Result<()> {
    fs::write(bundle.join(PROFILE), serde_json::to_vec(profile)?)
}

/// Flags of `seccomp(2)` that a profile asks for.
pub(super) fn flags(profile: &LinuxSeccomp) -> u64 {
    let flags = profile.flags().iter().flatten();
    flags
        .map(|flag| match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => libc::SECCOMP_FILTER_FLAG_TSYNC,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => {
                libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW
            }
            // For listeners, which a guest has none of.
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
        })
        .fold(0, |all, flag| all | flag)
}

impl Filter {
    /// The filter of a container, by its bundle.
    pub(super) fn of(bundle: &Path, flags: u64) -> Result<Self, Failure> {
        let program = match fs::read(bundle.join(PROGRAM)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => compile_once(bundle)?,
            program => program.map_err(Failure::internal)?,
        };
        Ok(Self {
            program: program.chunks_exact(INSTRUCTION).map(decode).collect(),
            flags,
        })
    }

    /// Sets the filter for this process, which needs a privilege or
    /// `no_new_privs` for it.
    pub(super) fn set(&self) -> io::Result<()> {
        let program = libc::sock_fprog {
            len: u16::try_from(self.program.len()).map_err(io::Error::other)?,
            filter: self.program.as_ptr().cast_mut(),
        };
        // SAFETY: the kernel copies the program, which lives as long as the call,
        // and writes nothing to it.
        let set = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                self.flags,
                &raw const program,
            )
        };
        if set < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

fn decode(bytes: &[u8]) -> libc::sock_filter {
    let mut word = [0; INSTRUCTION];
    word.copy_from_slice(bytes);
    let [code_low, code_high, jt, jf, k @ ..] = word;
    libc::sock_filter {
        code: u16::from_ne_bytes([code_low, code_high]),
        jt,
        jf,
        k: u32::from_ne_bytes(k),
    }
}

fn compile_once(bundle: &Path) -> Result<Vec<u8>, Failure> {
    let profile = fs::read(bundle.join(PROFILE)).map_err(Failure::internal)?;
    let profile = serde_json::from_slice(&profile).map_err(Failure::internal)?;
    // Several execs may do this at once: each puts the whole file in its place.
    let new = bundle.join(format!("{PROGRAM}.{}", std::process::id()));
    let file = File::create(&new).map_err(Failure::internal)?;
    compile(&profile)
        .and_then(|filter| filter.export_bpf(&file))
        .map_err(|error| Failure::invalid(format!("linux.seccomp: {error}")))?;
    let place = bundle.join(PROGRAM);
    fs::rename(&new, &place)
        .and_then(|()| fs::read(&place))
        .map_err(Failure::internal)
}

fn compile(profile: &LinuxSeccomp) -> Result<ScmpFilterContext, SeccompError> {
    let default = action(profile.default_action(), profile.default_errno_ret());
    let mut filter = ScmpFilterContext::new(default)?;
    for architecture in profile.architectures().iter().flatten() {
        filter.add_arch(arch(*architecture))?;
    }
    for rule in profile.syscalls().iter().flatten() {
        let action = action(rule.action(), rule.errno_ret());
        // Such a rule says nothing, and is refused.
        if action != default {
            add(&mut filter, action, rule)?;
        }
    }
    Ok(filter)
}

fn add(
    filter: &mut ScmpFilterContext,
    action: ScmpAction,
    rule: &LinuxSyscall,
) -> Result<(), SeccompError> {
    let arguments = rule.args().as_deref().unwrap_or_default();
    let compared: Vec<_> = arguments.iter().map(compare).collect();
    let different: HashSet<_> = arguments.iter().map(LinuxSeccompArg::index).collect();
    for name in rule.names() {
        // A name that is not known here belongs to another kernel.
        let Ok(call) = ScmpSyscall::from_name(name) else {
            continue;
        };
        if different.len() == compared.len() {
            filter.add_rule_conditional(action, call, &compared)?;
            continue;
        }
        // One argument compared twice means either, as in other runtimes.
        for one in &compared {
            filter.add_rule_conditional(action, call, std::slice::from_ref(one))?;
        }
    }
    Ok(())
}

fn compare(argument: &LinuxSeccompArg) -> ScmpArgCompare {
    let operator = match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => ScmpCompareOp::NotEqual,
        LinuxSeccompOperator::ScmpCmpLt => ScmpCompareOp::Less,
        LinuxSeccompOperator::ScmpCmpLe => ScmpCompareOp::LessOrEqual,
        LinuxSeccompOperator::ScmpCmpEq => ScmpCompareOp::Equal,
        LinuxSeccompOperator::ScmpCmpGe => ScmpCompareOp::GreaterEqual,
        LinuxSeccompOperator::ScmpCmpGt => ScmpCompareOp::Greater,
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            // The first value is the mask, the second what it leaves.
            let mask = ScmpCompareOp::MaskedEqual(argument.value());
            let left = argument.value_two().unwrap_or(0);
            return ScmpArgCompare::new(index(argument), mask, left);
        }
    };
    ScmpArgCompare::new(index(argument), operator, argument.value())
}

/// One that no system call has is refused by libseccomp.
fn index(argument: &LinuxSeccompArg) -> u32 {
    u32::try_from(argument.index()).unwrap_or(u32::MAX)
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> ScmpAction {
    let number = errno.and_then(|errno| i32::try_from(errno).ok());
    let number = number.unwrap_or(libc::EPERM);
    match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            ScmpAction::KillThread
        }
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(number),
        LinuxSeccompAction::ScmpActTrace => {
            ScmpAction::Trace(u16::try_from(number).unwrap_or(u16::MAX))
        }
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        // Refused when the container is created.
        LinuxSeccompAction::ScmpActNotify => ScmpAction::Notify,
    }
}

fn arch(arch: Arch) -> ScmpArch {
    match arch {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchPpc => ScmpArch::Ppc,
        Arch::ScmpArchPpc64 => ScmpArch::Ppc64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        Arch::ScmpArchParisc => ScmpArch::Parisc,
        Arch::ScmpArchParisc64 => ScmpArch::Parisc64,
        Arch::ScmpArchLoongarch64 => ScmpArch::Loongarch64,
        Arch::ScmpArchM68k => ScmpArch::M68k,
        Arch::ScmpArchSh => ScmpArch::Sh,
        Arch::ScmpArchSheb => ScmpArch::Sheb,
    }
}
