//! What a pod's VM has for its containers, and what they may use of it.
//!
//! A VM is born with all the memory and vCPUs that it will ever have. Its containers' limits
//! may change while they run: up to the VM's size, and CPUs come online as they are needed.
//! What was asked for at its birth stays online.

use std::collections::HashMap;

use oci_spec::runtime::LinuxResources;
use thiserror::Error;

use crate::spec::Allowance;

/// Why a container's limits cannot be changed. Nothing is then changed.
#[derive(Debug, Error)]
pub enum RoomError {
    /// The request is not `linux.resources` of the specification.
    #[error("linux.resources: {0}")]
    Json(#[from] serde_json::Error),
    /// More memory than the VM has.
    #[error(
        "linux.resources.memory.limit: {} MiB asked for{}, the pod's VM has {} MiB",
        .asked.div_ceil(1 << 20),
        beside(*.others, &format!("{} MiB", .others.div_ceil(1 << 20))),
        .size >> 20
    )]
    Memory {
        /// Bytes that the container is to be allowed.
        asked: u64,
        /// Bytes that the pod's other containers are allowed.
        others: u64,
        /// Bytes of the VM.
        size: u64,
    },
    /// More CPUs than the VM has.
    #[error(
        "linux.resources.cpu.quota: {} CPUs asked for{}, the pod's VM has {size}",
        cpus(*.asked),
        beside(*.others, &cpus(*.others))
    )]
    Cpus {
        /// Thousandths of a CPU that the container is to be allowed.
        asked: u64,
        /// Thousandths of a CPU that the pod's other containers are allowed.
        others: u64,
        /// vCPUs of the VM.
        size: u8,
    },
}

/// How messages tell of what the other containers have, if that is anything.
fn beside(others: u64, what: &str) -> String {
    match others {
        0 => String::new(),
        _ => format!(" beside {what} of its other containers"),
    }
}

/// Thousandths of a CPU as a decimal number.
fn cpus(thousandths: u64) -> String {
    let number = format!("{}.{:03}", thousandths / 1000, thousandths % 1000);
    let number = number.trim_end_matches('0').trim_end_matches('.');
    number.to_owned()
}

/// A change of a container's limits for which there is room.
#[derive(Debug)]
pub struct Change {
    container: String,
    allowance: Allowance,
    cpus: u8,
}

impl Change {
    /// CPUs to have online after it.
    #[must_use]
    pub fn cpus(&self) -> u8 {
        self.cpus
    }
}

/// A VM and its containers.
#[derive(Debug)]
pub struct Room {
    memory: u64,
    vcpus: u8,
    born: u8,
    online: u8,
    containers: HashMap<String, Allowance>,
}

impl Room {
    /// A VM of this size, with `online` of its vCPUs online, and without containers.
    #[must_use]
    pub fn new(memory_mib: u64, vcpus: u8, online: u8) -> Self {
        Self {
            memory: memory_mib << 20,
            vcpus,
            born: online,
            online,
            containers: HashMap::new(),
        }
    }

    /// CPUs that are online.
    #[must_use]
    pub fn online(&self) -> u8 {
        self.online
    }

    /// Notes that as many CPUs are now online.
    pub fn set_online(&mut self, online: u8) {
        self.online = online;
    }

    /// Takes in a new container, whatever its limits: those beyond the VM's size are cut
    /// there. Returns how many CPUs should be online for it.
    #[must_use]
    pub fn admit(&mut self, container: &str, allowance: Allowance) -> u8 {
        self.containers.insert(container.to_owned(), allowance);
        self.wanted()
    }

    /// How many CPUs should be online.
    #[must_use]
    pub fn wanted(&self) -> u8 {
        self.cpus_for(self.millicpus(""))
    }

    /// Forgets a container.
    pub fn leave(&mut self, container: &str) {
        self.containers.remove(container);
    }

    /// Finds out whether there is room for an update of a container's limits; `resources` is
    /// JSON as in the specification. A limit that does not grow always has room.
    ///
    /// # Errors
    /// [`RoomError`].
    pub fn change(&self, container: &str, resources: &[u8]) -> Result<Change, RoomError> {
        let resources: LinuxResources = serde_json::from_slice(resources)?;
        let before = self.containers.get(container).copied().unwrap_or_default();
        let allowance = before.after(&resources);
        if let Some(asked) = grown(before.memory(), allowance.memory()) {
            let others = self.sum(container, Allowance::memory);
            if asked.saturating_add(others) > self.memory {
                return Err(RoomError::Memory {
                    asked,
                    others,
                    size: self.memory,
                });
            }
        }
        let others = self.millicpus(container);
        if let Some(asked) = grown(before.millicpus(), allowance.millicpus())
            && asked.saturating_add(others) > u64::from(self.vcpus) * 1000
        {
            return Err(RoomError::Cpus {
                asked,
                others,
                size: self.vcpus,
            });
        }
        let millicpus = allowance.millicpus().unwrap_or(0).saturating_add(others);
        Ok(Change {
            container: container.to_owned(),
            allowance,
            cpus: self.cpus_for(millicpus),
        })
    }

    /// Notes that a change is made. A container that has left meanwhile stays away.
    pub fn keep(&mut self, change: Change) {
        let Change {
            container,
            allowance,
            ..
        } = change;
        self.containers
            .entry(container)
            .and_modify(|now| *now = allowance);
    }

    /// Of all containers but `except`.
    fn sum(&self, except: &str, limit: fn(&Allowance) -> Option<u64>) -> u64 {
        let others = self.containers.iter().filter(|(id, _)| *id != except);
        let limits = others.filter_map(|(_, allowance)| limit(allowance));
        limits.fold(0, u64::saturating_add)
    }

    fn millicpus(&self, except: &str) -> u64 {
        self.sum(except, Allowance::millicpus)
    }

    fn cpus_for(&self, millicpus: u64) -> u8 {
        let wanted = u8::try_from(millicpus.div_ceil(1000)).unwrap_or(u8::MAX);
        wanted.max(self.born).min(self.vcpus)
    }
}

/// The limit after a change that is more than before, or the first.
fn grown(before: Option<u64>, after: Option<u64>) -> Option<u64> {
    after.filter(|after| before.is_none_or(|before| *after > before))
}

#[cfg(test)]
#[path = "room_test.rs"]
mod tests;
