//! A descriptor of the host that is read or written without holding up others.
//!
//! It may be shared with other processes (a shell's terminal, for one), so it is
//! never switched to non-blocking: pipes and terminals are opened a second time
//! instead, sockets are asked not to block call by call, and what cannot be
//! polled is left to a thread.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, fstat};
use rustix::net::{RecvFlags, SendFlags};
use tokio::io::Interest;
use tokio::task::spawn_blocking;

use crate::poll::{self, Owned, Polled};

/// The direction in which an endpoint is used.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Direction {
    Read,
    Write,
}

/// One end of a pump on the host.
#[derive(Debug)]
pub(super) enum Endpoint {
    /// A pipe or terminal that does not block.
    Polled(Polled<OwnedFd>),
    Socket(Polled<OwnedFd>),
    /// A device that answers at once, such as `/dev/null`.
    Immediate(OwnedFd),
    /// A file: it does block, but cannot be polled.
    Blocking(Arc<OwnedFd>),
}

impl Endpoint {
    pub(super) fn new(fd: OwnedFd, direction: Direction) -> io::Result<Self> {
        let interest = match direction {
            Direction::Read => Interest::READABLE,
            Direction::Write => Interest::WRITABLE,
        };
        let polled = |fd| poll::add(fd, interest);
        match FileType::from_raw_mode(fstat(&fd)?.st_mode) {
            FileType::Socket => Ok(Self::Socket(polled(fd)?)),
            FileType::CharacterDevice if !rustix::termios::isatty(&fd) => Ok(Self::Immediate(fd)),
            FileType::Fifo | FileType::CharacterDevice => match open_again(&fd, direction) {
                Ok(again) => Ok(Self::Polled(polled(again)?)),
                // A fifo without a reader, say: writing tells.
                Err(_) => Ok(Self::Blocking(Arc::new(fd))),
            },
            _ => Ok(Self::Blocking(Arc::new(fd))),
        }
    }

    /// Reads up to the length of `buffer`; 0 is the end.
    pub(super) async fn read(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        match self {
            Self::Polled(fd) => {
                fd.async_io(Interest::READABLE, |Owned(fd)| {
                    Ok(rustix::io::read(fd, &mut buffer[..])?)
                })
                .await
            }
            Self::Socket(fd) => {
                let flags = RecvFlags::DONTWAIT;
                fd.async_io(Interest::READABLE, |Owned(fd)| {
                    Ok(rustix::net::recv(fd, &mut buffer[..], flags)?.0)
                })
                .await
            }
            Self::Immediate(fd) => Ok(rustix::io::read(fd, &mut buffer[..])?),
            Self::Blocking(fd) => {
                let fd = fd.clone();
                let mut taken = std::mem::take(buffer);
                let (result, taken) = spawn_blocking(move || {
                    let result =
                        rustix::io::retry_on_intr(|| rustix::io::read(&fd, &mut taken[..]));
                    (result, taken)
                })
                .await?;
                *buffer = taken;
                Ok(result?)
            }
        }
    }

    /// Writes all of `bytes`.
    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.write(bytes).await?;
            bytes = bytes.get(written..).unwrap_or_default();
        }
        Ok(())
    }

    async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Polled(fd) => {
                fd.async_io(Interest::WRITABLE, |Owned(fd)| {
                    Ok(rustix::io::write(fd, bytes)?)
                })
                .await
            }
            Self::Socket(fd) => {
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                fd.async_io(Interest::WRITABLE, |Owned(fd)| {
                    Ok(rustix::net::send(fd, bytes, flags)?)
                })
                .await
            }
            Self::Immediate(fd) => Ok(rustix::io::write(fd, bytes)?),
            Self::Blocking(fd) => {
                let fd = fd.clone();
                let copy = bytes.to_vec();
                let write = move || rustix::io::retry_on_intr(|| rustix::io::write(&fd, &copy[..]));
                Ok(spawn_blocking(write).await??)
            }
        }
    }
}

/// A second open file of the same pipe or terminal, whose flags are its own.
fn open_again(fd: &OwnedFd, direction: Direction) -> io::Result<OwnedFd> {
    let access = match direction {
        Direction::Read => OFlags::RDONLY,
        Direction::Write => OFlags::WRONLY,
    };
    let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use rustix::fs::fcntl_getfl;
    use rustix::pipe::pipe;

    use super::*;

    #[tokio::test]
    async fn a_shared_pipe_stays_a_blocking_one_for_others() {
        let (read, write) = pipe().unwrap();
        let others = read.try_clone().unwrap();
        let endpoint = Endpoint::new(read, Direction::Read).unwrap();
        File::from(write).write_all(b"abc").unwrap();
        let mut buffer = vec![0; 16];
        assert_eq!(endpoint.read(&mut buffer).await.unwrap(), 3);
        assert_eq!(endpoint.read(&mut buffer).await.unwrap(), 0);
        assert!(!fcntl_getfl(&others).unwrap().contains(OFlags::NONBLOCK));
    }

    #[tokio::test]
    async fn files_sockets_and_devices_are_written_and_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = Endpoint::new(File::create(&path).unwrap().into(), Direction::Write).unwrap();
        file.write_all(b"to a file").await.unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"to a file");
        let file = Endpoint::new(File::open(&path).unwrap().into(), Direction::Read).unwrap();
        let mut buffer = vec![0; 4];
        assert_eq!(file.read(&mut buffer).await.unwrap(), 4);
        assert_eq!(buffer, b"to a");

        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let socket = Endpoint::new(ours.into(), Direction::Write).unwrap();
        socket.write_all(b"to a socket").await.unwrap();
        drop(socket);
        let mut text = String::new();
        theirs.read_to_string(&mut text).unwrap();
        assert_eq!(text, "to a socket");

        let null = File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .unwrap();
        let null = Endpoint::new(null.into(), Direction::Read).unwrap();
        assert_eq!(null.read(&mut buffer).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_reader_that_is_gone_is_a_broken_pipe() {
        let (read, write) = pipe().unwrap();
        drop(read);
        let endpoint = Endpoint::new(write, Direction::Write).unwrap();
        let error = endpoint.write_all(b"x").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
