//! The device's thread: waits for the guest's kicks, for the host's sockets and
//! for commands, and moves packets.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use virtio_queue::QueueT;
use vmm_sys_util::epoll::{ControlOperation, EpollEvent, EventSet};

use super::super::GuestMemory;
use super::super::device::{ActivateError, ActiveDevice};
use super::super::interrupt::Interrupt;
use super::super::queue::{QueueError, VirtQueue};
use super::super::worker::{Command, Mailbox};
use super::Requests;
use super::muxer::{FIRST_TOKEN, Fill, Muxer};
use super::packet::TxPacket;

const MAILBOX: u64 = 0;
const REQUESTS: u64 = 1;
const RX_KICK: u64 = 2;
const TX_KICK: u64 = 3;

const RX_QUEUE: usize = 0;
const TX_QUEUE: usize = 1;
const EVENT_QUEUE: usize = 2;

/// TX packets that are taken before other work gets its turn.
const TX_BUDGET: usize = 256;
/// Events that one wait returns at most.
const MAX_EVENTS: usize = 64;

/// What an active device holds.
struct Active {
    memory: Arc<GuestMemory>,
    interrupt: Arc<Interrupt>,
    rx: VirtQueue,
    tx: VirtQueue,
    /// Its buffers stay with the device.
    _event: Option<VirtQueue>,
}

/// What the driver has made of the device.
enum State {
    /// It is not ready: who wants to connect waits.
    Inactive,
    Active(Box<Active>),
    /// It broke the rules: nothing can connect until it resets the device.
    Failed,
}

/// The thread's work.
pub(super) struct EventLoop {
    mailbox: Mailbox,
    requests: Requests,
    muxer: Muxer,
    state: State,
    /// There is more to do than the last turn did.
    busy: bool,
    events: Vec<EpollEvent>,
}

impl EventLoop {
    /// An event loop that watches its mailbox and its requests.
    ///
    /// # Errors
    /// What `epoll_ctl(2)` answers.
    pub(super) fn new(mailbox: Mailbox, requests: Requests, muxer: Muxer) -> io::Result<Self> {
        let this = Self {
            mailbox,
            requests,
            muxer,
            state: State::Inactive,
            busy: false,
            events: vec![EpollEvent::default(); MAX_EVENTS],
        };
        this.watch(&this.mailbox, MAILBOX)?;
        this.watch(&*this.requests.wake, REQUESTS)?;
        Ok(this)
    }

    /// Works until the device is gone.
    pub(super) fn run(mut self) {
        while !self.mailbox.is_closed() {
            if let Err(error) = self.turn() {
                log::error!("vsock: cannot wait for events: {error}");
                return;
            }
        }
    }

    /// Waits for something to happen and handles it.
    ///
    /// # Errors
    /// What `epoll_wait(2)` answers.
    pub(super) fn turn(&mut self) -> io::Result<()> {
        let timeout = self.timeout();
        let mut events = std::mem::take(&mut self.events);
        let count = match self.muxer.epoll().wait(timeout, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        for event in &events[..count] {
            self.dispatch(event);
        }
        self.events = events;
        self.muxer.expire(Instant::now());
        self.move_packets();
        Ok(())
    }

    /// How long to wait in milliseconds, -1 for ever.
    fn timeout(&self) -> i32 {
        if self.busy {
            return 0;
        }
        match self.muxer.time_to_deadline(Instant::now()) {
            // Rounded up, so that the deadline has passed afterwards.
            Some(time) => i32::try_from(time.as_millis() + 1).unwrap_or(i32::MAX),
            None => -1,
        }
    }

    /// Handles what has happened already.
    #[cfg(test)]
    pub(super) fn poll(&mut self) {
        self.busy = true;
        self.turn().unwrap();
    }

    /// Nothing has happened that the loop would look at.
    #[cfg(test)]
    pub(super) fn is_idle(&mut self) -> bool {
        self.muxer.epoll().wait(0, &mut self.events).unwrap() == 0
    }

    /// Chains that were taken and not given back, RX and TX.
    #[cfg(test)]
    pub(super) fn chains_held(&self) -> [u16; 2] {
        let State::Active(active) = &self.state else {
            return [0; 2];
        };
        [&active.rx, &active.tx].map(|queue| {
            let rings = queue.rings();
            rings.next_avail().wrapping_sub(rings.next_used())
        })
    }

    /// The connections, to look at.
    #[cfg(test)]
    pub(super) fn muxer(&mut self) -> &mut Muxer {
        &mut self.muxer
    }

    fn dispatch(&mut self, event: &EpollEvent) {
        match event.data() {
            MAILBOX => self.obey(),
            REQUESTS => {
                // The counter only says that there may be something.
                let _ = self.requests.wake.read();
                self.take_requests();
            }
            RX_KICK => self.clear_kick(|active| &active.rx),
            TX_KICK => self.clear_kick(|active| &active.tx),
            token => self
                .muxer
                .socket_event(token, EventSet::from_bits_truncate(event.events())),
        }
    }

    /// Every turn looks at both queues, so the kick itself says nothing.
    fn clear_kick(&self, queue: impl Fn(&Active) -> &VirtQueue) {
        if let State::Active(active) = &self.state {
            let _ = queue(active).kick().read();
        }
    }

    fn obey(&mut self) {
        while let Some(command) = self.mailbox.take() {
            match command {
                Command::Activate(active) => self.activate(*active),
                Command::Reset(done) => {
                    self.reset();
                    // Nobody may wait for it any more, which is no harm.
                    let _ = done.send(());
                }
            }
        }
    }

    fn activate(&mut self, active: ActiveDevice) {
        let interrupt = Arc::clone(&active.interrupt);
        match self.take_queues(active) {
            Ok(active) => self.state = State::Active(Box::new(active)),
            Err(error) => {
                interrupt.fail_device(&error);
                self.state = State::Failed;
            }
        }
        self.take_requests();
    }

    fn take_queues(&self, mut active: ActiveDevice) -> Result<Active, ActivateError> {
        let rx = active.take_queue(RX_QUEUE)?;
        let tx = active.take_queue(TX_QUEUE)?;
        let watched = self
            .watch(rx.kick(), RX_KICK)
            .and_then(|()| self.watch(tx.kick(), TX_KICK));
        if let Err(source) = watched {
            self.unwatch([&rx, &tx]);
            return Err(ActivateError::Host {
                what: "watching a queue",
                source,
            });
        }
        Ok(Active {
            rx,
            tx,
            _event: active.take_queue(EVENT_QUEUE).ok(),
            memory: active.memory,
            interrupt: active.interrupt,
        })
    }

    /// Lets go of the queues.
    pub(super) fn reset(&mut self) {
        self.deactivate(State::Inactive);
    }

    fn deactivate(&mut self, next: State) {
        if let State::Active(active) = std::mem::replace(&mut self.state, next) {
            self.unwatch([&active.rx, &active.tx]);
        }
        self.busy = false;
        self.muxer.reset();
    }

    /// Begins the connections that wait, if the driver is ready.
    fn take_requests(&mut self) {
        if matches!(self.state, State::Inactive) {
            return;
        }
        while let Ok(request) = self.requests.queue.try_recv() {
            // With a driver that has failed, the socket is just closed.
            if matches!(self.state, State::Active(_)) {
                self.muxer.connect(request.guest_port, request.socket);
            }
        }
    }

    fn move_packets(&mut self) {
        let State::Active(active) = &mut self.state else {
            return;
        };
        match active.move_packets(&mut self.muxer) {
            Ok(busy) => self.busy = busy,
            Err(error) => {
                active.interrupt.fail_device(&error);
                self.deactivate(State::Failed);
            }
        }
    }

    fn watch(&self, source: &impl AsRawFd, token: u64) -> io::Result<()> {
        debug_assert!(token < FIRST_TOKEN);
        self.muxer.epoll().ctl(
            ControlOperation::Add,
            source.as_raw_fd(),
            EpollEvent::new(EventSet::IN, token),
        )
    }

    fn unwatch(&self, queues: [&VirtQueue; 2]) {
        for queue in queues {
            // KVM holds the eventfd, too, so that closing it would not end the watch.
            let _ = self.muxer.epoll().ctl(
                ControlOperation::Delete,
                queue.kick().as_raw_fd(),
                EpollEvent::default(),
            );
        }
    }
}

impl Active {
    /// Takes what the guest sends and sends what there is; interrupts the
    /// driver at most once a queue. `true` when there is more to do.
    fn move_packets(&mut self, muxer: &mut Muxer) -> Result<bool, QueueError> {
        let more_tx = self.drain(muxer)?;
        let was_congested = muxer.is_congested();
        let more_rx = self.fill(muxer)?;
        let resume = was_congested && !muxer.is_congested();
        Ok(more_tx || more_rx || resume)
    }

    /// Takes what the guest sends.
    fn drain(&mut self, muxer: &mut Muxer) -> Result<bool, QueueError> {
        self.tx.disable_kicks(&self.memory)?;
        let before = self.tx.rings().next_used();
        let mut more = true;
        for _ in 0..TX_BUDGET {
            if muxer.is_congested() {
                // Goes on when RX buffers have come.
                more = false;
                break;
            }
            if let Some(chain) = self.tx.pop(&self.memory)? {
                muxer.handle(&TxPacket::parse(&chain)?);
                self.tx.push(&self.memory, chain.head(), 0)?;
            } else if !self.tx.enable_kicks(&self.memory)? {
                more = false;
                break;
            }
        }
        if self.tx.rings().next_used() != before {
            self.tx.signal(&self.memory)?;
        }
        Ok(more)
    }

    /// Sends what there is to send, as far as there are buffers.
    fn fill(&mut self, muxer: &mut Muxer) -> Result<bool, QueueError> {
        let before = self.rx.rings().next_used();
        let fill = muxer.fill(&mut self.rx, &self.memory)?;
        let more = match fill {
            Fill::Idle => false,
            Fill::More => true,
            Fill::Starved => self.rx.enable_kicks(&self.memory)?,
        };
        if fill != Fill::Starved {
            self.rx.disable_kicks(&self.memory)?;
        }
        if self.rx.rings().next_used() != before {
            self.rx.signal(&self.memory)?;
        }
        Ok(more)
    }
}
