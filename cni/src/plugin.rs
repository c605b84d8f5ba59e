//! Finding a plugin, executing it, and making sense of what it answers.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::fs::{Access, access};
use serde::Deserialize;
use thiserror::Error;

use crate::error::Error;
use crate::names::PluginType;
use crate::process::{self, Finished, MAX_STDOUT, Unfinished};
use crate::text::{joined_lines, one_line};

/// For plugins that execute `iptables` or `ip` when the caller has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Excerpt of what is no JSON, in bytes.
const EXCERPT: usize = 80;

/// What a plugin is asked to do: `CNI_COMMAND`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Make the container's interface, or change it.
    Add,
    /// Undo that.
    Del,
    /// See whether it is as `ADD` left it.
    Check,
    /// Remove what belongs to no attachment any more.
    Gc,
    /// Tell whether `ADD` can work.
    Status,
    /// Tell which versions of the specification are spoken.
    Version,
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        })
    }
}

/// A plugin that did not do what it was asked to.
#[derive(Debug, Error)]
#[error("CNI plugin {plugin} failed to {command}: {failure}")]
pub struct PluginError {
    /// Its `type`.
    pub plugin: PluginType,
    /// What it was asked to do.
    pub command: Command,
    /// What happened instead.
    #[source]
    pub failure: Failure,
}

/// How a plugin failed. Texts of the plugin are one line, bounded, without control
/// characters.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Failure {
    /// There is no such file.
    #[error("there is no such file in {}", shown_dirs(.0))]
    NotFound(Vec<PathBuf>),
    /// There is one that nobody may execute.
    #[error("{} is not executable", .0.display())]
    NotExecutable(PathBuf),
    /// The kernel did not execute it.
    #[error("cannot execute {}: {source}", path.display())]
    NotStarted {
        /// Its file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Killed at the deadline.
    #[error("no answer within {} s, killed{}", .deadline.as_secs_f32(), said(.log))]
    TimedOut {
        /// How long it had.
        deadline: Duration,
        /// From its standard error.
        log: String,
    },
    /// It ended by a signal.
    #[error("died by signal {signal}{}", said(.log))]
    Signal {
        /// Its number.
        signal: i32,
        /// From its standard error.
        log: String,
    },
    /// Its own error, as the specification wants it.
    #[error("{message} (code {code}{})", meaning(*.code))]
    Reported {
        /// Up to 99 as the specification says, from 100 on the plugin's own.
        code: u32,
        /// Message and details.
        message: String,
    },
    /// It failed without an error of that form.
    #[error("exit status {status}, and no error in the form of CNI{}", said(.log))]
    Exit {
        /// What it exited with.
        status: i32,
        /// From its standard output or error.
        log: String,
    },
    /// Success, and nothing on its standard output.
    #[error("exit status 0, but no result{}", said(.log))]
    NoResult {
        /// From its standard error.
        log: String,
    },
    /// Success, and something else than a result.
    #[error("its result is not valid: {reason}; it starts with \"{excerpt}\"")]
    InvalidResult {
        /// What is wrong.
        reason: String,
        /// Its first characters.
        excerpt: String,
    },
    /// More than any result needs.
    #[error("more than {MAX_STDOUT} bytes on its standard output, killed")]
    TooMuchOutput,
    /// It does not speak the version of the configuration.
    #[error("it speaks CNI {}, none of which suits the configuration and the plugins before it", .0.join(", "))]
    NoCommonVersion(Vec<String>),
    /// Talking to it failed.
    #[error("cannot talk to it: {0}")]
    Io(io::Error),
}

impl Failure {
    /// Whether it was never executed, so that there is nothing to undo.
    pub(crate) fn is_before_start(&self) -> bool {
        matches!(
            self,
            Self::NotFound(_) | Self::NotExecutable(_) | Self::NotStarted { .. }
        )
    }

    /// Whether the plugin ended by itself and said that it failed.
    pub(crate) fn is_answer(&self) -> bool {
        matches!(self, Self::Reported { .. } | Self::Exit { .. })
    }
}

/// An error as plugins print it (section 5, "Error").
#[derive(Deserialize)]
struct WireError {
    code: u32,
    msg: String,
    #[serde(default)]
    details: Option<String>,
}

/// Where plugins are, and how long each may take.
#[derive(Debug, Clone)]
pub(crate) struct Plugins {
    dirs: Vec<PathBuf>,
    search_path: OsString,
    deadline: Duration,
}

impl Plugins {
    pub(crate) fn new(dirs: Vec<PathBuf>, deadline: Duration) -> Result<Self, Error> {
        if let Some(relative) = dirs.iter().find(|dir| !dir.is_absolute()) {
            return Err(Error::PluginDirectory {
                path: relative.clone(),
                why: "is not an absolute path",
            });
        }
        let search_path = env::join_paths(&dirs).map_err(|_| Error::PluginDirectory {
            path: dirs.iter().collect(),
            why: "has a colon in it",
        })?;
        Ok(Self {
            dirs,
            search_path,
            deadline,
        })
    }

    pub(crate) fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    /// Executes a plugin; its standard output when it succeeds.
    ///
    /// `parameters` are the variables of the attachment, without `CNI_COMMAND` and
    /// `CNI_PATH`.
    pub(crate) fn execute(
        &self,
        plugin: &PluginType,
        command: Command,
        parameters: Vec<(&'static str, OsString)>,
        request: &[u8],
    ) -> Result<Vec<u8>, PluginError> {
        self.try_execute(plugin, command, parameters, request)
            .map_err(|failure| PluginError {
                plugin: plugin.clone(),
                command,
                failure,
            })
    }

    fn try_execute(
        &self,
        plugin: &PluginType,
        command: Command,
        mut environment: Vec<(&'static str, OsString)>,
        request: &[u8],
    ) -> Result<Vec<u8>, Failure> {
        let path = self.find(plugin)?;
        environment.push(("CNI_COMMAND", command.to_string().into()));
        environment.push(("CNI_PATH", self.search_path.clone()));
        environment.push(("PATH", env::var_os("PATH").unwrap_or(DEFAULT_PATH.into())));
        let finished = process::run(&path, &environment, request, self.deadline)
            .map_err(|unfinished| self.explain(unfinished, path))?;
        if finished.status.success() {
            check_answer(command, &finished)?;
            return Ok(finished.stdout);
        }
        Err(explain_end(finished.status, &finished))
    }

    /// The first executable file of that name, by the order of the directories.
    fn find(&self, plugin: &PluginType) -> Result<PathBuf, Failure> {
        let mut unusable = None;
        for dir in &self.dirs {
            let path = dir.join(plugin.as_str());
            if !path.is_file() {
                continue;
            }
            if access(&path, Access::EXEC_OK).is_ok() {
                return Ok(path);
            }
            unusable.get_or_insert(path);
        }
        Err(match unusable {
            Some(path) => Failure::NotExecutable(path),
            None => Failure::NotFound(self.dirs.clone()),
        })
    }

    fn explain(&self, unfinished: Unfinished, path: PathBuf) -> Failure {
        match unfinished {
            Unfinished::NotStarted(source) => Failure::NotStarted { path, source },
            Unfinished::TimedOut { stderr } => Failure::TimedOut {
                deadline: self.deadline,
                log: joined_lines(&stderr),
            },
            Unfinished::TooMuchOutput => Failure::TooMuchOutput,
            Unfinished::Failed(error) => Failure::Io(error),
        }
    }
}

/// Success must come with an answer where there is one, and not with an error.
fn check_answer(command: Command, finished: &Finished) -> Result<(), Failure> {
    if !matches!(command, Command::Add | Command::Version) {
        return Ok(());
    }
    if finished.stdout.trim_ascii().is_empty() {
        return Err(Failure::NoResult {
            log: joined_lines(&finished.stderr),
        });
    }
    match reported(&finished.stdout) {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

fn explain_end(status: ExitStatus, finished: &Finished) -> Failure {
    if let Some(signal) = status.signal() {
        return Failure::Signal {
            signal,
            log: joined_lines(&finished.stderr),
        };
    }
    reported(&finished.stdout).unwrap_or_else(|| Failure::Exit {
        status: status.code().unwrap_or_default(),
        log: if finished.stdout.trim_ascii().is_empty() {
            joined_lines(&finished.stderr)
        } else {
            joined_lines(&finished.stdout)
        },
    })
}

/// The error that a plugin printed, if that is what it printed.
fn reported(stdout: &[u8]) -> Option<Failure> {
    let error: WireError = serde_json::from_slice(stdout).ok()?;
    let parts: Vec<_> = [Some(error.msg), error.details]
        .into_iter()
        .flatten()
        .map(|part| one_line(&part))
        .filter(|part| !part.is_empty())
        .collect();
    Some(Failure::Reported {
        code: error.code,
        message: if parts.is_empty() {
            "no message".to_owned()
        } else {
            parts.join("; ")
        },
    })
}

/// What is shown of a result that is none.
pub(crate) fn invalid_result(reason: &dyn fmt::Display, stdout: &[u8]) -> Failure {
    let start = &stdout[..stdout.len().min(EXCERPT)];
    Failure::InvalidResult {
        reason: one_line(&reason.to_string()),
        excerpt: one_line(&String::from_utf8_lossy(start)),
    }
}

/// The specification's words for a code (section 5, "Error").
fn meaning(code: u32) -> &'static str {
    match code {
        1 => ", incompatible CNI version",
        2 => ", unsupported field in the configuration",
        3 => ", unknown container",
        4 => ", invalid environment variables",
        5 => ", I/O failure",
        6 => ", failed to decode content",
        7 => ", invalid network configuration",
        11 => ", try again later",
        50 => ", plugin not available",
        51 => ", plugin not available and containers with limited connectivity",
        _ => "",
    }
}

fn said(log: &str) -> String {
    if log.is_empty() {
        String::new()
    } else {
        format!("; it said: {log}")
    }
}

fn shown_dirs(dirs: &[PathBuf]) -> String {
    let dirs: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    dirs.join(":")
}
