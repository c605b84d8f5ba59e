//! The command line that containerd calls a shim with.
//!
//! It is the form of Go's `flag` package: `-name value`, `-name=value`, one dash
//! or two, flags before the action. See containerd's `core/runtime/v2/README.md`.

use std::ffi::OsString;
use std::path::PathBuf;

use thiserror::Error;

/// What the shim is called for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Action {
    /// Start the shim of a pod, or find the one that serves it.
    Start,
    /// Clean up after a shim.
    Delete,
    /// Be the shim of a pod: no action at all, as other shims have it.
    Serve,
    /// Print the version.
    Version,
    /// Print what this runtime is, for containerd.
    Info,
}

/// The command line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Cli {
    pub(crate) action: Action,
    /// containerd's namespace.
    pub(crate) namespace: String,
    /// Identifier of the container or the sandbox.
    pub(crate) id: String,
    /// containerd's gRPC address, which tells two containerds apart.
    pub(crate) address: String,
    /// The bundle, when it is not the current directory.
    pub(crate) bundle: Option<PathBuf>,
    pub(crate) debug: bool,
}

/// Why a command line is refused.
#[derive(Debug, Eq, Error, PartialEq)]
pub(crate) enum UsageError {
    #[error("not valid UTF-8: {}", .0.to_string_lossy())]
    NotUtf8(OsString),
    #[error("flag provided but not defined: -{0}")]
    Unknown(String),
    #[error("flag needs an argument: -{0}")]
    NoValue(String),
    #[error("invalid boolean value {value:?} for -{flag}")]
    NotBoolean { flag: String, value: String },
    #[error("unknown action {0:?}: start and delete are known")]
    Action(String),
    #[error("-{0} is missing: this program is called by containerd")]
    Missing(&'static str),
    #[error("-{flag} {value:?}: not an identifier")]
    Identifier { flag: &'static str, value: String },
}

impl Cli {
    /// Reads the arguments, the program's name left out.
    pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, UsageError> {
        let mut arguments = arguments
            .into_iter()
            .map(|argument| argument.into_string().map_err(UsageError::NotUtf8));
        let mut cli = Self {
            action: Action::Serve,
            namespace: String::new(),
            id: String::new(),
            address: String::new(),
            bundle: None,
            debug: false,
        };
        while let Some(argument) = arguments.next().transpose()? {
            let Some((name, value)) = flag(&argument) else {
                cli.action = action(&argument)?;
                break;
            };
            let mut text = || match value {
                Some(value) => Ok(value.to_owned()),
                None => arguments
                    .next()
                    .transpose()?
                    .ok_or_else(|| UsageError::NoValue(name.to_owned())),
            };
            match name {
                "namespace" => cli.namespace = text()?,
                "id" => cli.id = text()?,
                "address" => cli.address = text()?,
                "bundle" => cli.bundle = Some(text()?.into()),
                // Events go to TTRPC_ADDRESS, and the socket is inherited.
                "publish-binary" | "socket" | "debug-socket" => drop(text()?),
                "debug" => cli.debug = boolean(name, value)?,
                "v" | "version" if boolean(name, value)? => cli.action = Action::Version,
                "info" if boolean(name, value)? => cli.action = Action::Info,
                "v" | "version" | "info" => {}
                _ => return Err(UsageError::Unknown(name.to_owned())),
            }
            if matches!(cli.action, Action::Version | Action::Info) {
                return Ok(cli);
            }
        }
        cli.check()
    }

    fn check(self) -> Result<Self, UsageError> {
        for (flag, value) in [("namespace", &self.namespace), ("id", &self.id)] {
            if value.is_empty() {
                return Err(UsageError::Missing(flag));
            }
            if !is_identifier(value) {
                return Err(UsageError::Identifier {
                    flag,
                    value: value.clone(),
                });
            }
        }
        Ok(self)
    }
}

/// Name of a flag and its value, if it is attached.
fn flag(argument: &str) -> Option<(&str, Option<&str>)> {
    let name = argument.strip_prefix('-')?;
    let name = name.strip_prefix('-').unwrap_or(name);
    if name.is_empty() {
        return None;
    }
    Some(match name.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (name, None),
    })
}

fn action(name: &str) -> Result<Action, UsageError> {
    match name {
        "start" => Ok(Action::Start),
        "delete" => Ok(Action::Delete),
        _ => Err(UsageError::Action(name.to_owned())),
    }
}

/// A boolean as Go reads it.
fn boolean(flag: &str, value: Option<&str>) -> Result<bool, UsageError> {
    match value {
        None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(value) => Err(UsageError::NotBoolean {
            flag: flag.to_owned(),
            value: value.to_owned(),
        }),
    }
}

/// What containerd takes for an identifier: letters and digits, with single
/// `.`, `_` and `-` between them. It becomes part of paths.
pub(crate) fn is_identifier(text: &str) -> bool {
    let separator = |c: char| matches!(c, '.' | '_' | '-');
    !text.is_empty()
        && text.len() <= 128
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || separator(c))
        && !text.starts_with(separator)
        && !text.ends_with(separator)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, UsageError> {
        Cli::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn containerds_command_lines_are_understood() {
        let line = "-namespace k8s.io -address /run/containerd/containerd.sock \
                    -publish-binary /usr/bin/containerd -id abc -debug start";
        let start = parse(line).unwrap();
        assert_eq!(start.action, Action::Start);
        assert_eq!(start.namespace, "k8s.io");
        assert_eq!(start.id, "abc");
        assert_eq!(start.address, "/run/containerd/containerd.sock");
        assert!(start.debug);

        let delete = parse("-namespace default -id abc -bundle /run/b delete").unwrap();
        assert_eq!(delete.action, Action::Delete);
        assert_eq!(delete.bundle, Some("/run/b".into()));
        assert!(!delete.debug);
        let serve = parse("-namespace default -id abc").unwrap();
        assert_eq!(serve.action, Action::Serve);
    }

    #[test]
    fn flags_have_the_forms_of_go() {
        let both = parse("--namespace=a -id=b -debug=false -debug=true delete").unwrap();
        assert_eq!((both.namespace.as_str(), both.id.as_str()), ("a", "b"));
        assert!(both.debug);
        assert!(!parse("-namespace a -id b -debug=0 start").unwrap().debug);
    }

    #[test]
    fn version_and_info_need_nothing_else() {
        for (line, action) in [
            ("-v", Action::Version),
            ("--version", Action::Version),
            ("-info", Action::Info),
        ] {
            assert_eq!(parse(line).unwrap().action, action, "{line}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for (line, message) in [
            ("-wrong x", "flag provided but not defined: -wrong"),
            ("-namespace", "flag needs an argument: -namespace"),
            ("-namespace a -id b stop", "unknown action \"stop\""),
            ("-id b start", "-namespace is missing"),
            ("-namespace a start", "-id is missing"),
            (
                "-namespace a -id ../b start",
                "-id \"../b\": not an identifier",
            ),
            ("-debug=maybe", "invalid boolean value \"maybe\" for -debug"),
        ] {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.starts_with(message), "{line}: {error}");
        }
    }
}
