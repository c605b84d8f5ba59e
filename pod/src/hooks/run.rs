//! Runs programs of hooks, each with the container's state on its standard input.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use oci_spec::runtime::{Hook, Hooks, State};
use rustix::process::{Pid, Signal, kill_process_group};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};

use crate::host::RuntimeNamespaces;
use crate::text::one_line;

/// Most bytes of a hook's standard error that are kept, the last ones.
const SAID: usize = 4096;

/// How long what a hook has left running may keep its standard error from being read.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// When hooks run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Moment {
    /// Before those of [`Moment::CreateRuntime`]; deprecated.
    Prestart,
    /// While the container is being created, before its root is.
    CreateRuntime,
    /// Once the container's program runs.
    Poststart,
    /// Once the container is deleted.
    Poststop,
}

impl Moment {
    /// The hooks of this moment, in their order.
    pub(super) fn of(self, hooks: &Hooks) -> &[Hook] {
        let hooks = match self {
            Self::Prestart => hooks.prestart(),
            Self::CreateRuntime => hooks.create_runtime(),
            Self::Poststart => hooks.poststart(),
            Self::Poststop => hooks.poststop(),
        };
        hooks.as_deref().unwrap_or_default()
    }

    fn field(self) -> &'static str {
        match self {
            Self::Prestart => "hooks.prestart",
            Self::CreateRuntime => "hooks.createRuntime",
            Self::Poststart => "hooks.poststart",
            Self::Poststop => "hooks.poststop",
        }
    }
}

/// A hook that failed.
#[derive(Debug, Error)]
#[error("{field}: {}: {reason}", path.display())]
pub struct HookError {
    /// Its place in the specification, such as `hooks.createRuntime[1]`.
    pub field: String,
    /// Its program.
    pub path: PathBuf,
    /// What happened, and what it said.
    pub reason: String,
}

/// Runs the hooks of a moment, one after the other, up to the first that fails.
///
/// They run in `namespaces`, or in the caller's own, with the bundle as their working
/// directory. Dropping the future kills the one that runs.
///
/// # Errors
/// [`HookError`] of that hook.
pub(super) async fn run(
    moment: Moment,
    hooks: &Hooks,
    state: &State,
    namespaces: Option<&Arc<RuntimeNamespaces>>,
) -> Result<(), HookError> {
    for number in 0..moment.of(hooks).len() {
        run_one(moment, number, hooks, state, namespaces).await?;
    }
    Ok(())
}

/// Runs all hooks of a moment; of one that fails, the log tells.
pub(super) async fn run_each(
    moment: Moment,
    hooks: &Hooks,
    state: &State,
    namespaces: Option<&Arc<RuntimeNamespaces>>,
) {
    for number in 0..moment.of(hooks).len() {
        if let Err(error) = run_one(moment, number, hooks, state, namespaces).await {
            log::warn!("{error}");
        }
    }
}

async fn run_one(
    moment: Moment,
    number: usize,
    hooks: &Hooks,
    state: &State,
    namespaces: Option<&Arc<RuntimeNamespaces>>,
) -> Result<(), HookError> {
    let Some(hook) = moment.of(hooks).get(number) else {
        return Ok(());
    };
    let field = format!("{}[{number}]", moment.field());
    log::debug!("{field}: {}", hook.path().display());
    execute(hook, state, namespaces)
        .await
        .map_err(|reason| HookError {
            field,
            path: hook.path().clone(),
            reason,
        })
}

async fn execute(
    hook: &Hook,
    state: &State,
    namespaces: Option<&Arc<RuntimeNamespaces>>,
) -> Result<(), String> {
    let told = serde_json::to_vec(state).map_err(|error| error.to_string())?;
    let spawned = command(hook, state.bundle(), namespaces).and_then(|mut it| it.spawn());
    let mut running = Running(spawned.map_err(|error| error.to_string())?);
    let (stdin, stderr) = (running.0.stdin.take(), running.0.stderr.take());
    let mut said = Vec::new();
    let end = async {
        let talk = async { tokio::join!(tell(stdin, &told), listen(stderr, &mut said)) };
        tokio::pin!(talk);
        let (status, heard) = tokio::select! {
            status = running.0.wait() => (status, false),
            _ = &mut talk => (running.0.wait().await, true),
        };
        if !heard {
            // Something it has left running may have its standard error.
            let _ = tokio::time::timeout(LAST_WORDS, talk).await;
        }
        status
    };
    let limit = limit_of(hook);
    let end = tokio::time::timeout(limit.unwrap_or(Duration::MAX), end).await;
    drop(running);
    let failed = match end {
        Ok(Ok(status)) if status.success() => return Ok(()),
        Ok(Ok(status)) => describe(status),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!(
            "not done within {} s, and killed",
            limit.unwrap_or_default().as_secs()
        ),
    };
    match one_line(&String::from_utf8_lossy(&said)) {
        said if said.is_empty() => Err(failed),
        said => Err(format!("{failed}: {said}")),
    }
}

fn limit_of(hook: &Hook) -> Option<Duration> {
    let seconds = u64::try_from(hook.timeout()?).ok()?;
    Some(Duration::from_secs(seconds))
}

fn describe(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("exit status {code}"),
        None => status.to_string(),
    }
}

fn command(
    hook: &Hook,
    bundle: &Path,
    namespaces: Option<&Arc<RuntimeNamespaces>>,
) -> io::Result<Command> {
    let mut command = Command::new(hook.path());
    if let Some((name, args)) = hook.args().as_deref().and_then(<[String]>::split_first) {
        command.arg0(name).args(args);
    }
    if let Some(env) = hook.env() {
        let variables = env.iter().filter_map(|variable| variable.split_once('='));
        command.env_clear().envs(variables);
    }
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let bundle = CString::new(bundle.as_os_str().as_bytes())?;
    let namespaces = namespaces.cloned();
    let settle = move || {
        if let Some(namespaces) = &namespaces {
            namespaces.enter()?;
            namespaces.enter_cgroup()?;
        }
        // A bundle may go before its container's hooks do.
        rustix::process::chdir(bundle.as_c_str()).or_else(|_| rustix::process::chdir(c"/"))?;
        Ok(())
    };
    // SAFETY: only system calls on what was opened and allocated before.
    unsafe { command.pre_exec(settle) };
    Ok(command)
}

/// Hands the state over. A hook need not read it.
async fn tell(stdin: Option<ChildStdin>, state: &[u8]) {
    if let Some(mut stdin) = stdin
        && let Err(error) = stdin.write_all(state).await
    {
        log::debug!("a hook does not read the state: {error}");
    }
}

/// Reads to the end, and keeps what was said last.
async fn listen(stderr: Option<impl AsyncRead + Unpin>, said: &mut Vec<u8>) {
    let Some(mut stderr) = stderr else { return };
    let mut chunk = [0; 1024];
    while let Ok(count @ 1..) = stderr.read(&mut chunk).await {
        said.extend_from_slice(chunk.get(..count).unwrap_or_default());
        let excess = said.len().saturating_sub(SAID);
        said.drain(..excess);
    }
}

/// A hook that runs. Dropping it kills it, with all that it has started.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // None once its end was seen.
        let pid = self.0.id().and_then(|pid| i32::try_from(pid).ok());
        if let Some(group) = pid.and_then(Pid::from_raw) {
            // It may have ended meanwhile; as long as nobody has asked, the number is its own.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

#[cfg(test)]
#[path = "run_test.rs"]
mod tests;
