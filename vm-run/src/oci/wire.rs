//! What verbs and a container's keeper say to each other on its control socket: JSON
//! behind its length, with descriptors beside the first message.
//!
//! Only root reaches the socket. The bounds are there for mistakes.

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as BlockingStream;

use nacre_pod::processes::GuestProcess;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

/// Largest message in bytes: a process with all of its environment.
const MAX_MESSAGE: usize = 4 << 20;

/// Most descriptors beside a message.
pub(crate) const MAX_FDS: usize = 3;

/// What a verb asks a keeper.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) enum Request {
    /// Starts the container's program.
    Start,
    /// Sends a signal to its first process, or to all.
    Signal { number: u32, all: bool },
    /// Freezes all of its processes.
    Pause,
    /// Lets them go on.
    Resume,
    /// Changes limits: the specification's `linux.resources`.
    Update { resources: Value },
    /// Lists its processes.
    Processes,
    /// Says what it uses.
    Stats,
    /// Executes a further process on the descriptors that come along.
    Exec(Exec),
}

/// A further process in the container.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Exec {
    /// The specification's `process`.
    pub(crate) process: Value,
    /// Columns and rows of its terminal, if it has one.
    pub(crate) terminal: Option<(u16, u16)>,
    /// Also while the container is paused.
    pub(crate) ignore_paused: bool,
    /// It ends with the connection.
    pub(crate) bound: bool,
}

/// What follows on the connection of an [`Exec`] that has started.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) enum Follow {
    /// A signal for it.
    Signal(u32),
    /// Its terminal has other columns and rows.
    Resize(u16, u16),
}

/// What a keeper answers.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) enum Answer {
    /// It is done.
    Done,
    /// It cannot be done, and why.
    Failed(String),
    /// The process has been executed.
    Executed,
    /// The process has ended, and its output has been written.
    Exited(u8),
    /// Those of the container.
    Processes(Vec<GuestProcess>),
    /// As `events --stats` prints it.
    Stats(Value),
}

/// Writes a message and hands descriptors over with it.
pub(crate) fn send(
    stream: &BlockingStream,
    message: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = encode(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent = sendmsg(
        stream,
        &[IoSlice::new(&bytes)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    let rest = bytes.get(sent..).unwrap_or_default();
    io::Write::write_all(&mut &*stream, rest)
}

/// Reads a message; none at the end of the stream.
pub(crate) fn receive<T: DeserializeOwned>(stream: &BlockingStream) -> io::Result<Option<T>> {
    let mut stream = stream;
    let mut length = [0; 4];
    match stream.read_exact(&mut length) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let mut body = vec![0; bounded(length)?];
    stream.read_exact(&mut body)?;
    decode(&body).map(Some)
}

/// As [`send`], without descriptors.
pub(crate) async fn send_async(
    stream: &mut (impl AsyncWriteExt + Unpin),
    message: &impl Serialize,
) -> io::Result<()> {
    stream.write_all(&encode(message)?).await
}

/// As [`receive`].
pub(crate) async fn receive_async<T: DeserializeOwned>(
    stream: &mut (impl AsyncReadExt + Unpin),
) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match stream.read_exact(&mut length).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    body_of(stream, length).await.map(Some)
}

/// Reads a message and takes the descriptors that came with its first byte.
pub(crate) async fn receive_with_fds<T: DeserializeOwned>(
    stream: &mut UnixStream,
) -> io::Result<(T, Vec<OwnedFd>)> {
    let mut length = [0; 4];
    let (read, fds) = stream
        .async_io(Interest::READABLE, || take(stream.as_fd(), &mut length))
        .await?;
    if read == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if let Some(rest) = length.get_mut(read..) {
        stream.read_exact(rest).await?;
    }
    Ok((body_of(stream, length).await?, fds))
}

fn take(stream: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(stream, &mut [IoSliceMut::new(bytes)], &mut ancillary, flags)?;
    let fds = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    Ok((received.bytes, fds))
}

async fn body_of<T: DeserializeOwned>(
    stream: &mut (impl AsyncReadExt + Unpin),
    length: [u8; 4],
) -> io::Result<T> {
    let mut body = vec![0; bounded(length)?];
    stream.read_exact(&mut body).await?;
    decode(&body)
}

fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length = bytes.len() - 4;
    let header = u32::try_from(length).ok().filter(|_| length <= MAX_MESSAGE);
    let header = header.ok_or_else(too_large)?;
    bytes[..4].copy_from_slice(&header.to_be_bytes());
    Ok(bytes)
}

fn bounded(length: [u8; 4]) -> io::Result<usize> {
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > MAX_MESSAGE {
        return Err(too_large());
    }
    Ok(length)
}

fn too_large() -> io::Error {
    let text = format!("a message of more than {} MiB", MAX_MESSAGE >> 20);
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    serde_json::from_slice(body).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[tokio::test]
    async fn a_message_brings_its_descriptors() {
        let (verb, keeper) = BlockingStream::pair().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        let exec = Request::Exec(Exec {
            process: serde_json::json!({ "args": ["x".repeat(100_000)] }),
            terminal: Some((80, 24)),
            ignore_paused: false,
            bound: true,
        });
        let sender = std::thread::spawn(move || {
            send(&verb, &exec, &[write.as_fd()]).unwrap();
            send(&verb, &Request::Start, &[]).unwrap();
        });
        keeper.set_nonblocking(true).unwrap();
        let mut keeper = UnixStream::from_std(keeper).unwrap();
        let (request, fds): (Request, _) = receive_with_fds(&mut keeper).await.unwrap();
        assert!(matches!(request, Request::Exec(exec) if exec.terminal == Some((80, 24))));
        std::fs::File::from(fds.into_iter().next().unwrap())
            .write_all(b"through")
            .unwrap();
        let mut text = [0; 7];
        rustix::io::read(&read, &mut text).unwrap();
        assert_eq!(&text, b"through");
        let next = receive_async::<Request>(&mut keeper).await.unwrap();
        assert!(matches!(next, Some(Request::Start)));
        sender.join().unwrap();
        let end = receive_async::<Request>(&mut keeper).await.unwrap();
        assert!(end.is_none());
    }

    #[test]
    fn what_is_too_large_or_no_message_is_refused() {
        let (ours, mut theirs) = BlockingStream::pair().unwrap();
        theirs.write_all(&u32::MAX.to_be_bytes()).unwrap();
        let error = receive::<Answer>(&ours).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let (ours, mut theirs) = BlockingStream::pair().unwrap();
        theirs.write_all(&[0, 0, 0, 1, b'{']).unwrap();
        receive::<Answer>(&ours).unwrap_err();
        let text = "x".repeat(MAX_MESSAGE);
        assert!(send(&ours, &Answer::Failed(text), &[]).is_err());
    }
}
