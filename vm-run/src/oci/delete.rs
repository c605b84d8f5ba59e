//! `delete`.

use std::time::Duration;

use nacre_pod::cgroup::HostCgroup;

use super::cli::DeleteArgs;
use super::error::OciError;
use super::state::{Home, Record, Root, Status};
use super::verb;
use super::wire::Request;
use crate::launch;

/// How long a keeper may take to end after its container, before it is killed. Output
/// that nobody reads is given up, and a guest that does not power off is killed, in less.
const KEEPER_ENDS: Duration = Duration::from_secs(20);

/// How long a process may take to end after SIGKILL.
const KILLED: Duration = Duration::from_secs(10);

/// Removes what is left of a container.
pub(crate) fn delete(root: &Root, args: &DeleteArgs) -> Result<(), OciError> {
    let id = &args.container.id;
    if args.force {
        return force(root, id);
    }
    let home = root.open(id)?;
    home.lock()?;
    let record = home.record()?;
    match record.status() {
        Status::Stopped => {}
        Status::Created => end(&home)?,
        status => {
            return Err(OciError::NotStopped {
                id: id.clone(),
                status,
            });
        }
    }
    remove(&home, &record)
}

/// Removes a container in whatever state it is, if there is one.
pub(crate) fn force(root: &Root, id: &str) -> Result<(), OciError> {
    let removed = || {
        let home = root.open(id)?;
        home.lock()?;
        let record = home.record()?;
        if record.status() != Status::Stopped {
            end(&home)?;
        }
        remove(&home, &record)
    };
    match removed() {
        Err(OciError::Missing) => Ok(()),
        result => result,
    }
}

/// Kills the container: its process first, so that the guest can write back what it has
/// cached of the share; its keeper, if that does not help.
pub(super) fn end(home: &Home) -> Result<(), OciError> {
    let request = Request::Signal {
        number: libc::SIGKILL.unsigned_abs(),
        all: true,
    };
    match verb::ask(home, &request) {
        Ok(_) | Err(OciError::NotRunning) => Ok(()),
        Err(error) => {
            log::debug!("{error}");
            let keeper = home.record()?.keeper;
            keeper
                .kill()
                .map_err(OciError::system("cannot kill the container's keeper"))
        }
    }
}

/// Undoes what was made for a container that ends, and runs the hooks that are due then.
fn remove(home: &Home, record: &Record) -> Result<(), OciError> {
    let failed = || OciError::system("cannot wait for the container's keeper");
    let keeper = record.keeper;
    if !keeper.wait(KEEPER_ENDS).map_err(failed())? {
        keeper.kill().map_err(failed())?;
        if !keeper.wait(KILLED).map_err(failed())? {
            return Err(OciError::Other(
                "the container's keeper cannot be killed".into(),
            ));
        }
    }
    if let Some(path) = &record.cgroup {
        // One that was killed has left it.
        HostCgroup::remove(path);
    }
    if let Err(OciError::Missing) = home.record() {
        // Its keeper has seen to the rest.
        return Ok(());
    }
    home.remove()
        .map_err(OciError::system("cannot remove the container's state"))?;
    let runtime = launch::runtime().map_err(OciError::system("cannot run hooks"))?;
    runtime.block_on(record.host_hooks().deleted(None));
    Ok(())
}
