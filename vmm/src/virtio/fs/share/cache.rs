//! When the guest may go on using what its page cache holds of a file.
//!
//! A guest drops a file's pages whenever it opens it, unless it is told to keep
//! them. It is told so when the file has not changed since it last opened it,
//! as far as times and length can say: otherwise every start of a program would
//! read all its libraries again.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{Statx, StatxTimestamp};

/// A change so close behind another may leave the times as they are.
const GRANULARITY: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamp {
    modified: (i64, u32),
    changed: (i64, u32),
    len: u64,
}

impl Stamp {
    fn of(stat: &Statx) -> Self {
        let parts = |time: StatxTimestamp| (time.tv_sec, time.tv_nsec);
        Self {
            modified: parts(stat.stx_mtime),
            changed: parts(stat.stx_ctime),
            len: stat.stx_size,
        }
    }

    /// Whether any later change must show.
    fn is_settled(&self, now: SystemTime) -> bool {
        let seconds = u64::try_from(self.changed.0).unwrap_or(0);
        UNIX_EPOCH
            .checked_add(Duration::from_secs(seconds) + GRANULARITY)
            .is_some_and(|settled| settled < now)
    }
}

/// The state in which the guest last opened a file.
#[derive(Debug, Default)]
pub(super) struct Seen(Mutex<Option<Stamp>>);

impl Seen {
    /// The guest opens the file in the state of `stat`: whether it may keep the
    /// pages that it has.
    pub(super) fn may_keep(&self, stat: &Statx) -> bool {
        let stamp = Stamp::of(stat);
        let settled = stamp.is_settled(SystemTime::now());
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *seen, settled.then_some(stamp));
        before == Some(stamp)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::super::inodes::stat;
    use super::*;

    #[test]
    fn pages_are_kept_over_opens_of_a_file_that_rests() {
        let seen = Seen::default();
        // Nobody has just changed the root directory of this machine.
        let old = stat(File::open("/").unwrap()).unwrap();
        assert!(!seen.may_keep(&old));
        assert!(seen.may_keep(&old));
        assert!(seen.may_keep(&old));
    }

    #[test]
    fn pages_are_dropped_when_a_file_has_changed_or_just_did() {
        let seen = Seen::default();
        let old = stat(File::open("/").unwrap()).unwrap();
        seen.may_keep(&old);
        let new = stat(tempfile::tempfile().unwrap()).unwrap();
        for _ in 0..3 {
            assert!(!seen.may_keep(&new));
        }
    }
}
