//! The person's terminal, lent to the container.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nacre_pod::stdio::TerminalSize;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use thiserror::Error;

use crate::logger;

/// Why a container's terminal cannot be shown.
#[derive(Debug, Error)]
pub(crate) enum TerminalError {
    #[error("process.terminal is true, but none of standard input, output and error is a terminal")]
    None,
    #[error("cannot use the terminal: {0}")]
    Use(#[from] io::Error),
}

/// The terminal that this process was started from.
#[derive(Debug)]
pub(crate) struct Terminal {
    fd: OwnedFd,
}

impl Terminal {
    /// Finds it among the standard descriptors.
    pub(crate) fn find() -> Result<Self, TerminalError> {
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        let all = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        Self::first_of(&all)
    }

    fn first_of(candidates: &[BorrowedFd<'_>]) -> Result<Self, TerminalError> {
        let terminal = candidates.iter().find(|fd| isatty(fd));
        let fd = terminal.ok_or(TerminalError::None)?.try_clone_to_owned()?;
        Ok(Self { fd })
    }

    /// Its size now.
    pub(crate) fn size(&self) -> Result<TerminalSize, TerminalError> {
        let size = tcgetwinsize(&self.fd).map_err(io::Error::from)?;
        Ok(TerminalSize {
            columns: size.ws_col,
            rows: size.ws_row,
        })
    }

    /// Hands every key on as it is pressed, until the answer is dropped.
    pub(crate) fn enter_raw(&self) -> Result<RawMode<'_>, TerminalError> {
        let before = tcgetattr(&self.fd).map_err(io::Error::from)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&self.fd, OptionalActions::Now, &raw).map_err(io::Error::from)?;
        logger::set_raw(true);
        Ok(RawMode {
            terminal: self,
            before,
        })
    }
}

/// A terminal in raw mode. Dropping it, also in a panic, restores the terminal.
#[derive(Debug)]
pub(crate) struct RawMode<'a> {
    terminal: &'a Terminal,
    before: Termios,
}

impl Drop for RawMode<'_> {
    fn drop(&mut self) {
        // A terminal that was hung up needs no restoring.
        let _ = tcsetattr(&self.terminal.fd, OptionalActions::Drain, &self.before);
        logger::set_raw(false);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::{LocalModes, Winsize, tcsetwinsize};

    use super::*;

    /// Both sides of a new terminal.
    fn new_terminal() -> (OwnedFd, OwnedFd) {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let side = File::options()
            .read(true)
            .write(true)
            .open(name.to_str().unwrap());
        (master, side.unwrap().into())
    }

    fn is_raw(terminal: &OwnedFd) -> bool {
        let modes = tcgetattr(terminal).unwrap().local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    #[test]
    fn the_terminal_is_restored_also_after_a_panic() {
        let (_master, side) = new_terminal();
        let terminal = Terminal::first_of(&[side.as_fd()]).unwrap();
        let panicked = std::panic::catch_unwind(|| {
            let _raw = terminal.enter_raw().unwrap();
            assert!(is_raw(&side));
            panic!("as a test");
        });
        assert!(panicked.is_err());
        assert!(!is_raw(&side));
    }

    #[test]
    fn its_size_is_known() {
        let (master, side) = new_terminal();
        let size = Winsize {
            ws_row: 24,
            ws_col: 80,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&master, size).unwrap();
        let terminal = Terminal::first_of(&[side.as_fd()]).unwrap();
        let size = terminal.size().unwrap();
        assert_eq!((size.columns, size.rows), (80, 24));
    }

    #[test]
    fn a_pipe_is_no_terminal() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let found = Terminal::first_of(&[read.as_fd(), write.as_fd()]);
        assert!(matches!(found, Err(TerminalError::None)));
    }
}
