//! Pods that containerd has started, looked at: nothing here changes one.
//!
//! Their shims are asked, each over the socket of its [entry](nacre_pod::status::Entry).

pub(crate) mod cli;
mod console;
mod find;
mod metrics;
pub(crate) mod processes;
mod table;
mod trace;

use std::io::{self, Write};
use std::process::ExitCode;

use nacre_pod::status::{self, AskError};
use thiserror::Error;

use self::cli::{LogsArgs, PodVerb};
use crate::{launch, logger};

/// Why a pod cannot be looked at.
#[derive(Debug, Error)]
pub(crate) enum PodsError {
    #[error("no pod {0:?} on this host (`vm-run pods` lists them)")]
    Missing(String),
    #[error("{word:?} may be any of these pods: {pods}")]
    Ambiguous { word: String, pods: String },
    #[error("pod {pod}: {source}")]
    Silent { pod: String, source: AskError },
    #[error("pod {0}: its shim answers nonsense")]
    Nonsense(String),
    #[error("cannot list pods: {}: {source}", status::PODS)]
    List { source: io::Error },
    #[error("cannot write {what}: {source}")]
    Write { what: String, source: io::Error },
    #[error("cannot ask pods: {0}")]
    Runtime(io::Error),
}

/// Carries out a verb.
pub(crate) fn run(verb: &PodVerb, debug: bool) -> ExitCode {
    logger::start(debug);
    let done = launch::runtime()
        .map_err(PodsError::Runtime)
        .and_then(|runtime| runtime.block_on(carry_out(verb)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            logger::say(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

async fn carry_out(verb: &PodVerb) -> Result<(), PodsError> {
    match verb {
        PodVerb::Pods(args) => table::pods(args).await,
        PodVerb::Metrics(args) => metrics::metrics(args).await,
        PodVerb::Trace(args) => trace::trace(args).await,
        PodVerb::Console(args) => console::console(args).await,
        PodVerb::Logs(args) => logs(args).await,
    }
}

async fn logs(args: &LogsArgs) -> Result<(), PodsError> {
    let pod = find::one(&args.pod)?;
    let log = find::ask(&pod, status::LOG, args.patience.limit()).await?;
    print(&String::from_utf8_lossy(&log))
}

/// Writes to standard output.
fn print(text: &str) -> Result<(), PodsError> {
    let mut output = io::stdout().lock();
    let written = output.write_all(text.as_bytes());
    written
        .and_then(|()| output.flush())
        .map_err(|source| PodsError::Write {
            what: "standard output".into(),
            source,
        })
}
