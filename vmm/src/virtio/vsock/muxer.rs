//! All connections of the device: finds the one that a packet belongs to, and
//! gives each its turn at the RX queue.
//!
//! What a guest can make the muxer remember is bounded: connections by
//! [`MAX_CONNECTIONS`], resets by [`MAX_REPLIES`] (and one for each connection),
//! bytes by the credit of each connection.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::super::GuestMemory;
use super::super::queue::{QueueError, VirtQueue};
use super::Accept;
use super::connection::{Connection, Next, Ports, Verdict};
use super::packet::{HOST_CID, Header, Op, TYPE_STREAM, TxPacket};
use super::sender::{self, Sent};

/// Most connections at a time, those included that still deliver what an ended
/// one left.
pub(super) const MAX_CONNECTIONS: usize = 1024;
/// So many resets wait for RX buffers at most; then no TX packet is looked at.
pub(super) const MAX_REPLIES: usize = 256;
/// How long the guest may take to answer a request.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// Packets that are sent before other work gets its turn.
const FILL_BUDGET: usize = 256;
/// Ports of the host's end of connections that the host asks for begin here.
const FIRST_EPHEMERAL_PORT: u32 = 1 << 30;
/// Epoll tokens from here on name connections.
pub(super) const FIRST_TOKEN: u64 = 16;

/// Why the muxer stopped filling the RX queue.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Fill {
    /// There is nothing to send.
    Idle,
    /// There is something to send and no buffer to put it in.
    Starved,
    /// The budget is used up.
    More,
}

/// A port of the host that the guest may connect to, and the connection to it.
#[derive(Debug)]
struct Listener {
    port: u32,
    live: Option<u64>,
}

/// All connections.
pub(super) struct Muxer {
    guest_cid: u64,
    listeners: Vec<Listener>,
    accept: Accept,
    epoll: Epoll,
    connections: BTreeMap<u64, Connection>,
    by_ports: BTreeMap<Ports, u64>,
    next_token: u64,
    next_port: u32,
    /// Connections that have something to say, in turn, each once.
    ready: VecDeque<u64>,
    resets: VecDeque<Header>,
    /// When to give up on connections that the host asked for, in order.
    deadlines: VecDeque<(Instant, u64)>,
}

impl Muxer {
    /// A muxer without connections that watches its sockets with `epoll`.
    pub(super) fn new(guest_cid: u64, guest_ports: &[u32], accept: Accept, epoll: Epoll) -> Self {
        let listener = |port: &u32| Listener {
            port: *port,
            live: None,
        };
        Self {
            guest_cid,
            listeners: guest_ports.iter().map(listener).collect(),
            accept,
            epoll,
            connections: BTreeMap::new(),
            by_ports: BTreeMap::new(),
            next_token: FIRST_TOKEN,
            next_port: FIRST_EPHEMERAL_PORT,
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            deadlines: VecDeque::new(),
        }
    }

    /// What watches the sockets.
    pub(super) fn epoll(&self) -> &Epoll {
        &self.epoll
    }

    /// Asks the guest for a connection from `socket` to its port; closes the
    /// socket when there are too many connections.
    pub(super) fn connect(&mut self, guest_port: u32, socket: OwnedFd) {
        let ports = Ports {
            guest: guest_port,
            host: self.ephemeral_port(guest_port),
        };
        let connection = Connection::outgoing(self.guest_cid, ports, socket);
        match self.insert(connection) {
            Ok(token) => {
                self.deadlines
                    .push_back((Instant::now() + CONNECT_TIMEOUT, token));
                self.settle(token);
            }
            Err(error) => log::warn!("vsock: cannot connect to port {guest_port}: {error}"),
        }
    }

    /// Takes a packet of the guest.
    pub(super) fn handle(&mut self, packet: &TxPacket<'_>) {
        let header = &packet.header;
        if header.src_cid != self.guest_cid {
            // Not from whom it says; an answer would go to nobody.
            return;
        }
        let ports = Ports {
            guest: header.src_port,
            host: header.dst_port,
        };
        if header.dst_cid != HOST_CID || header.kind != TYPE_STREAM {
            self.refuse(header);
        } else if let Some(token) = self.by_ports.get(&ports).copied() {
            self.handle_connected(token, packet);
        } else if header.op() != Some(Op::Request) {
            self.refuse(header);
        } else if let Err(error) = self.accept(header) {
            log::debug!(
                "vsock: the guest's connection to port {} is refused: {error}",
                header.dst_port
            );
            self.refuse(header);
        }
    }

    fn handle_connected(&mut self, token: u64, packet: &TxPacket<'_>) {
        let Some(connection) = self.connections.get_mut(&token) else {
            return;
        };
        match connection.on_packet(packet) {
            Verdict::Keep => self.settle(token),
            Verdict::Reset => {
                self.resets.push_back(packet.header.reset());
                self.detach(token);
            }
            Verdict::Detach => self.detach(token),
        }
    }

    /// Answers a packet that belongs to no connection with a reset.
    fn refuse(&mut self, header: &Header) {
        // A reset is never answered, or two hosts could go on forever.
        if header.op() != Some(Op::Reset) {
            self.resets.push_back(header.reset());
        }
    }

    fn accept(&mut self, request: &Header) -> io::Result<()> {
        let refused = |why| io::Error::new(io::ErrorKind::ConnectionRefused, why);
        let listener = self
            .listeners
            .iter()
            .position(|listener| listener.port == request.dst_port)
            .ok_or_else(|| refused("nothing listens there"))?;
        if self.listeners[listener].live.is_some() {
            return Err(refused("it has a connection already"));
        }
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let token = self.insert(Connection::incoming(self.guest_cid, request, ours))?;
        if let Err(error) = (self.accept)(request.dst_port, theirs) {
            self.remove(token);
            return Err(error);
        }
        self.listeners[listener].live = Some(token);
        self.settle(token);
        Ok(())
    }

    /// Takes what epoll says of a socket.
    pub(super) fn socket_event(&mut self, token: u64, events: EventSet) {
        if let Some(connection) = self.connections.get_mut(&token) {
            connection.on_events(events);
            self.settle(token);
        }
    }

    /// Sends what there is to send, one packet or burst of packets a connection
    /// and turn, until the chains or the budget run out.
    ///
    /// # Errors
    /// [`QueueError`] when the driver broke the rules.
    pub(super) fn fill(
        &mut self,
        rx: &mut VirtQueue,
        memory: &GuestMemory,
    ) -> Result<Fill, QueueError> {
        for _ in 0..FILL_BUDGET {
            if let Some(header) = self.resets.front() {
                if !sender::send_control(header, rx, memory)? {
                    return Ok(Fill::Starved);
                }
                self.resets.pop_front();
                continue;
            }
            let Some(token) = self.ready.pop_front() else {
                return Ok(Fill::Idle);
            };
            let Some(connection) = self.connections.get_mut(&token) else {
                continue;
            };
            connection.queued = false;
            if sender::send_next(connection, rx, memory)? == Sent::Starved {
                connection.queued = true;
                self.ready.push_front(token);
                return Ok(Fill::Starved);
            }
            self.settle(token);
        }
        Ok(Fill::More)
    }

    /// As many resets wait as may: no TX packet may be handled before
    /// [`fill`](Self::fill) has sent some.
    pub(super) fn is_congested(&self) -> bool {
        self.resets.len() >= MAX_REPLIES
    }

    /// How long until [`expire`](Self::expire) has something to do.
    pub(super) fn time_to_deadline(&self, now: Instant) -> Option<Duration> {
        self.deadlines
            .front()
            .map(|(deadline, _)| deadline.saturating_duration_since(now))
    }

    /// Gives up on connections that the guest has not answered in time.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some((deadline, token)) = self.deadlines.front().copied() {
            let connecting = self
                .connections
                .get(&token)
                .is_some_and(Connection::is_connecting);
            if connecting && deadline > now {
                return;
            }
            self.deadlines.pop_front();
            if connecting {
                log::warn!("vsock: the guest does not answer a connection, giving up");
                self.end(token);
            }
        }
    }

    /// The guest's end is gone: forgets what it was to be told. What it sent
    /// before is still delivered.
    pub(super) fn reset(&mut self) {
        self.resets.clear();
        self.ready.clear();
        self.deadlines.clear();
        let tokens: Vec<_> = self.connections.keys().copied().collect();
        for token in tokens {
            self.detach(token);
        }
    }

    /// Connections that exist, in whatever state.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.connections.len()
    }

    /// Bytes that all connections' buffers occupy.
    #[cfg(test)]
    pub(super) fn buffer_capacity(&self) -> usize {
        self.connections
            .values()
            .map(Connection::buffer_capacity)
            .sum()
    }

    /// Entries in the queue of connections that have something to say.
    #[cfg(test)]
    pub(super) fn waiting_connections(&self) -> usize {
        self.ready.len()
    }

    /// Resets that wait for RX buffers.
    #[cfg(test)]
    pub(super) fn waiting_resets(&self) -> usize {
        self.resets.len()
    }

    fn insert(&mut self, connection: Connection) -> io::Result<u64> {
        if self.connections.len() >= MAX_CONNECTIONS {
            return Err(io::Error::other("there are too many connections"));
        }
        let token = self.next_token;
        self.watch(ControlOperation::Add, token, &connection)?;
        self.next_token += 1;
        self.by_ports.insert(connection.ports(), token);
        self.connections.insert(token, connection);
        Ok(token)
    }

    /// Draws the consequences of what a connection has just gone through.
    fn settle(&mut self, token: u64) {
        let Some(connection) = self.connections.get_mut(&token) else {
            return;
        };
        if connection.is_finished() {
            self.end(token);
            return;
        }
        if connection.has_buffered() != connection.write_watched {
            connection.write_watched = connection.has_buffered();
            let connection = &self.connections[&token];
            if let Err(error) = self.watch(ControlOperation::Modify, token, connection) {
                log::warn!("vsock: cannot watch a socket: {error}");
                self.end(token);
                return;
            }
        }
        if let Some(connection) = self.connections.get_mut(&token)
            && !connection.queued
            && connection.next() != Next::Nothing
        {
            connection.queued = true;
            self.ready.push_back(token);
        }
    }

    /// The guest has ended the connection.
    fn detach(&mut self, token: u64) {
        if let Some(connection) = self.connections.get_mut(&token) {
            connection.detach();
            let ports = connection.ports();
            if self.by_ports.get(&ports) == Some(&token) {
                self.by_ports.remove(&ports);
            }
            self.settle(token);
        }
    }

    /// Ends the connection for both sides.
    fn end(&mut self, token: u64) {
        if let Some(connection) = self.connections.get_mut(&token)
            && connection.is_known_to_guest()
        {
            self.resets.push_back(connection.header(Op::Reset, 0, 0));
        }
        self.remove(token);
    }

    fn remove(&mut self, token: u64) {
        let Some(connection) = self.connections.remove(&token) else {
            return;
        };
        let ports = connection.ports();
        if self.by_ports.get(&ports) == Some(&token) {
            self.by_ports.remove(&ports);
        }
        if connection.queued {
            // Without RX buffers it would stay there for ever.
            self.ready.retain(|ready| *ready != token);
        }
        for listener in &mut self.listeners {
            listener.live = listener.live.filter(|live| *live != token);
        }
        // The socket may live on in another process, and epoll would go on to watch it.
        let _ = self.watch(ControlOperation::Delete, token, &connection);
    }

    fn watch(
        &self,
        operation: ControlOperation,
        token: u64,
        connection: &Connection,
    ) -> io::Result<()> {
        // Edge-triggered: what waits for credit or RX buffers must not wake us again and again.
        let mut events = EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        if connection.write_watched {
            events |= EventSet::OUT;
        }
        self.epoll.ctl(
            operation,
            connection.socket().as_raw_fd(),
            EpollEvent::new(events, token),
        )
    }

    /// A port for the host's end that is free on connections to `guest_port`.
    fn ephemeral_port(&mut self, guest_port: u32) -> u32 {
        loop {
            let host = self.next_port;
            // The last port number means "any".
            self.next_port = match host + 1 {
                u32::MAX => FIRST_EPHEMERAL_PORT,
                next => next,
            };
            let ports = Ports {
                guest: guest_port,
                host,
            };
            if !self.by_ports.contains_key(&ports) {
                return host;
            }
        }
    }
}
