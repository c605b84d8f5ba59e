//! `GC` must not run beside `ADD` and `DEL` (section 3, "Lifecycle & Ordering"), also
//! when they are other processes': those share a lock, `GC` has it alone.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::Error;

/// In the directory of the result cache. No file of an attachment has such a name.
const FILE: &str = "lock";

/// Between two attempts.
const STEP: Duration = Duration::from_millis(5);

/// Held until it is dropped, or its process dies. A plugin does not inherit it.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Beside others of `ADD` and `DEL`.
    pub(crate) fn shared(dir: &Path, patience: Duration) -> Result<Self, Error> {
        Self::take(dir, FlockOperation::NonBlockingLockShared, patience)
    }

    /// Alone.
    pub(crate) fn exclusive(dir: &Path, patience: Duration) -> Result<Self, Error> {
        Self::take(dir, FlockOperation::NonBlockingLockExclusive, patience)
    }

    fn take(dir: &Path, operation: FlockOperation, patience: Duration) -> Result<Self, Error> {
        let path = dir.join(FILE);
        let cannot = |source: io::Error| Error::Cache {
            action: "lock",
            path: path.clone(),
            source,
        };
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(cannot)?;
        let until = Instant::now() + patience;
        loop {
            match flock(&file, operation) {
                Ok(()) => return Ok(Self { _file: file }),
                Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < until => {
                    thread::sleep(STEP);
                }
                Err(Errno::WOULDBLOCK | Errno::INTR) => {
                    let seconds = patience.as_secs();
                    return Err(Error::Locked { path, seconds });
                }
                Err(errno) => return Err(cannot(errno.into())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collection_waits_for_the_others_and_they_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let soon = Duration::from_millis(30);
        let first = Lock::shared(dir.path(), soon).unwrap();
        let second = Lock::shared(dir.path(), soon).unwrap();
        let error = Lock::exclusive(dir.path(), soon).unwrap_err();
        assert!(
            error.to_string().contains("locked by another process"),
            "{error}"
        );
        drop((first, second));
        let alone = Lock::exclusive(dir.path(), soon).unwrap();
        Lock::shared(dir.path(), soon).unwrap_err();
        drop(alone);
        Lock::shared(dir.path(), soon).unwrap();
    }

    #[test]
    fn a_waiting_one_gets_its_turn() {
        let dir = tempfile::tempdir().unwrap();
        let held = Lock::exclusive(dir.path(), Duration::ZERO).unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| Lock::shared(dir.path(), Duration::from_secs(20)));
            thread::sleep(Duration::from_millis(50));
            drop(held);
            waiting.join().unwrap().unwrap();
        });
    }
}
