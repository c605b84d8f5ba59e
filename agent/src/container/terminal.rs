//! The terminal of a container.
//!
//! libcontainer makes it inside the container, so that it belongs to the
//! container's own devpts, and sends the master side over a socket.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Uid};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};
use rustix::termios::{Winsize, tcsetwinsize};

/// Where libcontainer delivers the master side.
pub(super) struct ConsoleSocket {
    path: PathBuf,
    listener: UnixListener,
}

impl ConsoleSocket {
    /// Listens in the container's bundle.
    pub(super) fn bind(bundle: &Path) -> io::Result<Self> {
        // The address is short however long the identifier in the path is.
        std::env::set_current_dir(bundle)?;
        let listener = UnixListener::bind("console.sock");
        std::env::set_current_dir("/")?;
        Ok(Self {
            path: bundle.join("console.sock"),
            listener: listener?,
        })
    }

    /// The socket's path, for libcontainer.
    pub(super) fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// Takes the master side that was sent, sizes the terminal and gives it to
    /// the container's user.
    pub(super) fn receive(self, size: Option<(u16, u16)>, uid: u32) -> io::Result<OwnedFd> {
        // libcontainer has sent it already: nothing to wait for.
        self.listener.set_nonblocking(true)?;
        let (connection, _) = self.listener.accept()?;
        let master = receive_fd(&connection)?;
        if let Some((columns, rows)) = size {
            resize(&master, columns, rows)?;
        }
        let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        rustix::fs::fchown(&slave, Some(Uid::from_raw(uid)), None::<Gid>)?;
        Ok(master)
    }
}

fn receive_fd(connection: impl AsFd) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 64];
    recvmsg(
        connection,
        &mut [IoSliceMut::new(&mut name)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    ancillary
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Sets the size of a terminal by its master side.
pub(super) fn resize(master: impl AsFd, columns: u16, rows: u16) -> io::Result<()> {
    let size = Winsize {
        ws_col: columns,
        ws_row: rows,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(tcsetwinsize(master, size)?)
}
