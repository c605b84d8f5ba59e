//! What the last step before the workload says: nothing when the workload runs,
//! else why it does not.

use std::io;
use std::os::fd::OwnedFd;

use super::report::Failure;
use crate::error::{Doing, Error};
use crate::streams::PipeOrTerminal;

/// Bytes of a verdict on a workload.
const MAX_VERDICT: usize = 16 * 1024;

/// Waits for the verdict.
///
/// # Errors
/// The failure that the pipe tells of.
pub(super) async fn read(pipe: OwnedFd) -> Result<(), Error> {
    let doing = "cannot start the process";
    let verdict = read_bounded(pipe).await.doing(doing)?;
    if verdict.is_empty() {
        return Ok(());
    }
    let failure: Failure = serde_json::from_slice(&verdict)
        .map_err(|error| Error::internal("cannot read why the start failed", error))?;
    Err(failure.into())
}

async fn read_bounded(pipe: OwnedFd) -> io::Result<Vec<u8>> {
    let pipe = PipeOrTerminal::new(pipe)?;
    let mut text = Vec::new();
    let mut chunk = [0; 1024];
    while text.len() < MAX_VERDICT {
        let count = pipe.read(&mut chunk).await?;
        if count == 0 {
            break;
        }
        text.extend_from_slice(chunk.get(..count).unwrap_or_default());
    }
    Ok(text)
}
