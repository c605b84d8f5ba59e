//! Creates a container: bundle, cgroup, stdio, and the helper that builds it.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nacre_protocol::agent::{CreateContainerRequest, Stdio};

use super::Container;
use super::build::CONFIG;
use super::cgroup::Cgroup;
use super::helper_process::{HelperProcess, Role};
use super::id::Id;
use super::process::Process;
use super::report::BuildRequest;
use super::stdio::{self, ClaimedStreams};
use super::{Guest, paths};
use crate::error::{Doing, Error};

/// Creates the container of a request. Leaves nothing behind when it fails.
pub(super) async fn create(
    guest: &Guest,
    id: &Id,
    request: &CreateContainerRequest,
) -> Result<Container, Error> {
    let stdio = request.stdio.clone().unwrap_or_default();
    let streams = ClaimedStreams::claim(&stdio, &guest.streams).await?;
    let cgroup = Cgroup::of(id);
    let bundle = Bundle::write(paths::bundle(id), &request.spec)?;
    let built = match cgroup.create().doing("cannot make the container's cgroup") {
        Ok(()) => build(guest, id, &stdio, streams, &cgroup).await,
        Err(error) => Err(error),
    };
    match built {
        Ok((init, verdict)) => Ok(Container::new(
            id.clone(),
            init,
            verdict,
            cgroup,
            bundle.keep(),
        )),
        Err(error) => {
            if let Err(left) = cgroup.remove().await {
                log::error!("cannot remove the cgroup of {}: {left}", id.as_str());
            }
            Err(error)
        }
    }
}

/// The container's directory, removed when dropped.
struct Bundle(PathBuf);

impl Bundle {
    fn write(path: PathBuf, spec: &[u8]) -> Result<Self, Error> {
        fs::create_dir_all(&path).doing("cannot make the container's directory")?;
        let bundle = Self(path);
        fs::write(bundle.0.join(CONFIG), spec).doing("cannot write the specification")?;
        Ok(bundle)
    }

    fn keep(self) -> PathBuf {
        let path = self.0.clone();
        std::mem::forget(self);
        path
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        super::remove_bundle(&self.0);
    }
}

async fn build(
    guest: &Guest,
    id: &Id,
    stdio: &Stdio,
    streams: ClaimedStreams,
    cgroup: &Cgroup,
) -> Result<(Process, OwnedFd), Error> {
    let (child_stdio, kept) = stdio::prepare(stdio, streams)?;
    let helper = HelperProcess::spawn(guest, Role::BuildContainer, child_stdio)?;
    let request = BuildRequest {
        id: id.as_str().to_owned(),
        terminal: stdio.terminal,
        terminal_size: stdio::terminal_size(stdio),
    };
    let built = helper.build(&request, &[]).await?;
    built.adopt(helper, kept, cgroup)
}
