//! Descriptors that nobody may wait for when they are closed.

use std::os::fd::OwnedFd;
use std::thread;

use tokio::sync::oneshot;

/// A descriptor of a block device. The last close of one returns when all that was written is
/// on the device, which may take minutes and cannot be interrupted. So a thread of its own
/// closes it, whenever this is dropped: the runtime's have others to serve.
#[derive(Debug)]
pub(crate) struct ClosedAside(Option<OwnedFd>);

impl ClosedAside {
    /// Takes a descriptor to be closed so.
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self(Some(fd))
    }

    /// Closes it, whether the answer is waited for or not; the answer comes when it is closed.
    pub(crate) fn close(mut self) -> impl Future<Output = ()> + use<> {
        let closed = self.0.take().map(start);
        async {
            if let Some(closed) = closed {
                // Nothing is ever sent: the other end goes when the descriptor has.
                let _ = closed.await;
            }
        }
    }
}

impl Drop for ClosedAside {
    fn drop(&mut self) {
        if let Some(fd) = self.0.take() {
            drop(start(fd));
        }
    }
}

fn start(fd: OwnedFd) -> oneshot::Receiver<()> {
    let (end, closed) = oneshot::channel();
    let started = thread::Builder::new()
        .name("close".to_owned())
        .spawn(move || {
            drop(fd);
            drop(end);
        });
    if let Err(error) = started {
        // It went with what the thread was to do.
        log::warn!("no thread to close a block device: {error}");
    }
    closed
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;

    fn pair() -> (UnixStream, ClosedAside) {
        let (other, one) = UnixStream::pair().unwrap();
        let limit = Duration::from_secs(20);
        other.set_read_timeout(Some(limit)).unwrap();
        (other, ClosedAside::new(one.into()))
    }

    #[tokio::test]
    async fn who_waits_finds_it_closed() {
        let (mut other, held) = pair();
        held.close().await;
        other.set_nonblocking(true).unwrap();
        assert_eq!(other.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn it_is_closed_without_anybody_to_wait() {
        for drop_it in [drop::<ClosedAside> as fn(ClosedAside), |held| {
            drop(held.close())
        }] {
            let (mut other, held) = pair();
            other.set_nonblocking(true).unwrap();
            let open = other.read(&mut [0]).unwrap_err();
            assert_eq!(open.kind(), ErrorKind::WouldBlock);
            other.set_nonblocking(false).unwrap();
            drop_it(held);
            assert_eq!(other.read(&mut [0]).unwrap(), 0);
        }
    }
}
