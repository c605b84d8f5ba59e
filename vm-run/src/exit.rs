//! What `vm-run` ends with.
//!
//! The status of a container is its own; whatever fails before it has one is a
//! status of 1 and one message that begins with `vm-run:`, as with runc.

use std::process::ExitCode;

use crate::launch::RunError;
use crate::logger;

/// Ends as the container did, or says why there was none.
pub(crate) fn status(result: Result<u8, RunError>) -> ExitCode {
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            logger::say(&error.to_string());
            ExitCode::from(error.status())
        }
    }
}

/// Explains the command line, on request or because it is wrong.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    // Nothing can be done when it cannot be printed.
    let _ = error.print();
    if error.use_stderr() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
