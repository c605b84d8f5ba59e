//! Times as a person at this machine reads them.

use std::mem::MaybeUninit;
use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// A moment in the time zone of this machine.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct LocalTime {
    year: i32,
    /// From 0.
    month: i32,
    day: i32,
    hour: i32,
    minute: i32,
}

impl LocalTime {
    /// Now, in seconds since the epoch.
    pub(super) fn now_in_seconds() -> i64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let seconds = now.map_or(0, |now| now.as_secs());
        i64::try_from(seconds).unwrap_or(i64::MAX)
    }

    /// A moment in seconds since the epoch.
    pub(super) fn of(seconds: i64) -> Self {
        let mut broken = MaybeUninit::<libc::tm>::uninit();
        // SAFETY: it reads the number and writes the structure, if it gives it back.
        let filled = unsafe { libc::localtime_r(&raw const seconds, broken.as_mut_ptr()) };
        if filled.is_null() {
            return Self::default();
        }
        // SAFETY: it was written.
        let broken = unsafe { broken.assume_init() };
        Self {
            year: broken.tm_year.saturating_add(1900),
            month: broken.tm_mon,
            day: broken.tm_mday,
            hour: broken.tm_hour,
            minute: broken.tm_min,
        }
    }

    /// As ps(1) shows it at another moment: the time of the same day, else the day of the same
    /// year, else the year.
    pub(super) fn beside(&self, now: &Self) -> String {
        if self.year != now.year {
            return self.year.to_string();
        }
        if (self.month, self.day) == (now.month, now.day) {
            return format!("{:02}:{:02}", self.hour, self.minute);
        }
        let month = usize::try_from(self.month).ok();
        let month = month.and_then(|month| MONTHS.get(month)).unwrap_or(&"?");
        format!("{month}{:02}", self.day)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_told_as_far_as_it_differs() {
        let now = LocalTime {
            year: 2026,
            month: 4,
            day: 7,
            hour: 13,
            minute: 5,
        };
        assert_eq!(now.beside(&now), "13:05");
        assert_eq!(LocalTime { day: 6, ..now }.beside(&now), "May06");
        assert_eq!(LocalTime { year: 2025, ..now }.beside(&now), "2025");
        let half_a_year = LocalTime::of(1_782_000_000);
        assert_eq!(half_a_year.year, 2026);
        assert_eq!(LocalTime::of(i64::MAX), LocalTime::default());
    }
}
