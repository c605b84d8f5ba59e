//! The control queue (virtio 1.2, section 5.1.6.5): of all its commands, the one that says
//! how many pairs of queues the driver uses.
//!
//! The tap puts frames only into queues that are attached, so what is not in use is
//! detached: no frame waits where nobody reads. Both are done by a thread of its own, since
//! either can wait for the host's network configuration.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{Timespec, poll};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::tap::Tap;
use crate::virtio::GuestMemory;
use crate::virtio::activation::{End, PathError, Share, run_with, wait};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::{Chain, QueueError, VirtQueue};
use crate::virtio::worker::Mailbox;

/// Bytes of the one command that is known: class, command, number of pairs.
const COMMAND_LEN: usize = 4;
/// The command's class, the command, and the answers: bytes of the queue.
const CLASS: u8 = 4;
const SET_PAIRS: u8 = 0;
const OK: u8 = 0;
const ERR: u8 = 1;
const _: () = assert!(
    CLASS as u32 == VIRTIO_NET_CTRL_MQ
        && SET_PAIRS as u32 == VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET
        && OK as u32 == VIRTIO_NET_OK
        && ERR as u32 == VIRTIO_NET_ERR
);

/// Pause with a change of the tap: each holds a lock of the host's network for a moment, which a
/// guest must not be able to do without end.
const PAUSE: Duration = Duration::from_millis(10);

/// What the thread is handed upon activation.
#[derive(Debug)]
pub(super) struct ActiveControl {
    pub(super) memory: Arc<GuestMemory>,
    pub(super) interrupt: Arc<Interrupt>,
    pub(super) queue: VirtQueue,
    /// Pairs that the driver has set up: it can use no more of them.
    pub(super) pairs: usize,
}

impl Share for ActiveControl {
    fn interrupt(&self) -> &Arc<Interrupt> {
        &self.interrupt
    }
}

/// A tap's queues beyond the first, of which some are attached.
pub(super) trait Queues {
    /// Attaches the first `count` and detaches the others; whether it was done.
    fn use_further(&mut self, count: usize) -> bool;
}

/// The queues of a real tap.
#[derive(Debug)]
pub(super) struct FurtherQueues {
    taps: Vec<Arc<Tap>>,
    attached: usize,
}

impl FurtherQueues {
    /// All queues of a tap but the first, detached.
    pub(super) fn new(taps: Vec<Arc<Tap>>) -> Self {
        Self { taps, attached: 0 }
    }
}

impl Queues for FurtherQueues {
    fn use_further(&mut self, count: usize) -> bool {
        while self.attached != count {
            let attach = self.attached < count;
            let index = if attach {
                self.attached
            } else {
                self.attached - 1
            };
            let Some(tap) = self.taps.get(index) else {
                return false;
            };
            if let Err(error) = tap.set_attached(attach) {
                log::warn!("net: cannot change the number of queues: {error}");
                return false;
            }
            self.attached = if attach { index + 1 } else { index };
        }
        true
    }
}

/// The thread: answers the control queue whenever the device is active, and leaves one pair
/// in use when it is not.
pub(super) fn run<Q: Queues>(mut queues: Q, mailbox: &Mailbox<ActiveControl>) {
    run_with("net", mailbox, |active, mailbox| {
        let mut in_use = 1;
        let end = serve(active, &mut queues, &mut in_use, mailbox);
        queues.use_further(0);
        rest(in_use - 1);
        end
    });
}

const MAILBOX: u64 = 0;
const KICK: u64 = 1;

fn serve<Q: Queues>(
    active: ActiveControl,
    queues: &mut Q,
    in_use: &mut usize,
    mailbox: &Mailbox<ActiveControl>,
) -> Result<End, PathError> {
    let ActiveControl {
        memory,
        mut queue,
        pairs,
        ..
    } = active;
    let epoll = Epoll::new().map_err(PathError::host("make an epoll"))?;
    for (fd, token) in [
        (mailbox.as_raw_fd(), MAILBOX),
        (queue.kick().as_raw_fd(), KICK),
    ] {
        let event = EpollEvent::new(EventSet::IN, token);
        epoll
            .ctl(ControlOperation::Add, fd, event)
            .map_err(PathError::host("watch a descriptor"))?;
    }
    loop {
        if let Some(end) = End::ask(mailbox) {
            return Ok(end);
        }
        if let Some(chain) = queue.pop(&memory)? {
            let wanted = requested(&chain, pairs)?;
            let changes = wanted.map_or(0, |wanted| wanted.abs_diff(*in_use));
            let done = wanted.filter(|wanted| changes == 0 || queues.use_further(wanted - 1));
            let answer = if done.is_some() { OK } else { ERR };
            *in_use = done.unwrap_or(*in_use);
            chain.write(&[answer])?;
            queue.push(&memory, chain.head(), 1)?;
            queue.signal(&memory)?;
            rest(changes);
        } else if !queue.enable_kicks(&memory)? {
            wait(&epoll, &mut [EpollEvent::default(); 2])
                .map_err(PathError::host("wait for events"))?;
            // The counter only says that there may be something.
            let _ = queue.kick().read();
        }
    }
}

/// The number of pairs that a command asks for; `None` when it is another command, or a
/// number that cannot be had.
fn requested(chain: &Chain<'_>, pairs: usize) -> Result<Option<usize>, QueueError> {
    if chain.writable_len() == 0 {
        return Err(QueueError::Malformed(
            "a control command has no room for its answer",
        ));
    }
    if chain.readable_len() != COMMAND_LEN as u64 {
        return Ok(None);
    }
    let mut command = [0; COMMAND_LEN];
    chain.read(&mut command)?;
    let [class, which, low, high] = command;
    let wanted = usize::from(u16::from_le_bytes([low, high]));
    let is_known = (class, which) == (CLASS, SET_PAIRS);
    Ok((is_known && (1..=pairs).contains(&wanted)).then_some(wanted))
}

/// Pauses for each queue of the tap that was attached or detached.
pub(super) fn rest(changes: usize) {
    let pause = Timespec {
        tv_sec: 0,
        tv_nsec: i64::from(PAUSE.subsec_nanos()),
    };
    for _ in 0..changes {
        // Of no descriptor: an interrupted pause is one, too.
        let _ = poll(&mut [], Some(&pause));
    }
}
