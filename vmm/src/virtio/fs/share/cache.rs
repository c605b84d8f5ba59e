//! How long the guest may go by what it knows of a file.
//!
//! It drops a file's pages whenever it opens it, unless it is told to keep
//! them. It is told so when the file has not changed since it last opened it,
//! as far as times and length can say: otherwise every start of a program would
//! read all its libraries again.
//!
//! Attributes say where a file ends, so with old ones a file that has just been
//! written looks empty. They are good for the shorter the fresher a file is, as
//! with NFS's `acregmin`: what was changed a moment ago is what is changed again.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{FileType, Statx, StatxAttributes, StatxTimestamp};

use super::inodes;

/// How long the guest may go by a name or by attributes without asking again.
pub(super) const VALIDITY: Duration = Duration::from_secs(1);
/// Of a file that is mounted by itself, as those are that a container engine
/// writes between creating a container and starting it (`/etc/hosts`).
const VALIDITY_OF_MOUNTED_FILE: Duration = Duration::from_millis(10);
/// Part of a file's age for which its attributes are good.
const PART_OF_AGE: u32 = 10;

/// How long the guest may go by these attributes.
pub(super) fn validity(stat: &Statx, now: SystemTime) -> Duration {
    if inodes::kind(stat) != FileType::RegularFile {
        return VALIDITY;
    }
    let longest = if stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        VALIDITY_OF_MOUNTED_FILE
    } else {
        VALIDITY
    };
    let modified = u64::try_from(stat.stx_mtime.tv_sec).unwrap_or(0);
    let modified = Duration::new(modified, stat.stx_mtime.tv_nsec);
    let age = UNIX_EPOCH
        .checked_add(modified)
        .and_then(|modified| now.duration_since(modified).ok());
    (age.unwrap_or_default() / PART_OF_AGE).min(longest)
}

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
    use std::fs::{File, FileTimes};

    use super::super::inodes::stat;
    use super::*;

    #[test]
    fn attributes_are_good_for_a_tenth_of_a_files_age_and_at_most_for_a_second() {
        let file = tempfile::tempfile().unwrap();
        let now = SystemTime::now();
        let of_age = |age| {
            let times = FileTimes::new().set_modified(now - age);
            file.set_times(times).unwrap();
            validity(&stat(&file).unwrap(), now)
        };
        assert_eq!(of_age(Duration::ZERO), Duration::ZERO);
        assert_eq!(
            of_age(Duration::from_millis(500)),
            Duration::from_millis(50)
        );
        assert_eq!(of_age(Duration::from_secs(3600)), VALIDITY);
    }

    #[test]
    fn attributes_from_the_future_or_from_before_time_are_as_good_as_none_or_old_ones() {
        let file = tempfile::tempfile().unwrap();
        let now = SystemTime::now();
        let hour = Duration::from_secs(3600);
        file.set_times(FileTimes::new().set_modified(now + hour))
            .unwrap();
        assert_eq!(validity(&stat(&file).unwrap(), now), Duration::ZERO);
        file.set_times(FileTimes::new().set_modified(UNIX_EPOCH - hour))
            .unwrap();
        assert_eq!(validity(&stat(&file).unwrap(), now), VALIDITY);
    }

    #[test]
    fn attributes_of_a_file_that_is_mounted_by_itself_are_good_for_a_blink() {
        let file = tempfile::tempfile().unwrap();
        let now = SystemTime::now();
        let day = Duration::from_secs(86_400);
        file.set_times(FileTimes::new().set_modified(now - day))
            .unwrap();
        let mut mounted = stat(&file).unwrap();
        mounted.stx_attributes |= StatxAttributes::MOUNT_ROOT;
        assert_eq!(validity(&mounted, now), VALIDITY_OF_MOUNTED_FILE);
    }

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
