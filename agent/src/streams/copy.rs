//! Copies raw bytes between a process and its streams.
//!
//! Each direction holds one small buffer and reads only when what it read
//! before is written, so a slow reader on the host slows the process down.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::Shutdown;
use tokio::io::unix::AsyncFd;

use crate::poll;
use crate::transport::Socket;

/// Bytes copied at a time: what a pipe holds.
const CHUNK: usize = 64 * 1024;

/// The agent's end of a pipe, or the master side of a terminal.
pub(crate) struct PipeOrTerminal {
    fd: AsyncFd<OwnedFd>,
}

impl PipeOrTerminal {
    /// Takes over a pipe end or a terminal's master side.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            fd: poll::register(fd)?,
        })
    }

    /// Reads bytes; 0 is the end: of a pipe without writers, or of a terminal
    /// without processes.
    pub(crate) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.fd.readable().await?;
            let read = ready.try_io(|fd| match rustix::io::read(fd.get_ref(), &mut *buffer) {
                // A terminal without processes says so instead of ending.
                Err(Errno::IO) => Ok(0),
                read => Ok(read?),
            });
            match read {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(read) => return read,
                Err(_would_block) => {}
            }
        }
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.fd.writable().await?;
            match ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?)) {
                Ok(Ok(count)) => bytes = &bytes[count..],
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
        Ok(())
    }
}

/// Ends of a new pipe: for reading, for writing.
pub(crate) fn open_ends() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}

/// Copies what a process writes to its stream, until the process can write no
/// more or the host reads no more. All bytes come before the half-close.
pub(crate) async fn relay(process: &PipeOrTerminal, stream: &Socket) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = process.read(&mut buffer).await?;
        if count == 0 {
            stream.shut_down(Shutdown::Write);
            return Ok(());
        }
        let mut unsent = &buffer[..count];
        while !unsent.is_empty() {
            let sent = stream.send(unsent).await?;
            unsent = &unsent[sent..];
        }
    }
}

/// Copies what the host sends to a process, until the host half-closes or the
/// process reads no more; the host is told of the latter.
pub(crate) async fn feed(stream: &Socket, process: &PipeOrTerminal) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = stream.receive(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        if let Err(error) = process.write_all(&buffer[..count]).await {
            stream.shut_down(Shutdown::Read);
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    fn stream() -> (Socket, UnixStream) {
        let (ours, host) = UnixStream::pair().unwrap();
        (Socket::new(ours.into()).unwrap(), host)
    }

    #[tokio::test]
    async fn output_arrives_whole_and_is_followed_by_a_half_close() {
        let (socket, mut host) = stream();
        let (read, write) = open_ends().unwrap();
        let sent: Vec<u8> = (0..8 << 20).map(|n: u32| n.to_le_bytes()[1]).collect();
        let copy = sent.clone();
        let process = std::thread::spawn(move || {
            std::fs::File::from(write).write_all(&copy).unwrap();
        });
        let reader = std::thread::spawn(move || {
            let mut received = Vec::new();
            host.read_to_end(&mut received).unwrap();
            received
        });
        relay(&PipeOrTerminal::new(read).unwrap(), &socket)
            .await
            .unwrap();
        process.join().unwrap();
        assert!(reader.join().unwrap() == sent);
    }

    #[tokio::test]
    async fn a_slow_reader_stops_the_process() {
        let (socket, host) = stream();
        let (read, write) = open_ends().unwrap();
        rustix::io::ioctl_fionbio(&write, true).unwrap();
        let source = PipeOrTerminal::new(read).unwrap();
        let relayed = tokio::spawn(async move { relay(&source, &socket).await });
        let mut accepted = 0;
        let full = async {
            let mut idle = 0;
            while idle < 20 {
                match rustix::io::write(&write, &[0; 4096]) {
                    Ok(count) => (accepted, idle) = (accepted + count, 0),
                    Err(_) => idle += 1,
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        full.await;
        // The pipe, one buffer and what the socket holds: no more is taken.
        assert!(accepted < 2 << 20, "{accepted} bytes taken");
        drop(host);
        assert!(relayed.await.unwrap().is_err());
    }

    #[tokio::test]
    async fn a_process_that_closed_its_stdin_ends_the_copy_and_tells_the_host() {
        let (socket, mut host) = stream();
        let (read, write) = open_ends().unwrap();
        drop(read);
        host.write_all(b"unwanted").unwrap();
        let sink = PipeOrTerminal::new(write).unwrap();
        assert!(feed(&socket, &sink).await.is_err());
        let told = (0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(1));
            host.write_all(b"more").is_err()
        });
        assert!(told);
    }

    #[tokio::test]
    async fn the_end_of_stdin_ends_the_copy() {
        let (socket, host) = stream();
        let (read, write) = open_ends().unwrap();
        (&host).write_all(b"last words").unwrap();
        host.shutdown(std::net::Shutdown::Write).unwrap();
        feed(&socket, &PipeOrTerminal::new(write).unwrap())
            .await
            .unwrap();
        let mut received = String::new();
        std::fs::File::from(read)
            .read_to_string(&mut received)
            .unwrap();
        assert_eq!(received, "last words");
    }
}
