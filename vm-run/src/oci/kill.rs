//! `kill`.

use super::cli::KillArgs;
use super::error::OciError;
use super::signal_name;
use super::state::Root;
use super::verb;
use super::wire::Request;

/// Sends a signal to a container.
pub(crate) fn kill(root: &Root, args: &KillArgs) -> Result<(), OciError> {
    let number =
        signal_name::number(&args.signal).ok_or_else(|| OciError::Signal(args.signal.clone()))?;
    let home = verb::live(root, &args.container.id, OciError::NotRunning)?;
    let request = Request::Signal {
        number,
        all: args.all,
    };
    verb::ask(&home, &request).map(drop)
}
