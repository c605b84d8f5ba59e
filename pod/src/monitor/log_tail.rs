//! The newest part of a monitor's log, which is its standard error.
//!
//! The pipe is always drained, so that no monitor ever waits for its reader, and
//! what is kept is bounded, so that no monitor fills the front door.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::task::{AbortHandle, JoinHandle};

use crate::text;

/// Bytes that are kept.
const KEPT: usize = 16 << 10;

/// How long the rest of a log may take to arrive when its writer has ended.
const REST: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(crate) struct LogTail {
    kept: Arc<Mutex<Vec<u8>>>,
    reader: Mutex<Option<JoinHandle<()>>>,
    abort: AbortHandle,
}

impl LogTail {
    /// Reads `log` until its end; each line is also logged here.
    pub(crate) fn read(log: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&log, true)?;
        let mut pipe = pipe::Receiver::from_owned_fd(log)?;
        let kept = Arc::<Mutex<Vec<u8>>>::default();
        let all = kept.clone();
        let reader = tokio::spawn(async move {
            let mut buffer = [0; 4096];
            let mut line = Vec::new();
            while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
                let bytes = &buffer[..count];
                let mut kept = all.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend_from_slice(bytes);
                let surplus = kept.len().saturating_sub(KEPT);
                kept.drain(..surplus);
                drop(kept);
                show(&mut line, bytes);
            }
        });
        Ok(Self {
            kept,
            abort: reader.abort_handle(),
            reader: Mutex::new(Some(reader)),
        })
    }

    /// What is kept, once the monitor has ended or a moment has passed.
    pub(crate) async fn text(&self) -> String {
        let reader = self
            .reader
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(reader) = reader {
            // Late is better than incomplete, but not by much.
            let _ = tokio::time::timeout(REST, reader).await;
        }
        self.so_far()
    }

    /// What is kept now.
    pub(crate) fn so_far(&self) -> String {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&kept).into_owned()
    }
}

impl Drop for LogTail {
    fn drop(&mut self) {
        self.abort.abort();
    }
}

/// Logs whole lines; a line that never ends is cut.
fn show(line: &mut Vec<u8>, bytes: &[u8]) {
    for &byte in bytes {
        if byte != b'\n' && line.len() < KEPT {
            line.push(byte);
            continue;
        }
        log::debug!(
            "monitor: {}",
            text::one_line(&String::from_utf8_lossy(line))
        );
        line.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::*;

    #[tokio::test]
    async fn a_flood_is_drained_and_only_its_end_is_kept() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let tail = LogTail::read(read).unwrap();
        let writer = std::thread::spawn(move || {
            let mut write = File::from(write);
            write.write_all(&vec![b'x'; 1 << 20]).unwrap();
            write.write_all(b"\nthe end\n").unwrap();
        });
        tokio::task::spawn_blocking(|| writer.join().unwrap())
            .await
            .unwrap();
        let text = tail.text().await;
        assert!(text.len() <= KEPT);
        assert!(text.ends_with("the end\n"));
    }
}
