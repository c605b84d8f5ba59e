//! How large the guest of a bundle is.

use nacre_pod::boot::{MAX_MEMORY_MIB, MAX_VCPUS};
use nacre_pod::spec::Bundle;

use crate::cli::PodArgs;

/// Memory of a guest whose container has no limit, MiB. Only what is touched
/// costs the host anything.
const DEFAULT_MEMORY: u64 = 512;

/// Memory that a guest needs beside what its container may use, MiB: kernel,
/// agent, page tables, caches.
const GUEST_MEMORY: u64 = 128;

/// The guest of a bundle.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Shape {
    pub(crate) vcpus: u8,
    pub(crate) memory_mib: u64,
}

impl Shape {
    /// What the command line says, else what follows from the bundle.
    pub(crate) fn choose(args: &PodArgs, bundle: &Bundle) -> Self {
        let memory = args.memory.map(|size| size.0);
        Self {
            vcpus: args.cpus.unwrap_or_else(|| vcpus_for(bundle.cpu_limit())),
            memory_mib: memory.unwrap_or_else(|| memory_for(bundle.memory_limit())),
        }
    }
}

fn vcpus_for(limit: Option<u64>) -> u8 {
    let limit = limit.unwrap_or(1).clamp(1, u64::from(MAX_VCPUS));
    u8::try_from(limit).unwrap_or(MAX_VCPUS)
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
        assert_eq!(vcpus_for(None), 1);
        assert_eq!(vcpus_for(Some(3)), 3);
        assert_eq!(vcpus_for(Some(u64::MAX)), MAX_VCPUS);
    }
}
