//! Disks of a running pod: block devices of the host in slots of its machine.
//!
//! A disk is attached when the first container that names it is created, and detached with the
//! last. The monitor is given it first, then the guest's driver is told to look; the other way
//! round the driver lets go first. The front door has each disk open too, and closes it last: that
//! may take as long as the host's device takes to write, and delays nothing but the deletion of a
//! container, not even that of a container with other disks. What a call has left half-made, because it failed or nobody
//! waited for it any more, the next one clears away.

use std::collections::HashSet;
use std::sync::{Arc, MutexGuard, PoisonError};

use nacre_vmm::config::BLOCK_SLOTS;
use thiserror::Error;
use tokio::sync::Mutex;

use crate::agent::{Agent, AgentError, GuestDisk};
use crate::host::{ClosedAside, DiskError};
use crate::monitor::Machine;
use crate::spec::disks::Disk;

/// Why a container's disks are not attached.
#[derive(Debug, Error)]
pub enum AttachError {
    /// All slots are taken.
    #[error(
        "{}:{}: the pod has {BLOCK_SLOTS} block devices already, and no slot for another",
        number.0, number.1
    )]
    NoSlot {
        /// Number of the host's device.
        number: (u32, u32),
    },
    /// Somebody else in the pod has it for reading only.
    #[error(
        "{}:{}: another container of the pod has this block device read-only, so it cannot be \
         had writable",
        number.0, number.1
    )]
    ReadOnly {
        /// Number of the host's device.
        number: (u32, u32),
    },
    /// Somebody else in the pod has it without a claim to it, so the host may have it mounted.
    #[error(
        "{}:{}: another container of the pod has this block device as a device, so it cannot be \
         mounted writable",
        number.0, number.1
    )]
    Shared {
        /// Number of the host's device.
        number: (u32, u32),
    },
    /// The host's device cannot be used.
    #[error(transparent)]
    Host(#[from] DiskError),
    /// The monitor did not take it.
    #[error("cannot attach a block device to the pod: {0}")]
    Monitor(String),
    /// The guest did not take it.
    #[error("{0}")]
    Agent(AgentError),
}

/// Why a slot is not emptied.
#[derive(Debug, Error)]
enum DetachError {
    #[error("by the guest: {0}")]
    Agent(AgentError),
    #[error("by the monitor: {0}")]
    Monitor(String),
}

/// A disk in a slot.
#[derive(Debug)]
struct Attached {
    /// Number of the host's device.
    number: (u32, u32),
    read_only: bool,
    /// The host can neither mount it nor has it mounted.
    alone: bool,
    /// The slot's device among those of the machine, once the monitor has said it.
    device: Option<u32>,
    /// What the guest has made of it; `None` while that is not known, or no more so.
    guest: Option<GuestDisk>,
    /// Who uses it.
    containers: Vec<String>,
    /// Outlives the monitor's descriptor.
    held: Arc<ClosedAside>,
}

impl Attached {
    /// Whether it will do for another container, which may want to write, and to have it alone.
    fn admit(&self, read_only: bool, alone: bool) -> Result<(), AttachError> {
        let number = self.number;
        if self.read_only && !read_only {
            return Err(AttachError::ReadOnly { number });
        }
        if alone && !self.alone {
            return Err(AttachError::Shared { number });
        }
        Ok(())
    }

    fn is_used_by(&self, container: &str) -> bool {
        self.containers.iter().any(|user| user == container)
    }
}

type Slots = [Option<Attached>; BLOCK_SLOTS as usize];

/// All disks of a pod.
#[derive(Debug, Default)]
pub(crate) struct Disks {
    /// Locked for as long as the guest and the monitor take to answer.
    slots: Mutex<Slots>,
    /// Containers that may be among the users of a slot: no other has to wait for `slots`.
    users: Users,
}

/// Identifiers of containers.
#[derive(Debug, Default)]
struct Users(std::sync::Mutex<HashSet<String>>);

impl Users {
    fn lock(&self) -> MutexGuard<'_, HashSet<String>> {
        // The set is whole whenever a panic may happen.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, container: &str) {
        self.lock().insert(container.to_owned());
    }

    fn has(&self, container: &str) -> bool {
        self.lock().contains(container)
    }

    /// Forgets a container that uses no slot any more.
    fn settle(&self, container: &str, slots: &Slots) {
        let mut attached = slots.iter().flatten();
        if !attached.any(|attached| attached.is_used_by(container)) {
            self.lock().remove(container);
        }
    }
}

/// What a container has got.
#[derive(Debug)]
pub(crate) struct Lease {
    /// Of each disk, in the order in which they were asked for, what it is in the guest.
    pub(crate) guest: Vec<GuestDisk>,
    /// Slots that this container did not use before.
    taken: Vec<usize>,
}

/// The two that have to agree.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends<'a> {
    pub(crate) machine: &'a Machine,
    pub(crate) agent: &'a Agent,
}

impl Ends<'_> {
    /// Whether there is nobody any more who could let go of anything.
    fn are_gone(self) -> bool {
        let state = self.machine.state();
        let state = state.borrow();
        state.agent_gone || state.end.is_some()
    }
}

impl Disks {
    /// Attaches what is not yet attached.
    ///
    /// # Errors
    /// [`AttachError`]; the container then has nothing.
    pub(crate) async fn attach(
        &self,
        ends: Ends<'_>,
        container: &str,
        disks: &[Disk],
    ) -> Result<Lease, AttachError> {
        let mut lease = Lease {
            guest: Vec::new(),
            taken: Vec::new(),
        };
        if disks.is_empty() {
            return Ok(lease);
        }
        let mut slots = self.slots.lock().await;
        self.users.add(container);
        clear_away(ends, &mut slots).await;
        for disk in disks {
            // The container may have it in two ways: the first then claims it for the second.
            let is_same = |other: &&Disk| other.host().number() == disk.host().number();
            let alone = disks.iter().filter(is_same).any(Disk::is_alone);
            match attach_one(ends, &mut slots, container, disk, alone).await {
                Ok((guest, taken)) => {
                    lease.guest.push(guest);
                    lease.taken.extend(taken);
                }
                Err(error) => {
                    give_back(ends, &mut slots, container, &lease.taken).await;
                    self.users.settle(container, &slots);
                    return Err(error);
                }
            }
        }
        Ok(lease)
    }

    /// Undoes an attach, for a container that did not come to be.
    pub(crate) async fn undo(&self, ends: Ends<'_>, container: &str, lease: &Lease) {
        if !lease.taken.is_empty() {
            let mut slots = self.slots.lock().await;
            give_back(ends, &mut slots, container, &lease.taken).await;
            self.users.settle(container, &slots);
        }
    }

    /// Detaches what only this container has used, and waits until it is written.
    pub(crate) async fn release(&self, ends: Ends<'_>, container: &str) {
        if !self.users.has(container) {
            return;
        }
        let mut slots = self.slots.lock().await;
        let all: Vec<_> = (0..slots.len()).collect();
        let detached = give_back(ends, &mut slots, container, &all).await;
        self.users.settle(container, &slots);
        drop(slots);
        let last = detached.into_iter().filter_map(Arc::into_inner);
        let closed: Vec<_> = last.map(ClosedAside::close).collect();
        for closed in closed {
            closed.await;
        }
    }
}

/// Gives a disk to a container, `alone` if the host must not have it mounted; also says which slot is now its own, if it was not before.
async fn attach_one(
    ends: Ends<'_>,
    slots: &mut Slots,
    container: &str,
    disk: &Disk,
    alone: bool,
) -> Result<(GuestDisk, Option<usize>), AttachError> {
    let (number, read_only) = (disk.host().number(), disk.host().is_read_only());
    for (index, slot) in slots.iter_mut().enumerate() {
        let Some(attached) = slot else { continue };
        let Some(guest) = &attached.guest else {
            continue;
        };
        if attached.number != number {
            continue;
        }
        attached.admit(read_only, alone)?;
        let guest = guest.clone();
        let is_new = !attached.is_used_by(container);
        if is_new {
            attached.containers.push(container.to_owned());
        }
        return Ok((guest, is_new.then_some(index)));
    }
    let free = slots.iter().position(Option::is_none);
    let index = free.ok_or(AttachError::NoSlot { number })?;
    let (fd, config) = (disk.host().hand_over(alone)?, disk.host().config());
    // From here on there is something to clear away, should nobody wait for the rest.
    let attached = slots[index].insert(Attached {
        number,
        read_only,
        alone,
        device: None,
        guest: None,
        containers: Vec::new(),
        held: disk.host().hold(),
    });
    let given = async {
        let slot = u32::try_from(index).unwrap_or(u32::MAX);
        let device = ends.machine.attach_disk(slot, config, fd).await;
        let device = device.map_err(AttachError::Monitor)?;
        attached.device = Some(device);
        let guest = ends.agent.attach_disk(device).await;
        guest.map_err(AttachError::Agent)
    };
    let given = given.await;
    match given {
        Ok(guest) => {
            attached.guest = Some(guest.clone());
            attached.containers.push(container.to_owned());
            Ok((guest, Some(index)))
        }
        Err(error) => {
            detach_all(ends, slots, &[index]).await;
            Err(error)
        }
    }
}

/// Takes a container off the users of these slots, and detaches what nobody uses any more; gives
/// what is then to be closed.
async fn give_back(
    ends: Ends<'_>,
    slots: &mut Slots,
    container: &str,
    indices: &[usize],
) -> Vec<Arc<ClosedAside>> {
    let mut unused = Vec::new();
    for index in indices {
        let Some(attached) = &mut slots[*index] else {
            continue;
        };
        let before = attached.containers.len();
        attached.containers.retain(|user| user != container);
        if attached.containers.is_empty() && before > 0 {
            unused.push(*index);
        }
    }
    detach_all(ends, slots, &unused).await
}

/// Detaches what an earlier call could not, or had no time for.
async fn clear_away(ends: Ends<'_>, slots: &mut Slots) {
    let used = slots.iter().enumerate();
    let unused = used.filter_map(|(index, slot)| {
        let attached = slot.as_ref()?;
        attached.containers.is_empty().then_some(index)
    });
    let unused: Vec<_> = unused.collect();
    detach_all(ends, slots, &unused).await;
}

/// Empties slots, and gives what is then to be closed. A guest that does not answer for one is
/// not asked for the others, so that it cannot hold up everybody for as many deadlines.
async fn detach_all(ends: Ends<'_>, slots: &mut Slots, indices: &[usize]) -> Vec<Arc<ClosedAside>> {
    let mut detached = Vec::new();
    for index in indices {
        match detach(ends, slots, *index).await {
            Ok(held) => detached.extend(held),
            Err(DetachError::Agent(AgentError::DeadlineExceeded(_))) => break,
            // It is logged, and the others may do better.
            Err(_) => {}
        }
    }
    detached
}

/// Empties a slot, and gives what is then to be closed. A slot that cannot be emptied is kept, so
/// that nobody else gets it.
async fn detach(
    ends: Ends<'_>,
    slots: &mut Slots,
    index: usize,
) -> Result<Option<Arc<ClosedAside>>, DetachError> {
    let Some(attached) = &mut slots[index] else {
        return Ok(None);
    };
    if !ends.are_gone() {
        attached.guest = None;
        let (major, minor) = attached.number;
        let detached = detach_from(ends, attached.device, index).await;
        detached.inspect_err(|error| {
            log::warn!("the block device {major}:{minor} is not let go of: {error}");
        })?;
    }
    Ok(slots[index].take().map(|emptied| emptied.held))
}

async fn detach_from(ends: Ends<'_>, device: Option<u32>, index: usize) -> Result<(), DetachError> {
    if let Some(device) = device {
        let detached = ends.agent.detach_disk(device).await;
        detached.map_err(DetachError::Agent)?;
    }
    let slot = u32::try_from(index).unwrap_or(u32::MAX);
    let detached = ends.machine.detach_disk(slot).await;
    detached.map_err(DetachError::Monitor)
}

#[cfg(test)]
#[path = "disks_test.rs"]
mod tests;
