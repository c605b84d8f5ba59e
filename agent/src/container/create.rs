//! Creates a container: bundle, cgroup, stdio, and the helper that builds it.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use nacre_protocol::agent::{CreateContainerRequest, Stdio};

use super::build::CONFIG;
use super::cgroup::Cgroup;
use super::helper_process::{HelperProcess, Role};
use super::id::Id;
use super::pid_namespace::Choice;
use super::process::Process;
use super::report::BuildRequest;
use super::stdio::{self, ClaimedStreams};
use super::{Container, Made};
use super::{Guest, paths};
use crate::error::{Doing, Error};
use crate::volumes::Use;

/// Creates the container of a request. Leaves nothing behind when it fails.
pub(super) async fn create(
    guest: &Guest,
    id: &Id,
    request: &CreateContainerRequest,
) -> Result<Container, Error> {
    let pid_namespace = Choice::make(guest, request).await?;
    let stdio = request.stdio.clone().unwrap_or_default();
    let streams = ClaimedStreams::claim(&stdio, &guest.streams).await?;
    let directories = guest.directories.hold(request.directories.clone()).await?;
    let volumes = guest.volumes.copy(&request.copied_volumes).await?;
    let cgroup = Cgroup::of(id);
    let bundle = Bundle::write(paths::bundle(id), &request.spec)?;
    let built = match cgroup.create().doing("cannot make the container's cgroup") {
        Ok(()) => {
            let make = BuildRequest {
                id: id.as_str().to_owned(),
                terminal: stdio.terminal,
                terminal_size: stdio::terminal_size(&stdio),
                own_pid_namespace: matches!(pid_namespace, Choice::Own),
                volumes: volumes.iter().map(Use::mount).collect(),
            };
            build(guest, &make, &stdio, streams, &cgroup, &pid_namespace).await
        }
        Err(error) => Err(error),
    };
    match built {
        Ok((init, verdict)) => Ok(Container::new(
            id.clone(),
            Made {
                init,
                verdict,
                cgroup,
                bundle: bundle.keep(),
                pid_namespace: pid_namespace.held(),
                volumes,
                directories,
            },
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
    request: &BuildRequest,
    stdio: &Stdio,
    streams: ClaimedStreams,
    cgroup: &Cgroup,
    pid_namespace: &Choice,
) -> Result<(Arc<Process>, OwnedFd), Error> {
    let (child_stdio, kept) = stdio::prepare(stdio, streams)?;
    let helper = HelperProcess::spawn(guest, Role::BuildContainer, child_stdio)?;
    let fds: Vec<_> = pid_namespace.joined().into_iter().collect();
    let built = helper.build(request, &fds).await?;
    let (init, verdict) = built.adopt(helper, kept, Some(cgroup))?;
    let init = Arc::new(init);
    end_the_rest_with(&init, cgroup.clone());
    if let Choice::Hold(held) = pid_namespace {
        held.settle(&init)?;
    }
    Ok((init, verdict))
}

/// Where PIDs are shared, the kernel does not end what a container's first process leaves
/// running, which would hold its streams open. Callers of other runtimes rely on its end.
fn end_the_rest_with(init: &Arc<Process>, cgroup: Cgroup) {
    let init = Arc::clone(init);
    tokio::spawn(async move {
        if init.wait().await.is_ok()
            && let Err(error) = cgroup.kill()
        {
            log::error!("cannot end what a container left running: {error}");
        }
    });
}
