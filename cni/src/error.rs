//! What can go wrong, one line each.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::attachment::AttachmentId;
use crate::config::InvalidConfig;
use crate::names::{InvalidName, NetworkName};
use crate::plugin::{Command, Failure, PluginError};
use crate::version::Version;

/// Any error of this library.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A name breaks the rules.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// A file is no network configuration.
    #[error("{} is not a valid network configuration: {source}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: InvalidConfig,
    },
    /// A file or directory of configurations cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// No configuration has the wanted name.
    #[error("there is no network \"{name}\" in {}{}", dir.display(), and_broken(.broken.as_deref()))]
    NoSuchNetwork {
        /// The name.
        name: NetworkName,
        /// Where it was looked for.
        dir: PathBuf,
        /// A file that could not be used, which may be the one that was meant.
        broken: Option<Box<Error>>,
    },
    /// There is no configuration at all.
    #[error("there is no network configuration in {}{}", dir.display(), and_broken(.broken.as_deref()))]
    NoNetwork {
        /// Where one was looked for.
        dir: PathBuf,
        /// A file that could not be used.
        broken: Option<Box<Error>>,
    },
    /// A network without plugins.
    #[error("the network \"{0}\" has no plugins")]
    NoPlugins(NetworkName),
    /// A directory that cannot be part of `CNI_PATH`.
    #[error("the directory of CNI plugins {} {why}", path.display())]
    PluginDirectory {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// `ADD` and `CHECK` need a network namespace.
    #[error("{command} of {id} needs a network namespace")]
    NoNamespace {
        /// What was asked for.
        command: Command,
        /// For whom.
        id: AttachmentId,
    },
    /// A plugin failed.
    #[error(transparent)]
    Plugin(#[from] Box<PluginError>),
    /// The network's version does not have the command.
    #[error("{command} is not in CNI {version}, the version of the network \"{network}\"")]
    NotInVersion {
        /// What was asked for.
        command: Command,
        /// The network's.
        version: Version,
        /// Which one.
        network: NetworkName,
    },
    /// `ADD` of what was not deleted since its last `ADD`.
    #[error("{id} is on the network \"{network}\" already; DEL it first")]
    AlreadyAdded {
        /// Which attachment.
        id: AttachmentId,
        /// On which network.
        network: NetworkName,
    },
    /// `CHECK` of what was not added.
    #[error("{id} is not on the network \"{network}\"")]
    NotAdded {
        /// Which attachment.
        id: AttachmentId,
        /// On which network.
        network: NetworkName,
    },
    /// The result cache cannot be used.
    #[error("cannot {action} {}: {source}", path.display())]
    Cache {
        /// What was to be done.
        action: &'static str,
        /// A file or directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file of the result cache is not as it was written.
    #[error("{} is damaged ({why}); DEL or GC removes it", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Another process keeps the result cache locked.
    #[error("{} is still locked by another process after {seconds} s", path.display())]
    Locked {
        /// The lock's file.
        path: PathBuf,
        /// How long it was waited for.
        seconds: u64,
    },
    /// A failed `ADD` could not be undone; what is left is known to the result cache.
    #[error("{add}; undoing it failed, too: {undo}")]
    NotUndone {
        /// Why it failed.
        add: Box<Error>,
        /// Why it is not undone.
        undo: Box<Error>,
    },
    /// More than one thing went wrong.
    #[error("{}", joined(.0))]
    Several(Vec<Error>),
    /// A request or a result cannot be written as JSON.
    #[error("cannot write JSON: {0}")]
    Encode(#[from] serde_json::Error),
}

impl Error {
    /// The code that a plugin reported (section 5 of the specification, "Error").
    #[must_use]
    pub fn code(&self) -> Option<u32> {
        match self {
            Self::Plugin(error) => match error.failure {
                Failure::Reported { code, .. } => Some(code),
                _ => None,
            },
            Self::NotUndone { add, .. } => add.code(),
            _ => None,
        }
    }

    /// One error out of many, or none.
    pub(crate) fn of_all(mut errors: Vec<Self>) -> Result<(), Self> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Several(errors)),
        }
    }
}

impl From<PluginError> for Error {
    fn from(error: PluginError) -> Self {
        Self::Plugin(Box::new(error))
    }
}

fn and_broken(broken: Option<&Error>) -> String {
    broken.map_or_else(String::new, |error| format!("; {error}"))
}

fn joined(errors: &[Error]) -> String {
    let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
    errors.join("; ")
}
