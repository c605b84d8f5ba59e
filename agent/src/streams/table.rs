//! Streams that were opened and not yet named by a request.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::transport::Socket;

/// Bounds of a table.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Streams that may wait at a time.
    capacity: usize,
    /// How long an opened stream waits to be claimed before it is dropped.
    unclaimed: Duration,
    /// How long a request waits for a stream whose header is still on its way:
    /// control and streams are different connections and may overtake each other.
    late: Duration,
}

const LIMITS: Limits = Limits {
    capacity: 256,
    unclaimed: Duration::from_secs(60),
    late: Duration::from_secs(10),
};

/// How often the table is looked through for streams that are too old.
pub(super) const EXPIRE_EVERY: Duration = LIMITS.unclaimed;

/// Why a stream cannot be had.
#[derive(Debug, Error, Eq, PartialEq)]
pub(crate) enum StreamError {
    /// The host opened two streams with one identifier.
    #[error("stream {0} is open already")]
    Duplicate(u64),
    /// Too many streams wait to be claimed.
    #[error("{0} streams wait to be claimed already")]
    Full(usize),
    /// A request names a stream that the host has not opened.
    #[error("stream {0} has not been opened")]
    NotOpened(u64),
}

struct Opened<S> {
    stream: S,
    at: Instant,
}

/// Holds opened streams until a request claims them.
pub(crate) struct StreamTable<S = Socket> {
    limits: Limits,
    opened: Mutex<HashMap<u64, Opened<S>>>,
    changed: Notify,
}

impl<S> Default for StreamTable<S> {
    fn default() -> Self {
        Self::with_limits(LIMITS)
    }
}

impl<S> StreamTable<S> {
    fn with_limits(limits: Limits) -> Self {
        Self {
            limits,
            opened: Mutex::new(HashMap::new()),
            changed: Notify::new(),
        }
    }

    /// Keeps a stream until it is claimed or too old.
    ///
    /// # Errors
    /// When the identifier is taken or the table is full; the stream is dropped.
    pub(crate) fn insert(&self, id: u64, stream: S) -> Result<(), StreamError> {
        let at = Instant::now();
        let mut opened = self.lock();
        opened.retain(|_, other| other.at + self.limits.unclaimed > at);
        if opened.contains_key(&id) {
            return Err(StreamError::Duplicate(id));
        }
        if opened.len() >= self.limits.capacity {
            return Err(StreamError::Full(opened.len()));
        }
        opened.insert(id, Opened { stream, at });
        drop(opened);
        self.changed.notify_waiters();
        Ok(())
    }

    /// Takes a stream out, waiting a little for one that is on its way.
    ///
    /// # Errors
    /// [`StreamError::NotOpened`] when it does not come.
    pub(crate) async fn claim(&self, id: u64) -> Result<S, StreamError> {
        let deadline = Instant::now() + self.limits.late;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before the look, so that no insert is missed.
            changed.as_mut().enable();
            if let Some(opened) = self.lock().remove(&id) {
                return Ok(opened.stream);
            }
            if timeout_at(deadline, changed).await.is_err() {
                return Err(StreamError::NotOpened(id));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Opened<S>>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops what nobody claimed in time; called now and then.
    pub(super) fn expire(&self) {
        let now = Instant::now();
        self.lock()
            .retain(|_, opened| opened.at + self.limits.unclaimed > now);
    }

    /// Whether a call of [`StreamTable::expire`] will be needed.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::sleep;

    use super::*;

    const SMALL: Limits = Limits {
        capacity: 4,
        unclaimed: Duration::from_millis(50),
        late: Duration::from_millis(20),
    };

    #[tokio::test]
    async fn a_stream_is_claimed_once() {
        let table = StreamTable::with_limits(SMALL);
        table.insert(7, "seven").unwrap();
        assert_eq!(table.claim(7).await, Ok("seven"));
        assert_eq!(table.claim(7).await, Err(StreamError::NotOpened(7)));
    }

    #[tokio::test]
    async fn a_claim_waits_for_a_stream_that_is_late() {
        let table = Arc::new(StreamTable::default());
        let late = table.clone();
        tokio::spawn(async move {
            sleep(Duration::from_millis(30)).await;
            late.insert(1, "other").unwrap();
            sleep(Duration::from_millis(30)).await;
            late.insert(7, "seven").unwrap();
        });
        assert_eq!(table.claim(7).await, Ok("seven"));
    }

    #[tokio::test]
    async fn an_identifier_is_taken_until_it_is_claimed() {
        let table = StreamTable::with_limits(SMALL);
        table.insert(7, 1).unwrap();
        assert_eq!(table.insert(7, 2), Err(StreamError::Duplicate(7)));
        table.claim(7).await.unwrap();
        assert_eq!(table.insert(7, 3), Ok(()));
    }

    #[tokio::test]
    async fn the_table_is_bounded_in_number_and_in_time() {
        let table = StreamTable::with_limits(SMALL);
        for id in 1..=4 {
            table.insert(id, ()).unwrap();
        }
        assert_eq!(table.insert(5, ()), Err(StreamError::Full(4)));
        sleep(SMALL.unclaimed).await;
        assert_eq!(table.insert(5, ()), Ok(()));
        assert_eq!(table.claim(1).await, Err(StreamError::NotOpened(1)));
    }
}
