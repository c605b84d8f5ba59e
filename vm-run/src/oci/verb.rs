//! What verbs have in common: they find the keeper and ask it.

use std::time::Duration;

use super::error::OciError;
use super::state::{Home, Root, Status};
use super::wire::{self, Answer, Request};
use crate::launch;

/// How long a keeper may take to answer: longer than any call to its guest.
const PATIENCE: Duration = Duration::from_secs(90);

/// Asks the keeper of a container; a container without one is not running.
pub(crate) fn ask(home: &Home, request: &Request) -> Result<Answer, OciError> {
    let asked = || {
        let stream = home.connect()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        wire::send(&stream, request, &[])?;
        wire::receive(&stream)
    };
    match asked() {
        Ok(Some(Answer::Failed(error))) => Err(OciError::Other(error)),
        Ok(Some(answer)) => Ok(answer),
        Ok(None) => Err(OciError::NotRunning),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Err(OciError::Other(
            "the container's keeper does not answer".into(),
        )),
        Err(_) if home.record()?.status() == Status::Stopped => Err(OciError::NotRunning),
        Err(error) => Err(OciError::system("cannot ask the container's keeper")(error)),
    }
}

/// Starts a created container, and runs the hooks that are due then. When one fails, the
/// container is stopped.
pub(crate) fn start(root: &Root, id: &str) -> Result<(), OciError> {
    let home = live(root, id, OciError::HasStopped)?;
    let hooks = home.record()?.host_hooks();
    ask(&home, &Request::Start)?;
    let runtime = launch::runtime().map_err(OciError::system("cannot start"))?;
    runtime.block_on(hooks.started(None)).map_err(|error| {
        if let Err(left) = super::delete::end(&home) {
            log::error!("{left}");
        }
        OciError::Other(error.to_string())
    })
}

/// Freezes the processes of a container.
pub(crate) fn pause(root: &Root, id: &str) -> Result<(), OciError> {
    live(root, id, OciError::NotRunning).and_then(|home| ask(&home, &Request::Pause).map(drop))
}

/// Lets the processes of a paused container go on.
pub(crate) fn resume(root: &Root, id: &str) -> Result<(), OciError> {
    live(root, id, OciError::NotPaused).and_then(|home| ask(&home, &Request::Resume).map(drop))
}

/// Opens a container that has not stopped; of one that has, says `stopped`.
pub(crate) fn live(root: &Root, id: &str, stopped: OciError) -> Result<Home, OciError> {
    let home = root.open(id)?;
    match home.record()?.status() {
        Status::Stopped => Err(stopped),
        _ => Ok(home),
    }
}
