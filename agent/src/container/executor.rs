//! The last step of a container's first process: executing the workload.
//!
//! Takes the place of libcontainer's own executor, which reports a failure as
//! text only and exits with 255, keeps the agent's ignored SIGPIPE, and loses
//! the order of the environment.

use std::collections::HashMap;
use std::ffi::CString;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use nix::sys::signal::{SigHandler, SigSet, Signal};
use oci_spec::runtime::{Process, Spec};
use rustix::fs::{Mode, OFlags};
use std::fs::File;

use super::lookup::{self, LookupError};
use super::null;
use super::report::Failure;
use super::start_hooks::StartHooks;

/// Executes the process of a specification and says on a pipe why it could not.
///
/// The pipe's writing end closes on exec, so its reader sees an end of file
/// once the workload runs.
#[derive(Clone)]
pub(super) struct WorkloadExecutor {
    verdict: Arc<File>,
    hooks: StartHooks,
}

impl WorkloadExecutor {
    /// An executor that runs hooks first, and reports to the writing end of a pipe.
    pub(super) fn new(verdict: File, hooks: StartHooks) -> Self {
        Self {
            verdict: Arc::new(verdict),
            hooks,
        }
    }

    fn report(&self, failure: &Failure) {
        if let Ok(text) = serde_json::to_vec(failure) {
            // The exit status still tells when the pipe has no reader.
            let _ = (&*self.verdict).write_all(&text);
        }
    }
}

impl Executor for WorkloadExecutor {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        null::replace(open_null).map_err(|error| {
            ExecutorValidationError::ArgValidationError(format!("{}: {error}", null::NULL))
        })?;
        let found = spec.process().as_ref().and_then(command);
        let (command, env) = found.ok_or_else(|| {
            ExecutorValidationError::ArgValidationError("process.args is empty".to_owned())
        })?;
        lookup::find(command, env).map_err(|error| {
            self.report(&Failure::invalid(&error));
            ExecutorValidationError::ArgValidationError(error.to_string())
        })?;
        Ok(())
    }

    /// The environment is handed to `execve` as the specification has it.
    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let process = spec.process().as_ref();
        let env = process.and_then(|process| process.env().as_deref());
        if let Err(failure) = self.hooks.run(env.unwrap_or_default()) {
            self.report(&failure);
            std::process::exit(1);
        }
        let error = match process {
            Some(process) => execute(process),
            None => LookupError::NotInPath(String::new()),
        };
        self.report(&Failure::invalid(&error));
        // Returning would make libcontainer exit with 255.
        std::process::exit(error.shell_status());
    }
}

fn command(process: &Process) -> Option<(&str, &[String])> {
    let command = process.args().as_ref()?.first()?;
    let env = process.env().as_deref().unwrap_or_default();
    Some((command, env))
}

/// Executes the workload; comes back only with the reason why not.
pub(super) fn execute(process: &Process) -> LookupError {
    let Some((command, env)) = command(process) else {
        return LookupError::NotInPath(String::new());
    };
    let file = match lookup::find(command, env) {
        Ok(file) => file,
        Err(error) => return error,
    };
    let (Some(path), Some(args), Some(env)) = (
        lookup::c_path(&file),
        c_strings(process.args().as_deref().unwrap_or_default()),
        c_strings(env),
    ) else {
        return LookupError::Refused(command.to_owned(), "contains a zero byte".to_owned());
    };
    reset_signals();
    match nix::unistd::execve(&path, &args, &env) {
        Ok(never) => match never {},
        Err(error) => LookupError::from_exec(command, error),
    }
}

fn open_null() -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(null::NULL, flags, Mode::empty())?)
}

fn c_strings(strings: &[String]) -> Option<Vec<CString>> {
    strings
        .iter()
        .map(|string| CString::new(string.as_bytes()).ok())
        .collect()
}

/// Rust programs ignore SIGPIPE, and what is ignored stays so over `execve`.
fn reset_signals() {
    // SAFETY: the default disposition runs no code of ours.
    let _ = unsafe { nix::sys::signal::signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    let _ = SigSet::empty().thread_set_mask();
}
