//! The manual pages, made of what `--help` says, for packages.

use std::process::ExitCode;

use clap::CommandFactory;

use crate::cli::{Cli, ManualArgs};
use crate::logger;

/// Writes a page for `vm-run` and one for each verb.
pub(crate) fn write(args: &ManualArgs) -> ExitCode {
    match clap_mangen::generate_to(Cli::command(), &args.dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let dir = args.dir.display();
            logger::say(&format!("cannot write manual pages into {dir}: {error}"));
            ExitCode::FAILURE
        }
    }
}
