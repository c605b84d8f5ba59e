//! Connections to the localhost of a pod's network namespace, on the host's side.
//!
//! Nothing of the pod listens there: its programs do in the guest, on a localhost of their own.
//! Who wants to reach them all the same, as `kubectl port-forward` does by way of containerd,
//! connects to 127.0.0.1 or ::1 inside of the namespace, and is heard by [`Localhost`].

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::sockopt::set_ipv6_v6only;
use rustix::net::{
    AddressFamily, Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6, SocketFlags, SocketType, bind,
    listen, socket_with,
};

use super::{Network, NetworkError, steer};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// Hears all TCP connections that are made within a network namespace to addresses of its own,
/// on any port, for as long as it lives.
#[derive(Debug)]
pub struct Localhost {
    /// The local address of what it accepts is the one that was called.
    pub(crate) listener: TcpListener,
    pub(crate) steering: OwnedFd,
}

impl Network {
    /// Begins to listen on the namespace's localhost.
    ///
    /// # Errors
    /// [`NetworkError::Kernel`] where the kernel cannot steer connections (before Linux 5.9).
    pub fn localhost(&self) -> Result<Localhost, NetworkError> {
        let listener = self.namespace.enter(async |_| {
            listen_anywhere().map_err(NetworkError::kernel("listen on a pod's localhost"))
        })?;
        let steering = steer::loopback_to(listener.as_fd(), self.namespace.as_fd()).map_err(
            NetworkError::kernel("steer connections to a pod's localhost"),
        )?;
        Ok(Localhost { listener, steering })
    }
}

/// A listener for both families where there are both, of which the kernel picks the port.
fn listen_anywhere() -> io::Result<TcpListener> {
    let socket = match open(AddressFamily::INET6) {
        Ok(socket) => {
            set_ipv6_v6only(&socket, false)?;
            bind(&socket, &SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 0, 0, 0))?;
            socket
        }
        Err(_no_ipv6) => {
            let socket = open(AddressFamily::INET)?;
            bind(&socket, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0))?;
            socket
        }
    };
    listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

fn open(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(family, SocketType::STREAM, flags, None)?)
}
