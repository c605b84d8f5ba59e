//! How large the guest of a bundle is.

use nacre_pod::boot::{MAX_MEMORY_MIB, MAX_VCPUS};
use nacre_pod::spec::Bundle;

use crate::size::Mebibytes;

/// Memory of a guest whose container has no limit, MiB. Only what is touched
/// costs the host anything.
const DEFAULT_MEMORY: u64 = 512;

/// Memory that a guest needs beside what its container may use, MiB: kernel,
/// agent, page tables, caches.
const GUEST_MEMORY: u64 = 128;

/// What somebody has said about the guest.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct GivenShape {
    pub(crate) vcpus: Option<u8>,
    pub(crate) memory: Option<Mebibytes>,
}

/// The guest of a bundle.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Shape {
    pub(crate) vcpus: u8,
    pub(crate) memory_mib: u64,
}

impl Shape {
    /// What was said, else what follows from the bundle.
    pub(crate) fn choose(given: &GivenShape, bundle: &Bundle) -> Self {
        let memory = given.memory.map(|size| size.0);
        Self {
            vcpus: given.vcpus.unwrap_or_else(|| {
                let confined = bundle.host_cpus().map(|cpus| cpus.count());
                vcpus_for(bundle.cpu_limit(), confined)
            }),
            memory_mib: memory.unwrap_or_else(|| memory_for(bundle.memory_limit())),
        }
    }
}

/// As many as the quota amounts to, and no more than it is `confined` to.
fn vcpus_for(limit: Option<u64>, confined: Option<u64>) -> u8 {
    let wanted = limit.or(confined).unwrap_or(1);
    let wanted = wanted.min(confined.unwrap_or(u64::MAX));
    let wanted = wanted.clamp(1, u64::from(MAX_VCPUS));
    u8::try_from(wanted).unwrap_or(MAX_VCPUS)
}

fn memory_for(limit: Option<u64>) -> u64 {
    let Some(limit) = limit else {
        return DEFAULT_MEMORY;
    };
    let needed = limit.div_ceil(1 << 20).saturating_add(GUEST_MEMORY);
    needed.min(MAX_MEMORY_MIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_larger_than_its_container() {
        assert_eq!(memory_for(None), 512);
        assert_eq!(memory_for(Some(64 << 20)), 64 + 128);
        assert_eq!(memory_for(Some(1)), 129);
        assert_eq!(memory_for(Some(u64::MAX)), MAX_MEMORY_MIB);
    }

    #[test]
    fn a_quota_is_that_many_cpus() {
        assert_eq!(vcpus_for(None, None), 1);
        assert_eq!(vcpus_for(Some(3), None), 3);
        assert_eq!(vcpus_for(Some(u64::MAX), None), MAX_VCPUS);
        assert_eq!(vcpus_for(None, Some(2)), 2);
        assert_eq!(vcpus_for(Some(1), Some(2)), 1);
        assert_eq!(vcpus_for(Some(3), Some(2)), 2);
    }
}
