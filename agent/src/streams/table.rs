//! Streams that were opened and not yet named by a request.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::transport::Socket;

/// Streams that may wait at a time.
const CAPACITY: usize = 256;

/// How long an opened stream waits to be claimed before it is dropped.
const UNCLAIMED: Duration = Duration::from_secs(60);

/// How long a request waits for a stream whose header is still on its way:
/// control and streams are different connections and may overtake each other.
const LATE: Duration = Duration::from_secs(10);

/// Why a stream cannot be had.
#[derive(Debug, Error, Eq, PartialEq)]
pub(crate) enum StreamError {
    /// The host opened two streams with one identifier.
    #[error("stream {0} is open already")]
    Duplicate(u64),
    /// Too many streams wait to be claimed.
    #[error("more than {CAPACITY} streams wait to be claimed")]
    Full,
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
    opened: Mutex<HashMap<u64, Opened<S>>>,
    changed: Notify,
}

impl<S> Default for StreamTable<S> {
    fn default() -> Self {
        Self {
            opened: Mutex::new(HashMap::new()),
            changed: Notify::new(),
        }
    }
}

impl<S> StreamTable<S> {
    /// Keeps a stream until it is claimed or too old.
    ///
    /// # Errors
    /// When the identifier is taken or the table is full; the stream is dropped.
    pub(crate) fn insert(&self, id: u64, stream: S) -> Result<(), StreamError> {
        let at = Instant::now();
        let mut opened = self.lock();
        opened.retain(|_, other| other.at + UNCLAIMED > at);
        if opened.contains_key(&id) {
            return Err(StreamError::Duplicate(id));
        }
        if opened.len() >= CAPACITY {
            return Err(StreamError::Full);
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
        let deadline = Instant::now() + LATE;
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
        self.lock().retain(|_, opened| opened.at + UNCLAIMED > now);
    }

    /// Whether a call of [`StreamTable::expire`] will be needed.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }
}

/// How often the table is looked through for streams that are too old.
pub(super) const EXPIRE_EVERY: Duration = UNCLAIMED;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stream_is_claimed_once() {
        let table = StreamTable::default();
        table.insert(7, "seven").unwrap();
        assert_eq!(table.claim(7).await, Ok("seven"));
        assert_eq!(table.claim(7).await, Err(StreamError::NotOpened(7)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_waits_for_a_stream_that_is_late() {
        let table = std::sync::Arc::new(StreamTable::default());
        let late = table.clone();
        tokio::spawn(async move {
            tokio::time::sleep(LATE / 2).await;
            late.insert(1, "other").unwrap();
            late.insert(7, "seven").unwrap();
        });
        assert_eq!(table.claim(7).await, Ok("seven"));
    }

    #[tokio::test(start_paused = true)]
    async fn an_identifier_is_taken_until_it_is_claimed() {
        let table = StreamTable::default();
        table.insert(7, 1).unwrap();
        assert_eq!(table.insert(7, 2), Err(StreamError::Duplicate(7)));
        table.claim(7).await.unwrap();
        assert_eq!(table.insert(7, 3), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn the_table_is_bounded_in_number_and_in_time() {
        let table = StreamTable::default();
        for id in 1..=CAPACITY as u64 {
            table.insert(id, ()).unwrap();
        }
        assert_eq!(table.insert(u64::MAX, ()), Err(StreamError::Full));
        tokio::time::advance(UNCLAIMED).await;
        assert_eq!(table.insert(u64::MAX, ()), Ok(()));
        assert_eq!(table.claim(1).await, Err(StreamError::NotOpened(1)));
    }
}
