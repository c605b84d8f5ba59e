//! A terminal whose other side goes to whoever listens on a console socket.
//!
//! The guest has the terminal that the container sees. This one only carries its bytes,
//! so it is raw; and it is this process's controlling terminal, so that the kernel says
//! when somebody has changed its size.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use nacre_pod::stdio::TerminalSize;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::ioctl_tiocsctty;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::termios::{OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

use super::error::OciError;

/// What runc sends along: the device that its side was opened by.
const NAME: &[u8] = b"/dev/ptmx";

/// Makes the terminal, takes it in place of the standard descriptors, and sends its other
/// side to `socket`. This process must be the leader of a session without a terminal.
pub(crate) fn open(socket: &Path, size: Option<TerminalSize>) -> Result<(), OciError> {
    let failed = || OciError::system(format!("console socket {}", socket.display()));
    let listener = UnixStream::connect(socket).map_err(failed())?;
    make(&listener, size).map_err(failed())
}

fn make(listener: &UnixStream, size: Option<TerminalSize>) -> io::Result<()> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let outer = openpt(flags)?;
    unlockpt(&outer)?;
    let inner = ioctl_tiocgptpeer(&outer, flags)?;
    let mut modes = tcgetattr(&inner)?;
    modes.make_raw();
    tcsetattr(&inner, OptionalActions::Now, &modes)?;
    if let Some(size) = size {
        let size = Winsize {
            ws_row: size.rows,
            ws_col: size.columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&inner, size)?;
    }
    ioctl_tiocsctty(&inner)?;
    dup2_stdin(&inner)?;
    dup2_stdout(&inner)?;
    dup2_stderr(&inner)?;

    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [outer.as_fd()];
    if !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg(
        listener,
        &[IoSlice::new(NAME)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}
