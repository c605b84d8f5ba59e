//! Copying between streams and descriptors of the host.

use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::Instant;

use super::endpoint::{Direction, Endpoint};
use crate::timing::FirstOutput;

/// Bytes that a pump holds, a pipe's capacity.
const BUFFER: usize = 64 << 10;

/// How long after a container's end its output may stand still without having
/// ended. Only a process that outlives the container's first one, or a guest
/// that fails, can keep it open.
const STANDSTILL: Duration = Duration::from_secs(10);

/// How long the guest may take altogether for the output that is left after a container's end,
/// and how many bytes that may be. The time that a reader on the host takes does not count. What
/// a process has written before its end is in pipes, which are far smaller.
const LAST_OUTPUT: Duration = Duration::from_secs(30);
const MAX_LAST_OUTPUT: usize = 64 << 20;

/// The pumps of one container.
#[derive(Debug)]
pub(crate) struct Pumps {
    input: Option<AbortHandle>,
    outputs: Vec<JoinHandle<()>>,
    /// When the container did.
    ended: watch::Sender<Option<Instant>>,
    first_output: FirstOutput,
}

impl Pumps {
    pub(crate) fn new() -> Self {
        Self {
            input: None,
            outputs: Vec::new(),
            ended: watch::Sender::new(None),
            first_output: FirstOutput::default(),
        }
    }

    /// Copies from the host to the container until either end closes.
    pub(crate) fn start_input(&mut self, host: OwnedFd, stream: UnixStream) -> io::Result<()> {
        let host = Endpoint::new(host, Direction::Read)?;
        let pump = async move {
            if let Err(error) = input(&host, stream).await {
                log::debug!("stdin: {error}");
            }
        };
        self.input = Some(tokio::spawn(pump).abort_handle());
        Ok(())
    }

    /// Copies from the container to the host until either end closes.
    pub(crate) fn start_output(
        &mut self,
        name: &'static str,
        stream: UnixStream,
        host: OwnedFd,
    ) -> io::Result<()> {
        let host = Endpoint::new(host, Direction::Write)?;
        let ended = self.ended.subscribe();
        let first_output = self.first_output.clone();
        self.outputs.push(tokio::spawn(async move {
            match output(stream, &host, ended, &first_output).await {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    log::warn!("{name}: the guest keeps it open though the container has ended");
                }
                Err(error) => log::debug!("{name}: {error}"),
            }
        }));
        Ok(())
    }

    /// When the container's first byte came.
    pub(crate) fn first_output(&self) -> FirstOutput {
        self.first_output.clone()
    }

    /// Waits until all output of a container that has ended is written.
    pub(crate) async fn drain(&mut self) {
        if let Some(input) = self.input.take() {
            input.abort();
        }
        self.ended.send_replace(Some(Instant::now()));
        for output in &mut self.outputs {
            // A pump that panicked has nothing more to write.
            let _ = output.await;
        }
        self.outputs.clear();
    }
}

impl Drop for Pumps {
    fn drop(&mut self) {
        let input = self.input.take();
        let outputs = self.outputs.iter().map(JoinHandle::abort_handle);
        input
            .into_iter()
            .chain(outputs)
            .for_each(|pump| pump.abort());
    }
}

async fn input(host: &Endpoint, mut stream: UnixStream) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = match host.read(&mut buffer).await {
            // The terminal was hung up.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => 0,
            other => other?,
        };
        if count == 0 {
            // The container sees the end of its stdin, its output goes on.
            return stream.shutdown().await;
        }
        stream.write_all(&buffer[..count]).await?;
    }
}

async fn output(
    mut stream: UnixStream,
    host: &Endpoint,
    mut ended: watch::Receiver<Option<Instant>>,
    first_output: &FirstOutput,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut left = Leftover::default();
    loop {
        let before = Instant::now();
        let count = tokio::select! {
            biased;
            count = stream.read(&mut buffer) => count?,
            () = standstill(&mut ended, left.time) => return Err(io::ErrorKind::TimedOut.into()),
        };
        if count == 0 {
            return Ok(());
        }
        if let Some(ended) = *ended.borrow() {
            left.take(before.max(ended).elapsed(), count)?;
        }
        first_output.came();
        if let Err(error) = host.write_all(&buffer[..count]).await {
            // The container is told by its next write, as with a pipe.
            let stream = stream.into_std()?;
            let _ = stream.shutdown(Shutdown::Both);
            return Err(error);
        }
    }
}

/// What a guest may still use for the output of a container that has ended.
struct Leftover {
    time: Duration,
    bytes: usize,
}

impl Default for Leftover {
    fn default() -> Self {
        Self {
            time: LAST_OUTPUT,
            bytes: MAX_LAST_OUTPUT,
        }
    }
}

impl Leftover {
    /// `count` bytes have taken this long. An error when that was too much.
    fn take(&mut self, time: Duration, count: usize) -> io::Result<()> {
        self.time = self.time.saturating_sub(time);
        let bytes = self.bytes.checked_sub(count);
        self.bytes = bytes.ok_or(io::ErrorKind::TimedOut)?;
        Ok(())
    }
}

/// Ends when nothing has come for too long, or for `left`, since the container's end.
async fn standstill(ended: &mut watch::Receiver<Option<Instant>>, left: Duration) {
    if ended.wait_for(Option::is_some).await.is_err() {
        // The pumps are dropped, and this one with them.
        return std::future::pending().await;
    }
    tokio::time::sleep(left.min(STANDSTILL)).await;
}

#[cfg(test)]
#[path = "pump_test.rs"]
mod tests;
