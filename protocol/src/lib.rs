//! The contract between a front door on the host and the agent in the guest.
//!
//! Control is ttrpc over vsock ([`agent`], [`agent_ttrpc`], generated from
//! `proto/agent.proto`); each stdio descriptor of a process is one raw vsock
//! connection that begins with a [`stream::StreamHeader`]. Port numbers and the
//! few paths both sides must agree on are here, too.

pub mod stream;

/// Messages of the agent's service, generated from `proto/agent.proto`.
#[allow(warnings, clippy::all, clippy::pedantic, clippy::restriction)]
pub mod agent {
    include!(concat!(env!("OUT_DIR"), "/agent.rs"));
}

/// ttrpc client and server of the agent's service, generated from `proto/agent.proto`.
#[allow(warnings, clippy::all, clippy::pedantic, clippy::restriction)]
pub mod agent_ttrpc {
    // The generated code names the messages as `super::agent`.
    include!(concat!(env!("OUT_DIR"), "/agent_ttrpc.rs"));
}

/// Context identifier of the guest on vsock, the lowest that is not reserved.
pub const GUEST_CID: u32 = 3;

/// vsock port of the guest on which the agent serves ttrpc.
pub const AGENT_PORT: u32 = 1024;

/// vsock port of the guest that accepts stdio streams (see [`stream`]).
pub const STREAM_PORT: u32 = 1025;

/// vsock port of the host that the agent connects to, once, when it serves.
///
/// The connection stays open as long as the agent lives; no byte is sent on it.
pub const READY_PORT: u32 = 1024;

/// Tag of the virtio-fs device that carries the share.
pub const SHARE_TAG: &str = "nacre";

/// Where the agent mounts the share in the guest.
pub const GUEST_SHARE: &str = "/run/nacre/share";

/// Guest path of the containers' `/etc/resolv.conf`, once a `SetUpPod` has carried its content.
///
/// Besides paths below [`GUEST_SHARE`], a container may have this file, [`GUEST_HOSTS`],
/// [`GUEST_HOSTNAME`] and [`GUEST_SHARED_MEMORY`] bind-mounted.
pub const GUEST_RESOLV_CONF: &str = "/run/nacre/resolv.conf";

/// Guest path of the containers' `/etc/hosts`, once a `SetUpPod` has carried its content.
pub const GUEST_HOSTS: &str = "/run/nacre/hosts";

/// Guest path of the containers' `/etc/hostname`, once a `SetUpPod` has named the guest.
pub const GUEST_HOSTNAME: &str = "/run/nacre/hostname";

/// Character devices that the guest has as the host does: major and minor.
pub const GUEST_DEVICES: &[(i64, i64)] = &[
    (1, 3),    // null
    (1, 5),    // zero
    (1, 7),    // full
    (1, 8),    // random
    (1, 9),    // urandom
    (1, 11),   // kmsg
    (5, 0),    // tty
    (5, 1),    // console
    (5, 2),    // ptmx
    (10, 200), // net/tun
    (10, 229), // fuse
];

/// Guest directory of POSIX shared memory, one for all containers of the pod.
pub const GUEST_SHARED_MEMORY: &str = "/dev/shm";
