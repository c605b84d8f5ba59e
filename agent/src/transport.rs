//! Sockets that connect the guest with its host.
//!
//! In a guest they are vsock; everything above this file works on any stream
//! socket, so that it can be driven over Unix sockets as well.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockListener, VsockStream};

use crate::poll;

/// Accepts connections of the host.
pub enum Listener {
    /// vsock, as in a guest. Only the host is let in: a workload can open vsock
    /// sockets, too, and must not drive the agent.
    Vsock {
        /// The socket.
        listener: VsockListener,
        /// The same socket, as the runtime polls it.
        polled: AsyncFd<OwnedFd>,
    },
    /// A Unix socket.
    Unix(tokio::net::UnixListener),
}

impl Listener {
    /// Listens on a vsock port of the guest.
    ///
    /// # Errors
    /// When the kernel has no vsock or the port is taken.
    pub fn vsock(port: u32) -> io::Result<Self> {
        let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, port)?;
        let polled = poll::register(listener.as_fd().try_clone_to_owned()?)?;
        Ok(Self::Vsock { listener, polled })
    }

    /// Waits for the next connection.
    ///
    /// # Errors
    /// When the kernel refuses to accept, for instance without free descriptors.
    pub async fn accept(&self) -> io::Result<Socket> {
        match self {
            Self::Vsock { listener, polled } => loop {
                let mut ready = polled.readable().await?;
                let Ok(accepted) = ready.try_io(|_| listener.accept()) else {
                    continue;
                };
                let (stream, peer) = accepted?;
                if peer.cid() == VMADDR_CID_HOST {
                    return Socket::from_vsock(stream);
                }
                log::warn!("refused a connection from vsock context {}", peer.cid());
            },
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Socket::new(stream.into_std()?.into())
            }
        }
    }
}

/// A connected stream socket.
pub struct Socket {
    fd: AsyncFd<OwnedFd>,
}

impl Socket {
    /// Takes over a connected stream socket.
    ///
    /// # Errors
    /// When the descriptor cannot be polled.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            fd: poll::register(fd)?,
        })
    }

    /// Connects to a vsock port of the host.
    ///
    /// # Errors
    /// When nothing listens there.
    pub fn connect_host(port: u32) -> io::Result<Self> {
        Self::from_vsock(VsockStream::connect_with_cid_port(VMADDR_CID_HOST, port)?)
    }

    fn from_vsock(stream: VsockStream) -> io::Result<Self> {
        Self::new(stream.into())
    }

    /// Receives bytes; 0 is the end of what the peer sends.
    ///
    /// # Errors
    /// When the connection broke.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.fd.readable().await?;
            let received = ready.try_io(|fd| {
                Ok(rustix::net::recv(fd.get_ref(), &mut *buffer, RecvFlags::empty())?.0)
            });
            match received {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(received) => return received,
                Err(_would_block) => {}
            }
        }
    }

    /// Sends some of `bytes` and says how many.
    ///
    /// # Errors
    /// When the peer takes no more bytes.
    pub async fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.fd.writable().await?;
            let sent =
                ready.try_io(|fd| Ok(rustix::net::send(fd.get_ref(), bytes, SendFlags::NOSIGNAL)?));
            match sent {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(sent) => return sent,
                Err(_would_block) => {}
            }
        }
    }

    /// Ends one or both directions; a peer that is gone already is fine.
    pub fn shut_down(&self, how: Shutdown) {
        let _ = rustix::net::shutdown(self.fd.get_ref(), how);
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.get_ref().as_fd()
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.fd.poll_read_ready(context))?;
            let space = buffer.initialize_unfilled();
            let received = ready
                .try_io(|fd| Ok(rustix::net::recv(fd.get_ref(), space, RecvFlags::empty())?.0));
            match received {
                Ok(Ok(count)) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.fd.poll_write_ready(context))?;
            let sent =
                ready.try_io(|fd| Ok(rustix::net::send(fd.get_ref(), bytes, SendFlags::NOSIGNAL)?));
            match sent {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(sent) => return Poll::Ready(sent),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match rustix::net::shutdown(self.fd.get_ref(), Shutdown::Write) {
            Ok(()) | Err(Errno::NOTCONN) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}
