//! Directories of the host whose changes are told.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::poll::{self, Polled};

/// What an update of a volume is made of.
const EVENTS: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVE)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::ONLYDIR);

/// Whom to tell of which directory, by the kernel's number for it.
type Listeners = Arc<Mutex<HashMap<i32, Arc<Notify>>>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An inotify instance, of which a user may have few (`fs.inotify.max_user_instances`), and
/// the task that reads it, which ends with it.
#[derive(Debug)]
pub(super) struct Watcher {
    inotify: Arc<Polled<OwnedFd>>,
    listeners: Listeners,
    _reader: JoinSet<()>,
}

impl Watcher {
    pub(super) fn new() -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let inotify = Arc::new(poll::add(inotify, Interest::READABLE)?);
        let listeners = Listeners::default();
        let mut reader = JoinSet::new();
        reader.spawn(read(inotify.clone(), listeners.clone()));
        Ok(Self {
            inotify,
            listeners,
            _reader: reader,
        })
    }

    /// Tells of changes of a directory from now on. The same directory has the same number.
    pub(super) fn add(&self, dir: BorrowedFd<'_>) -> io::Result<(i32, Arc<Notify>)> {
        let path = format!("/proc/thread-self/fd/{}", dir.as_raw_fd());
        let mut listeners = lock(&self.listeners);
        let number = inotify::add_watch(&self.inotify.get_ref().0, path, EVENTS)?;
        Ok((number, listeners.entry(number).or_default().clone()))
    }

    /// Tells no more of a directory.
    pub(super) fn remove(&self, number: i32) {
        if lock(&self.listeners).remove(&number).is_some() {
            // An error means that the directory itself is no more.
            let _ = inotify::remove_watch(&self.inotify.get_ref().0, number);
        }
    }
}

async fn read(inotify: Arc<Polled<OwnedFd>>, listeners: Listeners) {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    loop {
        let mut ready = match inotify.readable().await {
            Ok(ready) => ready,
            Err(error) => return log::error!("changes of volumes are not seen: {error}"),
        };
        let mut events = inotify::Reader::new(&inotify.get_ref().0, &mut buffer);
        loop {
            match events.next() {
                Ok(event) => tell(&lock(&listeners), event.wd(), event.events()),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break ready.clear_ready(),
                Err(error) => return log::error!("changes of volumes are not seen: {error}"),
            }
        }
    }
}

fn tell(listeners: &HashMap<i32, Arc<Notify>>, number: i32, events: ReadFlags) {
    if events.contains(ReadFlags::QUEUE_OVERFLOW) {
        listeners
            .values()
            .for_each(|listener| listener.notify_one());
    } else if let Some(listener) = listeners.get(&number) {
        listener.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsFd;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);
    const NEVER: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn a_change_is_told_to_who_watches_the_directory() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let open = |dir: &tempfile::TempDir| File::open(dir.path()).unwrap();
        let watcher = Watcher::new().unwrap();
        let (number, changed) = watcher.add(open(&one).as_fd()).unwrap();
        let (again, _) = watcher.add(open(&one).as_fd()).unwrap();
        let (another, unchanged) = watcher.add(open(&other).as_fd()).unwrap();
        assert_eq!(number, again);
        assert_ne!(number, another);
        fs::write(one.path().join("file"), "").unwrap();
        timeout(SOON, changed.notified()).await.unwrap();
        timeout(NEVER, unchanged.notified()).await.unwrap_err();
        fs::rename(one.path().join("file"), one.path().join("..data")).unwrap();
        timeout(SOON, changed.notified()).await.unwrap();

        while timeout(NEVER, changed.notified()).await.is_ok() {}
        watcher.remove(number);
        fs::write(one.path().join("file"), "").unwrap();
        timeout(NEVER, changed.notified()).await.unwrap_err();
        fs::write(other.path().join("file"), "").unwrap();
        timeout(SOON, unchanged.notified()).await.unwrap();
    }

    #[tokio::test]
    async fn lost_events_are_a_change_of_everything() {
        let (one, other) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let listeners = HashMap::from([(1, one.clone()), (2, other.clone())]);
        tell(&listeners, -1, ReadFlags::QUEUE_OVERFLOW);
        for listener in [one, other] {
            timeout(SOON, listener.notified()).await.unwrap();
        }
        tell(&listeners, 3, ReadFlags::CREATE);
    }

    #[tokio::test]
    async fn files_are_not_watched() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let watcher = Watcher::new().unwrap();
        let error = watcher.add(file.as_file().as_fd()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotADirectory);
    }
}
