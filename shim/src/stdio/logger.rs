//! A program that takes a process's output: `binary:///path?key=value`.
//!
//! It is started with stdout as descriptor 3 and stderr as descriptor 4, and
//! closes descriptor 5 when it is ready. See containerd's
//! `core/runtime/v2/README.md`, "Logging". With `binary-v2` it must write a byte
//! there first, so that one that crashes is not taken for one that is ready.

use std::io;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

use super::{Owner, decode};
use crate::failure::Failure;

/// How long a logger may take to be ready, and to end when all is written.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running logger.
#[derive(Debug)]
pub(super) struct Logger {
    child: Child,
    program: String,
}

/// What is written for a logger.
#[derive(Debug)]
pub(super) struct Outputs {
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

/// What is to be run.
#[derive(Debug, Eq, PartialEq)]
struct Invocation {
    program: String,
    arguments: Vec<String>,
    /// It writes a byte when it is ready.
    says_ready: bool,
}

impl Invocation {
    /// Each key of the query is an argument, and its value, if any, the next.
    fn parse(uri: &str) -> Option<Self> {
        let (scheme, rest) = uri.split_once("://")?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let pairs = form_urlencoded::parse(query.as_bytes());
        let arguments = pairs
            .flat_map(|(key, value)| [key.into_owned(), value.into_owned()])
            .collect();
        let program = decode(path);
        program.starts_with('/').then_some(Self {
            program,
            arguments,
            says_ready: scheme == "binary-v2",
        })
    }
}

impl Logger {
    /// Starts the program that `uri` names and waits until it is ready.
    ///
    /// # Errors
    /// [`Failure`]; it does not run then.
    pub(super) async fn start(uri: &str, owner: Owner<'_>) -> Result<(Self, Outputs), Failure> {
        let invocation = Invocation::parse(uri).ok_or_else(|| {
            Failure::invalid_argument(format!("stdout: {uri}: names no program by its path"))
        })?;
        let program = invocation.program.clone();
        let failed = |error: io::Error| Failure::internal(format!("logger {program:?}: {error}"));
        let (child, outputs, ready) = spawn(&invocation, owner).map_err(failed)?;
        let mut logger = Self {
            child,
            program: program.clone(),
        };
        match logger.wait_ready(ready, invocation.says_ready).await {
            Ok(()) => Ok((logger, outputs)),
            Err(error) => {
                logger.kill().await;
                Err(failed(error))
            }
        }
    }

    async fn wait_ready(&mut self, mut ready: pipe::Receiver, says_ready: bool) -> io::Result<()> {
        let mut byte = [0];
        let read = tokio::time::timeout(PATIENCE, ready.read(&mut byte));
        match read.await {
            Ok(Ok(0)) if says_ready => Err(io::Error::other("ended without being ready")),
            Ok(read) => read.map(drop),
            Err(_) => Err(io::Error::other("is not ready in time")),
        }
    }

    /// Waits until it has ended, which it does when it has read everything.
    pub(super) async fn finish(mut self) {
        match tokio::time::timeout(PATIENCE, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => {}
            Ok(Ok(status)) => log::warn!("logger {:?}: {status}", self.program),
            Ok(Err(error)) => log::warn!("logger {:?}: {error}", self.program),
            Err(_) => {
                log::warn!("logger {:?} does not end; it is killed", self.program);
                self.kill().await;
            }
        }
    }

    async fn kill(&mut self) {
        if let Err(error) = self.child.kill().await {
            log::warn!("logger {:?}: {error}", self.program);
        }
    }
}

fn spawn(
    invocation: &Invocation,
    owner: Owner<'_>,
) -> io::Result<(Child, Outputs, pipe::Receiver)> {
    let (stdout, stdout_writer) = pipe_with(PipeFlags::CLOEXEC)?;
    let (stderr, stderr_writer) = pipe_with(PipeFlags::CLOEXEC)?;
    let (ready, ready_writer) = pipe_with(PipeFlags::CLOEXEC)?;
    let mappings = [stdout, stderr, ready_writer]
        .into_iter()
        .zip(3..)
        .map(|(parent_fd, child_fd)| FdMapping {
            parent_fd,
            child_fd,
        })
        .collect();
    let mut command = Command::new(&invocation.program);
    command
        .args(&invocation.arguments)
        .env_clear()
        .env("CONTAINER_ID", owner.id)
        .env("CONTAINER_NAMESPACE", owner.namespace)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .fd_mappings(mappings)
        .map_err(io::Error::other)?;
    let child = command.spawn()?;
    // Its ends are closed with the command.
    drop(command);
    let outputs = Outputs {
        stdout: stdout_writer,
        stderr: stderr_writer,
    };
    Ok((child, outputs, pipe::Receiver::from_owned_fd(ready)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logger_is_a_path_and_its_arguments() {
        let invocation = Invocation::parse("binary:///usr/bin/my%20log?--id=a%26b&-v").unwrap();
        assert_eq!(
            invocation,
            Invocation {
                program: "/usr/bin/my log".into(),
                arguments: ["--id", "a&b", "-v", ""].map(String::from).to_vec(),
                says_ready: false,
            }
        );
        assert!(Invocation::parse("binary-v2:///x").unwrap().says_ready);
        assert_eq!(Invocation::parse("binary://host/x"), None);
    }
}
