//! Finds the file to execute the way a shell does, and says why not.
//!
//! This runs in the container, as its user, after all its mounts are made: only
//! there it is known what a path means. The messages are those that users know;
//! the host tells 127 from 126 by [`LookupError::is_missing`]'s words.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, FileType, accessat, stat};
use rustix::io::Errno;
use thiserror::Error;

/// Where commands are looked for when the process has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a command cannot be executed.
#[derive(Debug, Error, Eq, PartialEq)]
pub(crate) enum LookupError {
    /// A command without a slash is in no directory of `PATH`.
    #[error("exec: {0:?}: executable file not found in $PATH")]
    NotInPath(String),
    /// A path leads to nothing.
    #[error("exec: {0:?}: no such file or directory")]
    Missing(String),
    /// The file is there, but its user may not execute it.
    #[error("exec: {0:?}: permission denied")]
    NotPermitted(String),
    /// A directory cannot be executed.
    #[error("exec: {0:?}: is a directory")]
    IsDirectory(String),
    /// The kernel refuses the file, for instance as of no known format.
    #[error("exec: {0:?}: {1}")]
    Refused(String, String),
}

/// Status of a shell whose command was not found.
const STATUS_MISSING: i32 = 127;

/// Status of a shell whose command could not be executed.
const STATUS_NOT_EXECUTABLE: i32 = 126;

impl LookupError {
    /// What a shell's exit status would be.
    pub(crate) fn shell_status(&self) -> i32 {
        match self {
            Self::NotInPath(_) | Self::Missing(_) => STATUS_MISSING,
            Self::NotPermitted(_) | Self::IsDirectory(_) | Self::Refused(..) => {
                STATUS_NOT_EXECUTABLE
            }
        }
    }

    /// What an error of `execve` means for `command`.
    pub(crate) fn from_exec(command: &str, error: nix::Error) -> Self {
        let command = command.to_owned();
        match error {
            nix::Error::ENOENT | nix::Error::ENOTDIR => Self::Missing(command),
            nix::Error::EACCES | nix::Error::EPERM => Self::NotPermitted(command),
            nix::Error::ENOEXEC => Self::Refused(command, "exec format error".to_owned()),
            other => Self::Refused(command, io::Error::from(other).to_string()),
        }
    }
}

/// The file that `command` means with the environment `env`.
pub(crate) fn find(command: &str, env: &[String]) -> Result<PathBuf, LookupError> {
    if command.contains('/') {
        return check(Path::new(command), command).map(|()| PathBuf::from(command));
    }
    let mut best = LookupError::NotInPath(command.to_owned());
    for directory in search_path(env).split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        let candidate = Path::new(directory).join(command);
        match check(&candidate, command) {
            Ok(()) => return Ok(candidate),
            Err(error @ LookupError::NotPermitted(_)) => best = error,
            Err(_) => {}
        }
    }
    Err(best)
}

/// The last `PATH` of an environment, as `execve` would pass it on.
fn search_path(env: &[String]) -> &str {
    env.iter()
        .rev()
        .find_map(|entry| entry.strip_prefix("PATH="))
        .unwrap_or(DEFAULT_PATH)
}

fn check(file: &Path, command: &str) -> Result<(), LookupError> {
    let command = || command.to_owned();
    let status = match stat(file) {
        Ok(status) => status,
        Err(Errno::ACCESS) => return Err(LookupError::NotPermitted(command())),
        Err(_) => return Err(LookupError::Missing(command())),
    };
    if FileType::from_raw_mode(status.st_mode) == FileType::Directory {
        return Err(LookupError::IsDirectory(command()));
    }
    match accessat(CWD, file, Access::EXEC_OK, AtFlags::EACCESS) {
        Err(Errno::ACCESS) => Err(LookupError::NotPermitted(command())),
        // A seccomp profile may forbid to ask; execve will tell.
        _ => Ok(()),
    }
}

/// The file's name for `execve`.
pub(crate) fn c_path(file: &Path) -> Option<CString> {
    CString::new(file.as_os_str().as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn file(&self, name: &str, mode: u32) -> String {
            let path = self.0.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "#!/bin/sh\n").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path.to_str().unwrap().to_owned()
        }

        fn env(&self, directories: &[&str]) -> Vec<String> {
            let path: Vec<_> = directories
                .iter()
                .map(|name| self.0.path().join(name).to_str().unwrap().to_owned())
                .collect();
            vec![
                "PATH=/nonexistent".to_owned(),
                format!("PATH={}", path.join(":")),
            ]
        }
    }

    #[test]
    fn the_first_executable_in_the_last_path_is_found() {
        let place = Place::new();
        place.file("a/tool", 0o644);
        let good = place.file("b/tool", 0o755);
        place.file("c/tool", 0o755);
        let found = find("tool", &place.env(&["a", "b", "c"])).unwrap();
        assert_eq!(found, Path::new(&good));
    }

    #[test]
    fn a_missing_command_reads_and_counts_as_not_found() {
        let place = Place::new();
        let error = find("tool", &place.env(&["a"])).unwrap_err();
        assert_eq!(
            error.to_string(),
            r#"exec: "tool": executable file not found in $PATH"#
        );
        assert_eq!(error.shell_status(), 127);
        let error = find("/no/such/tool", &[]).unwrap_err();
        assert_eq!(
            error.to_string(),
            r#"exec: "/no/such/tool": no such file or directory"#
        );
        assert_eq!(error.shell_status(), 127);
    }

    #[test]
    fn a_dangling_link_is_a_missing_file() {
        let place = Place::new();
        let link = place.0.path().join("link");
        symlink("/no/such/tool", &link).unwrap();
        let error = find(link.to_str().unwrap(), &[]).unwrap_err();
        assert_eq!(error.shell_status(), 127);
    }

    #[test]
    fn what_may_not_be_executed_reads_and_counts_as_such() {
        let place = Place::new();
        let file = place.file("a/tool", 0o644);
        for command in [file.as_str(), "tool"] {
            let error = find(command, &place.env(&["a"])).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("exec: {command:?}: permission denied")
            );
            assert_eq!(error.shell_status(), 126);
        }
        let directory = place.0.path().to_str().unwrap();
        let error = find(directory, &[]).unwrap_err();
        assert_eq!(error, LookupError::IsDirectory(directory.to_owned()));
        assert_eq!(error.shell_status(), 126);
    }

    #[test]
    fn an_error_of_the_kernel_keeps_its_meaning() {
        let status = |error| LookupError::from_exec("x", error).shell_status();
        assert_eq!(status(nix::Error::ENOENT), 127);
        assert_eq!(status(nix::Error::EACCES), 126);
        assert_eq!(status(nix::Error::ENOEXEC), 126);
    }
}
