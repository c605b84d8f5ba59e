//! Changes of what a running pod's containers may use.
//!
//! CPUs come online before a limit needs them and go after one has shrunk. An update that
//! is refused, here or by the guest, leaves all as it was.

use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use nacre_pod::pod::{Pod, PodError};
use nacre_pod::room::Room;
use nacre_pod::spec::Allowance;

use crate::failure::Failure;
use crate::sizing::Size;

/// The part of a pod that changes.
#[async_trait]
pub(crate) trait Adjust: Sync {
    /// Has as many CPUs online.
    async fn set_cpus(&self, cpus: u8) -> Result<(), PodError>;

    /// Sets a container's limits in the guest.
    async fn set_limits(&self, id: &str, resources: &[u8]) -> Result<(), PodError>;
}

#[async_trait]
impl Adjust for Pod {
    async fn set_cpus(&self, cpus: u8) -> Result<(), PodError> {
        Self::set_cpus(self, cpus).await
    }

    async fn set_limits(&self, id: &str, resources: &[u8]) -> Result<(), PodError> {
        self.update(id, resources).await
    }
}

/// What the containers of a pod that runs may use.
#[derive(Debug)]
pub(crate) struct Resources {
    room: Mutex<Room>,
    /// Held while something changes: the limits of all containers are one sum.
    changing: tokio::sync::Mutex<()>,
}

impl Resources {
    /// Those of a pod of this size, without containers.
    pub(crate) fn new(size: Size) -> Self {
        let Size {
            memory_mib,
            vcpus,
            cpus_online,
        } = size;
        Self {
            room: Mutex::new(Room::new(memory_mib, vcpus, cpus_online)),
            changing: tokio::sync::Mutex::default(),
        }
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        // A panic elsewhere leaves nothing half-changed here.
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a container that is being made, and brings CPUs online for it.
    pub(crate) async fn admit(
        &self,
        pod: &impl Adjust,
        id: &str,
        allowance: Allowance,
    ) -> Result<(), Failure> {
        let wanted = self.room().admit(id, allowance);
        // Who needs no more CPUs waits for nobody.
        if wanted <= self.room().online() {
            return Ok(());
        }
        let _changing = self.changing.lock().await;
        if wanted > self.room().online() {
            self.bring_online(pod, wanted).await?;
        }
        Ok(())
    }

    /// Forgets a container.
    pub(crate) fn leave(&self, id: &str) {
        self.room().leave(id);
    }

    /// Changes a container's limits; `resources` is JSON as in the specification.
    pub(crate) async fn update(
        &self,
        pod: &impl Adjust,
        id: &str,
        resources: &[u8],
    ) -> Result<(), Failure> {
        let _changing = self.changing.lock().await;
        let change = self.room().change(id, resources)?;
        let (before, after) = (self.room().online(), change.cpus());
        if after > before {
            self.bring_online(pod, after).await?;
        }
        if let Err(error) = pod.set_limits(id, resources).await {
            self.take_offline(pod).await;
            return Err(error.into());
        }
        self.room().keep(change);
        self.take_offline(pod).await;
        Ok(())
    }

    async fn bring_online(&self, pod: &impl Adjust, cpus: u8) -> Result<(), Failure> {
        if let Err(error) = pod.set_cpus(cpus).await {
            // Some may have come.
            let before = self.room().online();
            if let Err(left) = pod.set_cpus(before).await {
                log::warn!("more CPUs than {before} may be online: {left}");
            }
            return Err(error.into());
        }
        self.room().set_online(cpus);
        Ok(())
    }

    /// Takes CPUs offline that no container needs, also none that was taken in meanwhile. One
    /// that stays is no error: limits hold all the same, and the next change tries again.
    async fn take_offline(&self, pod: &impl Adjust) {
        let cpus = self.room().wanted();
        if cpus >= self.room().online() {
            return;
        }
        match pod.set_cpus(cpus).await {
            Ok(()) => self.room().set_online(cpus),
            Err(error) => log::warn!("CPUs that the pod no longer needs stay online: {error}"),
        }
    }
}

#[cfg(test)]
#[path = "resources_test.rs"]
mod tests;
