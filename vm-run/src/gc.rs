//! `vm-run gc`: what killed ones have left of their networks, removed.

use std::io::{self, Write};
use std::process::ExitCode;

use crate::logger;
use crate::network::{self, Leftover, NetworkError};

/// Prints a line for each pod that something was left of; fails when something stays.
pub(crate) fn run() -> ExitCode {
    match collect() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            logger::say(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Says whether nothing is left.
fn collect() -> Result<bool, NetworkError> {
    let mut all = true;
    let mut output = io::stdout().lock();
    for Leftover { id, removed } in network::collect()? {
        match removed {
            // The exit status remains when nobody reads the lines.
            Ok(true) => drop(writeln!(output, "removed what was left of {id}")),
            Ok(false) => {}
            Err(error) => {
                all = false;
                logger::say(&format!("what is left of {id} stays: {error}"));
            }
        }
    }
    Ok(all)
}
