//! The agent's side of an exec.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use nacre_protocol::agent::ExecRequest;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::Signal;
use tokio::time::timeout;

use crate::container::helper_process::{HelperProcess, Role};
use crate::container::id::Id;
use crate::container::process::Process;
use crate::container::report::JoinRequest;
use crate::container::stdio::{self, ClaimedStreams};
use crate::container::table::Table;
use crate::container::{Container, Guest, verdict};
use crate::error::{Doing, Error};

/// Execs of one container that are known at a time.
const MAX_EXECS: usize = 512;

/// How long the process may take from its making to its program.
const EXECUTING: Duration = Duration::from_secs(60);

/// The execs of one container, those that have ended included until they are
/// deleted.
pub(in crate::container) struct Execs {
    table: Table<Process>,
}

impl Execs {
    /// None, for a container that begins.
    pub(in crate::container) fn new(container: &Id) -> Self {
        let of = format!(" of container {:?}", container.as_str());
        Self {
            table: Table::new("process", of, MAX_EXECS),
        }
    }

    /// The process with this identifier.
    pub(in crate::container) fn get(&self, id: &str) -> Result<Arc<Process>, Error> {
        self.table.get(&exec_id(id)?)
    }

    /// Forgets a process that has ended.
    pub(in crate::container) fn delete(&self, id: &str) -> Result<(), Error> {
        let taken = self.table.take(&exec_id(id)?, |process| {
            if process.exit().is_some() {
                return Ok(());
            }
            let message = format!("process {id:?} is running");
            Err(Error::FailedPrecondition(message))
        });
        taken.map(drop)
    }
}

fn exec_id(id: &str) -> Result<Id, Error> {
    Id::parse(id, "exec_id")
}

/// Starts the process of a request in a container that has not ended, and gives its
/// identifier. Leaves nothing behind when it fails.
pub(in crate::container) async fn exec(
    guest: &Guest,
    container: &Container,
    request: &ExecRequest,
) -> Result<i32, Error> {
    let id = exec_id(&request.exec_id)?;
    let reservation = container.execs.table.reserve(&id)?;
    container.check_lives()?;
    if container.freezer.is_paused() {
        return Err(container.precondition("is paused"));
    }
    let process = start(guest, container, request).await?;
    let pid = process.pid();
    reservation.keep(Arc::new(process));
    Ok(pid)
}

async fn start(
    guest: &Guest,
    container: &Container,
    request: &ExecRequest,
) -> Result<Process, Error> {
    let stdio = request.stdio.clone().unwrap_or_default();
    let streams = ClaimedStreams::claim(&stdio, &guest.streams).await?;
    let (child_stdio, kept) = stdio::prepare(&stdio, streams)?;
    let helper = HelperProcess::spawn(guest, Role::Exec, child_stdio)?;
    let specification = in_memory(&request.process)?;
    let join = JoinRequest {
        id: container.id.as_str().to_owned(),
        init: container.init.pid(),
        terminal: stdio.terminal,
        terminal_size: stdio::terminal_size(&stdio),
    };
    let fds = [container.init.pidfd(), specification.as_fd()];
    let built = helper.build(&join, &fds).await?;
    let (process, verdict) = built.adopt(helper, kept, Some(&container.cgroup))?;
    let executed = match timeout(EXECUTING, verdict::read(verdict)).await {
        Ok(executed) => executed,
        Err(_late) => Err(Error::Internal(format!(
            "the process was not executed within {EXECUTING:?}"
        ))),
    };
    if executed.is_err() {
        // It has ended by itself unless it hangs.
        let _ = process.signal(Signal::KILL);
    }
    executed.map(|()| process)
}

/// A file for what may be too long for a message.
fn in_memory(bytes: &[u8]) -> Result<File, Error> {
    let doing = "cannot pass the process on";
    let mut file = File::from(memfd_create("process", MemfdFlags::CLOEXEC).doing(doing)?);
    file.write_all(bytes).doing(doing)?;
    Ok(file)
}
