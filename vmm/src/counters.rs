//! Counts of VM exits, kept by the vCPUs and read by the control thread.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::control::ExitCounts;

/// Counts of all vCPUs.
#[derive(Debug, Default)]
pub struct ExitCounters {
    pio: AtomicU64,
    mmio: AtomicU64,
    other: AtomicU64,
}

/// What an exit was for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ExitKind {
    /// A port.
    Pio,
    /// A device register.
    Mmio,
    /// Anything else.
    Other,
}

impl ExitCounters {
    /// Counts one exit.
    pub fn count(&self, kind: ExitKind) {
        let counter = match kind {
            ExitKind::Pio => &self.pio,
            ExitKind::Mmio => &self.mmio,
            ExitKind::Other => &self.other,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// The counts so far.
    #[must_use]
    pub fn read(&self) -> ExitCounts {
        ExitCounts {
            pio: self.pio.load(Ordering::Relaxed),
            mmio: self.mmio.load(Ordering::Relaxed),
            other: self.other.load(Ordering::Relaxed),
        }
    }
}
