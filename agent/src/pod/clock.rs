//! The guest's wall clock.

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use crate::error::{Doing, Error};

const SECOND_NS: i64 = 1_000_000_000;

/// A difference this small is the time the request took to get here.
const TOLERATED_NS: u64 = 20_000_000;

/// Sets the clock to the host's, unless it is right already.
pub(super) fn set(realtime_ns: i64) -> Result<(), Error> {
    if realtime_ns <= 0 {
        let message = "realtime_ns: must be after the epoch";
        return Err(Error::InvalidArgument(message.to_owned()));
    }
    let now = clock_gettime(ClockId::Realtime);
    if is_close(now, realtime_ns) {
        return Ok(());
    }
    clock_settime(ClockId::Realtime, timespec(realtime_ns)).doing("cannot set the clock")
}

fn timespec(ns: i64) -> Timespec {
    Timespec {
        tv_sec: ns / SECOND_NS,
        tv_nsec: ns % SECOND_NS,
    }
}

fn is_close(now: Timespec, wanted_ns: i64) -> bool {
    let now_ns = now
        .tv_sec
        .saturating_mul(SECOND_NS)
        .saturating_add(now.tv_nsec);
    now_ns.abs_diff(wanted_ns) <= TOLERATED_NS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_right_is_left_alone() {
        let wanted = 1_700_000_000 * SECOND_NS + 5;
        assert!(is_close(timespec(wanted + 1_000_000), wanted));
        assert!(is_close(timespec(wanted - 1_000_000), wanted));
        assert!(!is_close(timespec(wanted + SECOND_NS), wanted));
        assert!(!is_close(timespec(5), i64::MAX));
    }

    #[test]
    fn a_time_before_the_epoch_is_refused() {
        for ns in [0, -1, i64::MIN] {
            assert!(matches!(set(ns), Err(Error::InvalidArgument(_))));
        }
    }
}
