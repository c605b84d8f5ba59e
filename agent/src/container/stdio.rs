//! The stdio of a process: what the builder gets, and what the agent keeps and
//! connects with the host's streams.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::process::Stdio as ProcessStdio;
use std::sync::Arc;

use nacre_protocol::agent::Stdio;
use tokio::task::JoinHandle;

use crate::error::{Doing, Error};
use crate::streams::{PipeOrTerminal, StreamTable, feed, open_ends, relay};
use crate::transport::Socket;

/// Streams that a request names, taken out of the table.
pub(super) struct ClaimedStreams {
    stdin: Option<Arc<Socket>>,
    stdout: Option<Arc<Socket>>,
    stderr: Option<Arc<Socket>>,
}

impl ClaimedStreams {
    /// Claims the streams of a process. A terminal may have one for both ways.
    pub(super) async fn claim(stdio: &Stdio, table: &StreamTable) -> Result<Self, Error> {
        if stdio.terminal && stdio.stderr_stream != 0 {
            let message = "stdio.stderr_stream: a terminal has none";
            return Err(Error::InvalidArgument(message.to_owned()));
        }
        let stdin = claim(stdio.stdin_stream, table).await?;
        let stdout = if stdio.terminal && stdio.stdout_stream == stdio.stdin_stream {
            stdin.clone()
        } else {
            claim(stdio.stdout_stream, table).await?
        };
        let stderr = claim(stdio.stderr_stream, table).await?;
        Ok(Self {
            stdin,
            stdout,
            stderr,
        })
    }
}

async fn claim(id: u64, table: &StreamTable) -> Result<Option<Arc<Socket>>, Error> {
    if id == 0 {
        return Ok(None);
    }
    Ok(Some(Arc::new(table.claim(id).await?)))
}

/// The three descriptors that a process begins with.
pub(super) struct ChildStdio {
    pub(super) stdin: ProcessStdio,
    pub(super) stdout: ProcessStdio,
    pub(super) stderr: ProcessStdio,
}

/// Ends that the agent keeps, each with the stream it belongs to.
pub(super) struct Plumbing {
    input: Option<(Arc<Socket>, OwnedFd)>,
    outputs: Vec<(Arc<Socket>, OwnedFd)>,
}

/// What the agent keeps while a helper makes the process.
pub(super) enum Kept {
    Pipes(Plumbing),
    /// For the terminal that the helper will hand over.
    Terminal(ClaimedStreams),
    /// The process has no streams.
    Nothing,
}

/// What a helper begins with for a process that wants `stdio`, and what the agent
/// keeps of it.
pub(super) fn prepare(stdio: &Stdio, streams: ClaimedStreams) -> Result<(ChildStdio, Kept), Error> {
    if stdio.terminal {
        return Ok((nothing()?, Kept::Terminal(streams)));
    }
    let (child, plumbing) = pipes(streams)?;
    Ok((child, Kept::Pipes(plumbing)))
}

impl Kept {
    /// Connects the process with its streams; see [`Plumbing::run`].
    pub(super) fn connect(self, terminal: Option<&OwnedFd>) -> io::Result<Option<JoinHandle<()>>> {
        let plumbing = match (self, terminal) {
            (Self::Pipes(plumbing), _) => plumbing,
            (Self::Terminal(streams), Some(master)) => Plumbing::of_terminal(streams, master)?,
            (Self::Nothing, _) => return Ok(None),
            (Self::Terminal(_), None) => {
                return Err(io::Error::other("the process has no terminal"));
            }
        };
        plumbing.run()
    }
}

/// Columns and rows of the terminal, if the host has said any.
pub(super) fn terminal_size(stdio: &Stdio) -> Option<(u16, u16)> {
    let size = stdio.terminal_size.as_ref()?;
    let bounded = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
    Some((bounded(size.columns), bounded(size.rows)))
}

/// Pipes for the streams that there are, the null device for the others.
fn pipes(streams: ClaimedStreams) -> Result<(ChildStdio, Plumbing), Error> {
    let mut outputs = Vec::new();
    let mut output = |stream: Option<Arc<Socket>>| -> Result<ProcessStdio, Error> {
        let Some(stream) = stream else {
            return null();
        };
        let (read, write) = open_ends().doing("cannot make a pipe")?;
        outputs.push((stream, read));
        Ok(write.into())
    };
    let stdout = output(streams.stdout)?;
    let stderr = output(streams.stderr)?;
    let (stdin, input) = match streams.stdin {
        Some(stream) => {
            let (read, write) = open_ends().doing("cannot make a pipe")?;
            (read.into(), Some((stream, write)))
        }
        None => (null()?, None),
    };
    let child = ChildStdio {
        stdin,
        stdout,
        stderr,
    };
    Ok((child, Plumbing { input, outputs }))
}

/// The null device for a builder whose container will have a terminal.
pub(super) fn nothing() -> Result<ChildStdio, Error> {
    Ok(ChildStdio {
        stdin: null()?,
        stdout: null()?,
        stderr: null()?,
    })
}

fn null() -> Result<ProcessStdio, Error> {
    let null = File::options().read(true).write(true).open("/dev/null");
    Ok(null.doing("cannot open /dev/null")?.into())
}

impl Plumbing {
    /// Connects a terminal's master side with its streams.
    fn of_terminal(streams: ClaimedStreams, master: &OwnedFd) -> io::Result<Self> {
        let end = |stream: Option<Arc<Socket>>| -> io::Result<Option<(Arc<Socket>, OwnedFd)>> {
            stream
                .map(|stream| Ok((stream, master.try_clone()?)))
                .transpose()
        };
        Ok(Self {
            input: end(streams.stdin)?,
            outputs: end(streams.stdout)?.into_iter().collect(),
        })
    }

    /// Copies until the end of each stream. What comes back is the copying of
    /// the input, which nothing needs once the process has ended.
    fn run(self) -> io::Result<Option<JoinHandle<()>>> {
        for (stream, end) in self.outputs {
            let source = PipeOrTerminal::new(end)?;
            tokio::spawn(async move {
                if let Err(error) = relay(&source, &stream).await {
                    log::debug!("an output stream ended early: {error}");
                }
            });
        }
        let Some((stream, end)) = self.input else {
            return Ok(None);
        };
        let sink = PipeOrTerminal::new(end)?;
        Ok(Some(tokio::spawn(async move {
            if let Err(error) = feed(&stream, &sink).await {
                log::debug!("an input stream ended early: {error}");
            }
        })))
    }
}
