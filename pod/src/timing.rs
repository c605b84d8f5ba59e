//! When a pod reached what, and what it cost.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A point in time, `CLOCK_MONOTONIC`: comparable between processes of a host.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Moment(Duration);

impl Moment {
    /// The present.
    #[must_use]
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::Monotonic);
        Self(Duration::try_from(now).unwrap_or_default())
    }

    /// From `CLOCK_MONOTONIC` in nanoseconds.
    #[must_use]
    pub fn from_nanos(nanos: u64) -> Self {
        Self(Duration::from_nanos(nanos))
    }

    /// How long after `earlier` this is; zero if it is not.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// When the first byte of a process's output came, told to whoever asks.
#[derive(Clone, Debug, Default)]
pub struct FirstOutput(Arc<OnceLock<Moment>>);

impl FirstOutput {
    /// `None` until it has come.
    #[must_use]
    pub fn at(&self) -> Option<Moment> {
        self.0.get().copied()
    }

    /// Some output has come now.
    pub(crate) fn came(&self) {
        self.0.get_or_init(Moment::now);
    }
}

/// The phases of a pod's start, each with its end.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The front door was asked for the pod.
    pub request: Moment,
    /// The monitor's `main` began.
    pub monitor_up: Option<Moment>,
    /// The first instruction of the guest's kernel.
    pub kernel_entered: Option<Moment>,
    /// The agent connected to the host.
    pub agent_ready: Option<Moment>,
    /// A container was asked for, where that was after the pod was ready.
    pub container_requested: Option<Moment>,
    /// The container waited to be started.
    pub container_created: Option<Moment>,
    /// The first byte of the container's output reached the front door.
    pub first_output: Option<Moment>,
    /// The container's first process had ended.
    pub container_ended: Option<Moment>,
    /// Nothing of the pod was left.
    pub gone: Option<Moment>,
    /// VM exits until the agent was ready.
    pub exits_until_ready: Option<u64>,
    /// VM exits until the container had ended.
    pub exits: Option<u64>,
    /// Guest memory in bytes that had been touched when the container had ended.
    pub memory_touched: Option<u64>,
}

impl Timing {
    /// The timing of a pod that was asked for at `request`.
    #[must_use]
    pub fn new(request: Moment) -> Self {
        Self {
            request,
            monitor_up: None,
            kernel_entered: None,
            agent_ready: None,
            container_requested: None,
            container_created: None,
            first_output: None,
            container_ended: None,
            gone: None,
            exits_until_ready: None,
            exits: None,
            memory_touched: None,
        }
    }

    /// Name and end of each phase that was reached, in order.
    #[must_use]
    pub fn phases(&self) -> Vec<(&'static str, Duration)> {
        [
            ("monitor up", self.monitor_up),
            ("kernel entered", self.kernel_entered),
            ("agent ready", self.agent_ready),
            ("container requested", self.container_requested),
            ("container created", self.container_created),
            ("first output", self.first_output),
            ("container ended", self.container_ended),
            ("pod gone", self.gone),
        ]
        .into_iter()
        .filter_map(|(name, moment)| Some((name, moment?.since(self.request))))
        .collect()
    }
}

impl std::fmt::Display for Timing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{:<24} {:>10} {:>10}", "phase", "at ms", "took ms")?;
        let mut before = Duration::ZERO;
        for (name, at) in self.phases() {
            let took = at.saturating_sub(before);
            writeln!(f, "{name:<24} {:>10.1} {:>10.1}", millis(at), millis(took))?;
            before = at;
        }
        let counts = [
            ("VM exits until ready", self.exits_until_ready),
            ("VM exits until ended", self.exits),
            (
                "guest memory touched KiB",
                self.memory_touched.map(|bytes| bytes >> 10),
            ),
        ];
        for (name, count) in counts {
            if let Some(count) = count {
                writeln!(f, "{name:<24} {count:>10}")?;
            }
        }
        Ok(())
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_counted_from_the_request() {
        let request = Moment::from_nanos(1_000_000);
        let mut timing = Timing::new(request);
        timing.monitor_up = Some(Moment::from_nanos(3_000_000));
        timing.agent_ready = Some(Moment::from_nanos(9_500_000));
        timing.exits_until_ready = Some(1234);
        let text = timing.to_string();
        let rows: Vec<Vec<&str>> = text.lines().map(|row| row.split("  ").collect()).collect();
        assert_eq!(rows.len(), 4, "{text}");
        assert!(
            text.contains("monitor up                      2.0        2.0"),
            "{text}"
        );
        assert!(
            text.contains("agent ready                     8.5        6.5"),
            "{text}"
        );
        assert!(
            text.contains("VM exits until ready           1234"),
            "{text}"
        );
    }

    #[test]
    fn a_clock_that_runs_backwards_is_not_negative() {
        let (early, late) = (Moment::from_nanos(1), Moment::from_nanos(2));
        assert_eq!(early.since(late), Duration::ZERO);
    }
}
