//! virtio-fs (virtio 1.2, section 5.11): the pod's share, served in process.
//!
//! The driver speaks FUSE over two queues. FORGETs and interrupts come on the
//! high-priority queue, which has a thread of its own so that nothing holds
//! them up; all other requests come on one request queue, which a small pool of
//! threads empties, so that one slow operation of the host does not hold up the
//! rest. [`lane`] is what each thread does, [`request`] turns a chain into what
//! `fuse-backend-rs` decodes and answers, [`share`] does what is asked.

mod lane;
mod request;
mod share;

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use fuse_backend_rs::api::server::Server;
use thiserror::Error;

use self::lane::{Lane, Session};
use self::share::caller::prepare_thread;
use self::share::{Host, Share};
use super::device::{ActivateError, ActiveDevice, VirtioDevice, read_space};
use super::worker::Worker;
use crate::jail::seccomp::ThreadKind;

const DEVICE_TYPE: u32 = 26;
/// Longest name of a share (virtio 1.2, section 5.11.4), in bytes.
pub const MAX_TAG_LEN: usize = 36;
const HIGH_PRIORITY_QUEUE: usize = 0;
const REQUEST_QUEUE: usize = 1;
/// The request queue holds a few requests of 1 MiB, with one descriptor a page.
const QUEUE_SIZES: [u16; 2] = [128, 1024];
/// Threads that empty the request queue: the second is there for when the first
/// waits for the host's disk.
const REQUEST_THREADS: usize = 2;

/// Why there is no file system device.
#[derive(Debug, Error)]
pub enum FsError {
    /// The name of the share does not fit.
    #[error("share name {0:?} must have 1 to {MAX_TAG_LEN} bytes")]
    Tag(String),
    /// The directory cannot be shared.
    #[error("cannot share {path}: {source}")]
    Root {
        /// The directory.
        path: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A thread did not start.
    #[error("cannot start the threads that serve the share: {0}")]
    Threads(io::Error),
}

/// The file system device.
pub struct Fs {
    config: [u8; MAX_TAG_LEN + 4],
    host: Arc<Host>,
    high_priority: Worker<Lane>,
    requests: Vec<Worker<Lane>>,
}

impl Fs {
    /// A device that shows the directory `root` to the guest under the name
    /// `tag`, with its threads started.
    ///
    /// # Errors
    /// [`FsError`].
    pub fn spawn(tag: &str, root: &Path) -> Result<Self, FsError> {
        if tag.is_empty() || tag.len() > MAX_TAG_LEN {
            return Err(FsError::Tag(tag.to_owned()));
        }
        let mut config = [0; MAX_TAG_LEN + 4];
        config[..tag.len()].copy_from_slice(tag.as_bytes());
        config[MAX_TAG_LEN..].copy_from_slice(&1u32.to_le_bytes());

        let host = Host::open(root).map_err(|source| FsError::Root {
            path: root.display().to_string(),
            source,
        })?;
        let host = Arc::new(host);
        let thread = || {
            Worker::spawn_prepared(ThreadKind::Fs, prepare_thread, |mailbox| {
                lane::run(&mailbox)
            })
            .map_err(FsError::Threads)
        };
        Ok(Self {
            config,
            host,
            high_priority: thread()?,
            requests: (0..REQUEST_THREADS)
                .map(|_| thread())
                .collect::<Result<_, _>>()?,
        })
    }
}

impl VirtioDevice for Fs {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn name(&self) -> &'static str {
        "fs"
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_space(&self.config, offset, data);
    }

    fn activate(&mut self, mut active: ActiveDevice) -> Result<(), ActivateError> {
        let high_priority = active.take_queue(HIGH_PRIORITY_QUEUE)?;
        let requests = active.take_queue(REQUEST_QUEUE)?;
        let host = |source| ActivateError::Host {
            what: "serve the share",
            source,
        };
        let share = Share::new(Arc::clone(&self.host)).map_err(host)?;
        let session = Arc::new(Session {
            memory: active.memory,
            interrupt: active.interrupt,
            server: Server::new(share),
        });
        let lane = Lane::new(Arc::clone(&session), Arc::new(Mutex::new(high_priority)));
        self.high_priority.activate(lane.map_err(host)?)?;
        let requests = Arc::new(Mutex::new(requests));
        for worker in &self.requests {
            let lane = Lane::new(Arc::clone(&session), Arc::clone(&requests));
            worker.activate(lane.map_err(host)?)?;
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.high_priority.reset();
        for worker in &self.requests {
            worker.reset();
        }
    }
}

#[cfg(test)]
mod device_test;
#[cfg(test)]
mod driver_test;
#[cfg(test)]
mod hostile_test;
#[cfg(test)]
mod share_test;
