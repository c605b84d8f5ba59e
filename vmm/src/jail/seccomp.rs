//! One seccomp filter for each kind of thread: what is not listed kills the
//! process, and the front door then says so (SIGSYS).
//!
//! A thread that runs guest code or parses guest bytes can ask the host's
//! kernel for little more than what its work consists of: no thread can open a
//! path outside of its root, connect a socket, start a program, or map memory
//! that can be executed.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Width, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, apply_filter,
};
use thiserror::Error;

/// The kinds of threads of the monitor, each with its own filter.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ThreadKind {
    /// Start-up, then the control socket.
    Main,
    /// Runs a vCPU and the registers of its devices.
    Vcpu,
    /// Moves vsock packets.
    Vsock,
    /// Serves the share.
    Fs,
    /// Moves network packets.
    Net,
    /// Answers a network device's control queue.
    NetControl,
    /// Reads and writes a block device.
    Blk,
}

impl ThreadKind {
    /// All kinds.
    pub const ALL: [Self; 7] = [
        Self::Main,
        Self::Vcpu,
        Self::Vsock,
        Self::Fs,
        Self::Net,
        Self::NetControl,
        Self::Blk,
    ];

    /// Name of such a thread in `/proc/PID/task/TID/comm`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Main => "nacre-vmm",
            Self::Vcpu => "vcpu",
            Self::Vsock => "vsock",
            Self::Fs => "fs",
            Self::Net => "net",
            Self::NetControl => "net-control",
            Self::Blk => "blk",
        }
    }

    fn system_calls(self) -> &'static [c_long] {
        match self {
            Self::Main => MAIN,
            Self::Vcpu => &[],
            Self::Vsock => VSOCK,
            Self::Fs => FS,
            Self::Net => NET,
            Self::NetControl => NET_CONTROL,
            Self::Blk => BLK,
        }
    }

    fn ioctls(self) -> Vec<u64> {
        match self {
            Self::Vcpu => vec![KVM_RUN],
            Self::Vsock => vec![FIONBIO],
            Self::Net => net_ioctls(),
            Self::NetControl => vec![libc::TUNSETQUEUE],
            Self::Main | Self::Fs | Self::Blk => Vec::new(),
        }
    }
}

/// What any thread does: memory, locks, eventfds, log lines, its own end.
const ALL_THREADS: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getrandom,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_yield,
    libc::SYS_sigaltstack,
    libc::SYS_write,
];

const MAIN: &[c_long] = &[
    libc::SYS_fstat,
    libc::SYS_mincore,
    libc::SYS_newfstatat,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
];

/// Streams between the guest and Unix sockets that are already connected.
const VSOCK: &[c_long] = &[
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_getsockopt,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_writev,
];

/// A file server: everything by descriptor, below the root of the jail.
const FS: &[c_long] = &[
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_fallocate,
    libc::SYS_fchmodat,
    libc::SYS_fchownat,
    libc::SYS_fdatasync,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getxattr,
    libc::SYS_linkat,
    libc::SYS_listxattr,
    libc::SYS_lseek,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_openat,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_readlinkat,
    libc::SYS_removexattr,
    libc::SYS_renameat2,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    libc::SYS_setxattr,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
];

/// Frames between the guest and a tap that is already there.
const NET: &[c_long] = &[
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_readv,
    libc::SYS_writev,
];

/// Waits for the control queue; what it does is an ioctl.
const NET_CONTROL: &[c_long] = &[
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
];

/// Sectors between the guest and a device that is already open.
const BLK: &[c_long] = &[
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_fdatasync,
    libc::SYS_preadv,
    libc::SYS_pwritev,
];

const KVM_RUN: u64 = 0xae80;
const FIONBIO: u64 = 0x5421;
/// The tap's offloads; vhost-net's features, memory, rings and backend.
fn net_ioctls() -> Vec<u64> {
    use vhost::vhost_kern::vhost_binding::{
        VHOST_NET_SET_BACKEND, VHOST_SET_FEATURES, VHOST_SET_MEM_TABLE, VHOST_SET_VRING_ADDR,
        VHOST_SET_VRING_BASE, VHOST_SET_VRING_CALL, VHOST_SET_VRING_ERR, VHOST_SET_VRING_KICK,
        VHOST_SET_VRING_NUM,
    };
    vec![
        libc::TUNSETOFFLOAD,
        VHOST_SET_FEATURES(),
        VHOST_SET_MEM_TABLE(),
        VHOST_SET_VRING_NUM(),
        VHOST_SET_VRING_ADDR(),
        VHOST_SET_VRING_BASE(),
        VHOST_SET_VRING_KICK(),
        VHOST_SET_VRING_CALL(),
        VHOST_SET_VRING_ERR(),
        VHOST_NET_SET_BACKEND(),
    ]
}

/// Why there is no filter.
#[derive(Debug, Error)]
pub enum SeccompError {
    /// The rules cannot be turned into a program.
    #[error("cannot build the seccomp filter: {0}")]
    Build(#[from] seccompiler::BackendError),
    /// The kernel does not take the program.
    #[error("cannot enter the seccomp filter: {0}")]
    Apply(#[from] seccompiler::Error),
}

/// Puts the calling thread under the filter of its kind, for good.
///
/// # Panics
/// When that fails: a thread without its filter must not go on.
pub fn enter(kind: ThreadKind) {
    // Tests run devices on threads that also belong to the test harness.
    if cfg!(test) {
        return;
    }
    let entered = program(kind).and_then(|program| Ok(apply_filter(&program)?));
    #[allow(clippy::panic)]
    if let Err(error) = entered {
        panic!("{}: {error}", kind.name());
    }
}

fn program(kind: ThreadKind) -> Result<BpfProgram, SeccompError> {
    let mut rules = BTreeMap::new();
    for call in ALL_THREADS.iter().chain(kind.system_calls()) {
        rules.insert(*call, Vec::new());
    }
    // Memory, but none that can be executed.
    let no_exec = || argument(2, Width::Dword, Op::MaskedEq(libc::PROT_EXEC as u64), 0);
    rules.insert(libc::SYS_mmap, vec![SeccompRule::new(vec![no_exec()?])?]);
    rules.insert(
        libc::SYS_mprotect,
        vec![SeccompRule::new(vec![no_exec()?])?],
    );
    // Descriptors are duplicated and their flags set; nothing else is done with fcntl.
    let commands = [
        libc::F_DUPFD_CLOEXEC,
        libc::F_GETFD,
        libc::F_SETFD,
        libc::F_GETFL,
        libc::F_SETFL,
    ];
    rules.insert(
        libc::SYS_fcntl,
        any_of(1, commands.map(i64::from).map(i64::cast_unsigned))?,
    );
    let ioctls = kind.ioctls();
    if !ioctls.is_empty() {
        rules.insert(libc::SYS_ioctl, any_of(1, ioctls)?);
    }
    if kind == ThreadKind::Vsock {
        let unix = libc::AF_UNIX as u64;
        rules.insert(libc::SYS_socketpair, any_of(0, [unix])?);
    }
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        TargetArch::x86_64,
    )?;
    Ok(filter.try_into()?)
}

/// Rules for a call whose argument must be one of these values.
fn any_of(
    index: u8,
    values: impl IntoIterator<Item = u64>,
) -> Result<Vec<SeccompRule>, SeccompError> {
    values
        .into_iter()
        .map(|value| {
            Ok(SeccompRule::new(vec![argument(
                index,
                Width::Dword,
                Op::Eq,
                value,
            )?])?)
        })
        .collect()
}

fn argument(
    index: u8,
    width: Width,
    operator: Op,
    value: u64,
) -> Result<SeccompCondition, SeccompError> {
    Ok(SeccompCondition::new(index, width, operator, value)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_filter_that_the_kernel_can_take() {
        for kind in ThreadKind::ALL {
            assert!(program(kind).unwrap().len() > 20, "{kind:?}");
        }
    }

    /// Runs `body` in a child under the filter, and says whether it was killed for a call.
    fn is_killed(kind: ThreadKind, body: fn()) -> bool {
        let program = program(kind).unwrap();
        // SAFETY: the child makes system calls only and leaves by `_exit`.
        match unsafe { libc::fork() } {
            0 => {
                let entered = apply_filter(&program).is_ok();
                body();
                // SAFETY: ends the child.
                unsafe { libc::_exit(i32::from(!entered)) }
            }
            child => {
                let mut status = 0;
                // SAFETY: waits for the child just made.
                let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
                assert_eq!(waited, child);
                assert!(libc::WIFSIGNALED(status) || libc::WEXITSTATUS(status) == 0);
                libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSYS
            }
        }
    }

    fn map(protection: i32) {
        // SAFETY: a fresh anonymous mapping touches no other.
        unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                4096,
                protection,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
    }

    #[test]
    fn no_thread_can_start_a_program_open_a_socket_or_make_executable_memory() {
        let forbidden: [fn(); 3] = [
            // SAFETY: exec of nothing, with empty arguments.
            || unsafe {
                libc::execve(
                    c"/bin/true".as_ptr(),
                    [std::ptr::null()].as_ptr(),
                    [std::ptr::null()].as_ptr(),
                );
            },
            // SAFETY: no pointers.
            || unsafe {
                libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
            },
            || map(libc::PROT_READ | libc::PROT_EXEC),
        ];
        for kind in ThreadKind::ALL {
            for body in forbidden {
                assert!(is_killed(kind, body), "{kind:?}");
            }
            assert!(
                !is_killed(kind, || map(libc::PROT_READ | libc::PROT_WRITE)),
                "{kind:?}"
            );
        }
    }

    #[test]
    fn only_the_control_queue_attaches_queues_of_a_tap_and_it_moves_no_frame() {
        // SAFETY: on a descriptor that is no tap the call fails.
        let attach = || unsafe {
            libc::ioctl(-1, libc::TUNSETQUEUE, std::ptr::null::<libc::ifreq>());
        };
        for kind in ThreadKind::ALL {
            let may = kind == ThreadKind::NetControl;
            assert_eq!(is_killed(kind, attach), !may, "{kind:?}");
        }
        // SAFETY: no part is read into.
        let read = || unsafe {
            libc::readv(-1, std::ptr::null(), 0);
        };
        assert!(is_killed(ThreadKind::NetControl, read));
        assert!(!is_killed(ThreadKind::Net, read));
    }

    #[test]
    fn only_a_vcpu_thread_can_run_a_vcpu() {
        // SAFETY: on a descriptor that is no vCPU the call fails.
        let run = || unsafe {
            libc::ioctl(-1, KVM_RUN);
        };
        for kind in ThreadKind::ALL {
            assert_eq!(is_killed(kind, run), kind != ThreadKind::Vcpu, "{kind:?}");
        }
    }
}
