//! The containers of the guest by their identifiers.
//!
//! The lock is held for a look and never across a wait: a container that is
//! slow to be created or removed keeps nobody from killing another.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nacre_protocol::agent::CreateContainerRequest;

use super::id::ContainerId;
use super::{Container, Guest, create};
use crate::error::Error;

/// Containers of one pod.
const MAX_CONTAINERS: usize = 512;

enum Entry {
    /// Being created or removed by a call that is under way.
    Busy,
    Ready(Arc<Container>),
}

/// All containers, and what they share.
pub(crate) struct Registry {
    guest: Guest,
    containers: Mutex<HashMap<ContainerId, Entry>>,
}

impl Registry {
    /// A registry without containers.
    pub(crate) fn new(guest: Guest) -> Self {
        Self {
            guest,
            containers: Mutex::new(HashMap::new()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ContainerId, Entry>> {
        self.containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The container with this identifier.
    pub(crate) fn get(&self, id: &str) -> Result<Arc<Container>, Error> {
        match self.lock().get(&ContainerId::parse(id)?) {
            Some(Entry::Ready(container)) => Ok(container.clone()),
            Some(Entry::Busy) => Err(busy(id)),
            None => Err(Error::NotFound(id.to_owned())),
        }
    }

    /// Creates a container and gives its first process's identifier.
    pub(crate) async fn create(&self, request: &CreateContainerRequest) -> Result<i32, Error> {
        let id = ContainerId::parse(&request.container_id)?;
        let mut reservation = self.reserve(&id)?;
        let container = create::create(&self.guest, &id, request).await?;
        let pid = container.init().pid();
        reservation.entry = Some(Entry::Ready(Arc::new(container)));
        Ok(pid)
    }

    fn reserve(&self, id: &ContainerId) -> Result<Reservation<'_>, Error> {
        let mut containers = self.lock();
        if containers.contains_key(id) {
            return Err(Error::AlreadyExists(id.as_str().to_owned()));
        }
        if containers.len() >= MAX_CONTAINERS {
            let message = format!("the pod has {MAX_CONTAINERS} containers already");
            return Err(Error::ResourceExhausted(message));
        }
        containers.insert(id.clone(), Entry::Busy);
        Ok(Reservation {
            registry: self,
            id: id.clone(),
            entry: None,
        })
    }

    /// Removes a container that has stopped.
    pub(crate) async fn delete(&self, id: &str) -> Result<(), Error> {
        let (container, mut reservation) = self.reserve_stopped(id)?;
        let removed = container.remove().await;
        if removed.is_err() {
            reservation.entry = Some(Entry::Ready(container));
        }
        removed
    }

    fn reserve_stopped(&self, id: &str) -> Result<(Arc<Container>, Reservation<'_>), Error> {
        let parsed = ContainerId::parse(id)?;
        let mut containers = self.lock();
        let entry = containers
            .get_mut(&parsed)
            .ok_or_else(|| Error::NotFound(id.to_owned()))?;
        let Entry::Ready(container) = entry else {
            return Err(busy(id));
        };
        if container.init().exit().is_none() {
            return Err(container.precondition("is running"));
        }
        let container = container.clone();
        *entry = Entry::Busy;
        let reservation = Reservation {
            registry: self,
            id: parsed,
            entry: None,
        };
        Ok((container, reservation))
    }

    /// Every container that is neither being created nor being removed.
    pub(crate) fn all(&self) -> Vec<Arc<Container>> {
        self.lock()
            .values()
            .filter_map(|entry| match entry {
                Entry::Ready(container) => Some(container.clone()),
                Entry::Busy => None,
            })
            .collect()
    }
}

fn busy(id: &str) -> Error {
    Error::FailedPrecondition(format!("container {id:?} is being created or removed"))
}

/// An identifier that is taken; dropping it leaves `entry`, or nothing.
struct Reservation<'a> {
    registry: &'a Registry,
    id: ContainerId,
    entry: Option<Entry>,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut containers = self.registry.lock();
        match self.entry.take() {
            Some(entry) => containers.insert(self.id.clone(), entry),
            None => containers.remove(&self.id),
        };
    }
}
