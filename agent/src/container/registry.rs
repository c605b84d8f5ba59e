//! The containers of the guest.

use std::sync::Arc;

use nacre_protocol::agent::{CreateContainerRequest, ExecRequest, ProcessDetails};

use super::id::Id;
use super::table::Table;
use super::{Container, Guest, create, exec};
use crate::error::Error;

/// Containers of one pod.
const MAX_CONTAINERS: usize = 512;

/// All containers, and what they share.
pub(crate) struct Registry {
    guest: Guest,
    containers: Table<Container>,
}

impl Registry {
    /// A registry without containers.
    pub(crate) fn new(guest: Guest) -> Self {
        Self {
            guest,
            containers: Table::new("container", String::new(), MAX_CONTAINERS),
        }
    }

    /// The container with this identifier.
    pub(crate) fn get(&self, id: &str) -> Result<Arc<Container>, Error> {
        self.containers.get(&container_id(id)?)
    }

    /// Creates a container and gives its first process's identifier.
    pub(crate) async fn create(&self, request: &CreateContainerRequest) -> Result<i32, Error> {
        let id = container_id(&request.container_id)?;
        let reservation = self.containers.reserve(&id)?;
        let container = create::create(&self.guest, &id, request).await?;
        let pid = container.init().pid();
        reservation.keep(Arc::new(container));
        Ok(pid)
    }

    /// What the processes of a container are.
    pub(crate) async fn look(&self, container: &Container) -> Result<Vec<ProcessDetails>, Error> {
        container.look(&self.guest).await
    }

    /// Starts a further process in a container and gives its identifier.
    pub(crate) async fn exec(&self, request: &ExecRequest) -> Result<i32, Error> {
        let container = self.get(&request.container_id)?;
        exec::exec(&self.guest, &container, request).await
    }

    /// Removes a container that has stopped.
    pub(crate) async fn delete(&self, id: &str) -> Result<(), Error> {
        let id = container_id(id)?;
        let (container, reservation) =
            self.containers
                .take(&id, |container| match container.init().exit() {
                    Some(_) => Ok(()),
                    None => Err(container.precondition("is running")),
                })?;
        let removed = container.remove().await;
        if removed.is_err() {
            reservation.keep(container);
        }
        removed
    }

    /// Every container that is neither being created nor being removed.
    pub(crate) fn all(&self) -> Vec<Arc<Container>> {
        self.containers.all()
    }
}

fn container_id(id: &str) -> Result<Id, Error> {
    Id::parse(id, "container_id")
}
