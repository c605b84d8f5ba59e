//! How many descriptors the guest's file system may hold.
//!
//! Every file that the guest's kernel remembers is one descriptor here, and it
//! remembers as many as it has memory for. What is left is for the other
//! devices: at the limit the guest sees ENFILE, and nobody else anything.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::{Resource, getrlimit};

/// Most descriptors that are kept for the rest of the monitor.
const RESERVE: u64 = 1024;

/// What is left to be given out.
#[derive(Debug)]
pub(super) struct Budget(AtomicU64);

impl Budget {
    /// What `RLIMIT_NOFILE` allows, less a reserve: a quarter, 1024 at most.
    pub(super) fn of_process() -> Arc<Self> {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        Self::new(limit - RESERVE.min(limit / 4))
    }

    /// So many.
    pub(super) fn new(descriptors: u64) -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(descriptors)))
    }

    /// Takes one out.
    ///
    /// # Errors
    /// ENFILE when there is none left.
    pub(super) fn take(self: &Arc<Self>) -> io::Result<Slot> {
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            })
            .map(|_| Slot(Arc::clone(self)))
            .map_err(|_| io::Error::from_raw_os_error(libc::ENFILE))
    }
}

/// The right to one descriptor, given back when dropped.
#[derive(Debug)]
pub(super) struct Slot(Arc<Budget>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let budget = Budget::new(2);
        let first = budget.take().unwrap();
        let _second = budget.take().unwrap();
        let error = budget.take().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENFILE));
        drop(first);
        budget.take().unwrap();
    }
}
