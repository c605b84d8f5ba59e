//! A process's stdio on the host, as containerd names it.
//!
//! stdin is a fifo; stdout and stderr are fifos, a file (`file://`), or a program
//! that takes both (`binary://`, see [`logger`]). Opening never waits for the
//! other side, and the shim keeps an end of each fifo itself: a client may go and
//! another come, and neither does stdin end (only CloseIO ends it) nor does
//! output break off.

mod fifo;
mod logger;

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;

use nacre_pod::stdio::{Stdio, TerminalSize};
use percent_encoding::percent_decode_str;

use self::logger::Logger;
use crate::failure::Failure;

/// Where a process's stdio is, in containerd's words. What is empty is not there.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Places {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

/// Whose stdio it is: loggers are told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner<'a> {
    pub(crate) namespace: &'a str,
    /// Identifier of the container, or of the process executed in one.
    pub(crate) id: &'a str,
}

/// What the shim keeps of a process's stdio while the process lives.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    stdin: Option<OwnedFd>,
    readers: Vec<OwnedFd>,
    logger: Option<Logger>,
}

impl Kept {
    /// Lets stdin end when nobody else holds it.
    pub(crate) fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Lets output break off when nobody else reads it.
    pub(crate) fn close_readers(&mut self) {
        self.readers.clear();
    }

    /// Lets go of everything once all output is written, and waits until a
    /// logger has taken it.
    pub(crate) async fn finish(&mut self) {
        self.close_stdin();
        self.close_readers();
        if let Some(logger) = self.logger.take() {
            logger.finish().await;
        }
    }
}

impl Places {
    /// Opens what there is. With a terminal all output goes to stdout.
    ///
    /// # Errors
    /// [`Failure`]; nothing is then left open or running.
    pub(crate) async fn open(
        &self,
        size: TerminalSize,
        owner: Owner<'_>,
    ) -> Result<(Stdio, Kept), Failure> {
        let mut kept = Kept::default();
        let mut stdio = Stdio {
            terminal: self.terminal.then_some(size),
            ..Stdio::default()
        };
        if !self.stdin.is_empty() {
            let (read, write) = fifo::open_input(Path::new(&self.stdin))
                .map_err(|error| failed("stdin", &self.stdin, &error))?;
            stdio.stdin = Some(read);
            kept.stdin = write;
        }
        match Target::of(&self.stdout)? {
            Target::None => {}
            Target::Path(path) => {
                stdio.stdout = Some(output("stdout", path, &mut kept)?);
            }
            Target::File(path) => {
                let file = log_file(&path).map_err(|error| failed("stdout", &path, &error))?;
                let both = file.try_clone();
                stdio.stdout = Some(file.into());
                let stderr = both.map_err(|error| failed("stderr", &path, &error))?;
                stdio.stderr = Some(stderr.into());
            }
            Target::Binary(uri) => {
                let (logger, outputs) = Logger::start(uri, owner).await?;
                stdio.stdout = Some(outputs.stdout);
                stdio.stderr = Some(outputs.stderr);
                kept.logger = Some(logger);
            }
        }
        if stdio.stderr.is_none()
            && !self.terminal
            && let Target::Path(path) = Target::of(&self.stderr)?
        {
            stdio.stderr = Some(output("stderr", path, &mut kept)?);
        }
        Ok((stdio, kept))
    }
}

/// What an output's text means.
enum Target<'a> {
    None,
    /// A fifo, or a file that is there.
    Path(&'a str),
    /// A file that is made when it is missing.
    File(String),
    /// A program that takes stdout and stderr.
    Binary(&'a str),
}

impl<'a> Target<'a> {
    fn of(text: &'a str) -> Result<Self, Failure> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok(match text {
                "" => Self::None,
                path => Self::Path(path),
            });
        };
        match scheme {
            "fifo" => Ok(Self::Path(rest)),
            "file" => Ok(Self::File(decode(rest))),
            "binary" | "binary-v2" => Ok(Self::Binary(text)),
            _ => Err(Failure::invalid_argument(format!(
                "stdio: unknown scheme {scheme:?}: fifo, file, binary and binary-v2 are known"
            ))),
        }
    }
}

/// Percent-encoding undone.
fn decode(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

fn output(name: &str, path: &str, kept: &mut Kept) -> Result<OwnedFd, Failure> {
    let (write, read) =
        fifo::open_output(Path::new(path)).map_err(|error| failed(name, path, &error))?;
    kept.readers.extend(read);
    Ok(write)
}

fn log_file(path: &str) -> std::io::Result<File> {
    if let Some(dir) = Path::new(path).parent() {
        fs::create_dir_all(dir)?;
    }
    File::options().append(true).create(true).open(path)
}

fn failed(name: &str, place: &str, error: &std::io::Error) -> Failure {
    Failure::invalid_argument(format!("{name}: {place}: {error}"))
}

#[cfg(test)]
#[path = "stdio_test.rs"]
mod tests;
