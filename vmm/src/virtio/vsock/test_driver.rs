//! What a guest's vsock driver does, for tests: keeps the RX queue filled, sends
//! packets, and checks every packet of the device against the specification.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::sync::mpsc::{Receiver, channel};

use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::GuestMemory;
use super::super::device::ActiveDevice;
use super::super::interrupt::Interrupt;
use super::super::queue::{Buffer, VirtQueue};
use super::super::testing::{Desc, GuestQueue};
use super::super::worker::Worker;
use super::event_loop::EventLoop;
use super::muxer::Muxer;
use super::packet::{HEADER_LEN, HOST_CID, Header, MAX_PAYLOAD, Op, TYPE_STREAM};
use super::{Connector, Vsock};

pub(super) const GUEST_CID: u64 = 3;
/// The guest may connect here.
pub(super) const OPEN_PORT: u32 = 1024;
/// Linux's RX buffers: 4 KiB of payload.
pub(super) const RX_LEN: usize = HEADER_LEN + 4096;
const RX_ENTRIES: u16 = 128;
const TX_ENTRIES: u16 = 256;
/// Packets that the guest can have on their way.
const TX_SLOTS: usize = 32;

/// A packet that the guest received.
#[derive(Clone, Debug)]
pub(super) struct Packet {
    pub(super) header: Header,
    pub(super) payload: Vec<u8>,
}

impl Packet {
    pub(super) fn op(&self) -> Op {
        self.header.op().unwrap()
    }
}

/// The guest's driver.
pub(super) struct Driver {
    pub(super) rx: GuestQueue,
    pub(super) tx: GuestQueue,
    event: GuestQueue,
    /// What each offered RX chain consists of.
    offered: HashMap<u16, Vec<Buffer>>,
    /// RX chains are offered again as soon as they have been read.
    pub(super) refill: bool,
    slots: VecDeque<Buffer>,
    sending: HashMap<u16, Option<Buffer>>,
    event_idx: bool,
    rx_kick: EventFd,
    tx_kick: EventFd,
    rx_rings: QueueState,
    tx_rings: QueueState,
}

impl Driver {
    /// A driver that uses EVENT_IDX, as Linux does, and has offered no RX buffers yet.
    pub(super) fn new() -> Self {
        Self::with_event_idx(true)
    }

    /// A driver that has offered no RX buffers yet.
    pub(super) fn with_event_idx(event_idx: bool) -> Self {
        Self::with_rx(GuestQueue::new(RX_ENTRIES), event_idx)
    }

    /// A driver in this memory of 16 MiB.
    pub(super) fn in_memory(memory: GuestMemory) -> Self {
        let interrupt = Arc::new(Interrupt::new("test").unwrap());
        let rx = GuestQueue::in_memory(Arc::new(memory), interrupt, 0, RX_ENTRIES);
        Self::with_rx(rx, true)
    }

    fn with_rx(rx: GuestQueue, event_idx: bool) -> Self {
        let mut tx = rx.sibling(1, TX_ENTRIES);
        let event = rx.sibling(2, 16);
        let slots = (0..TX_SLOTS)
            .map(|_| tx.room(HEADER_LEN + MAX_PAYLOAD))
            .collect();
        Self {
            rx_rings: rx.device_side().rings().state(),
            tx_rings: tx.device_side().rings().state(),
            rx,
            tx,
            event,
            offered: HashMap::new(),
            refill: true,
            slots,
            sending: HashMap::new(),
            event_idx,
            rx_kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            tx_kick: EventFd::new(EFD_NONBLOCK).unwrap(),
        }
    }

    /// What the transport hands to the device.
    pub(super) fn active_device(&self) -> ActiveDevice {
        ActiveDevice {
            memory: self.rx.shared_memory(),
            features: 0,
            queues: vec![
                Some(self.device_side(self.rx_rings, &self.rx_kick)),
                Some(self.device_side(self.tx_rings, &self.tx_kick)),
                Some(self.event.device_side()),
            ],
            interrupt: Arc::clone(self.rx.interrupt()),
        }
    }

    fn device_side(&self, rings: QueueState, kick: &EventFd) -> VirtQueue {
        let mut queue = Queue::try_from(rings).unwrap();
        queue.set_event_idx(self.event_idx);
        let interrupt = Arc::clone(self.rx.interrupt());
        VirtQueue::new(queue, kick.try_clone().unwrap(), interrupt)
    }

    /// Kicks after a chain was made available, if the device wants to hear of it.
    fn kick(&self, rings: &QueueState, kick: &EventFd) {
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let available = self.read_index(rings.avail_ring + 2);
            let avail_event = rings.used_ring + 4 + 8 * u64::from(rings.size);
            self.read_index(avail_event) == available.wrapping_sub(1)
        } else {
            self.read_index(rings.used_ring) == 0
        };
        if wanted {
            kick.write(1).unwrap();
        }
    }

    /// Kicks whether the device wants it or not.
    pub(super) fn kick_always(&self) {
        self.rx_kick.write(1).unwrap();
        self.tx_kick.write(1).unwrap();
    }

    /// Asks for an interrupt at the next chain that the device gives back.
    pub(super) fn want_interrupt(&self) {
        for rings in [&self.rx_rings, &self.tx_rings] {
            let used = self.read_index(rings.used_ring + 2);
            let used_event = rings.avail_ring + 4 + 2 * u64::from(rings.size);
            let memory = self.rx.memory();
            memory.write_obj(used, GuestAddress(used_event)).unwrap();
        }
        fence(Ordering::SeqCst);
    }

    fn read_index(&self, address: u64) -> u16 {
        self.rx.memory().read_obj(GuestAddress(address)).unwrap()
    }

    /// How often the device has interrupted since the last call.
    pub(super) fn interrupts(&self) -> u64 {
        self.rx.interrupt().irqfd().read().unwrap_or(0)
    }

    /// Waits for an interrupt of a device with a thread; panics when none comes.
    pub(super) fn wait_for_interrupt(&self) {
        let epoll = Epoll::new().unwrap();
        let irqfd = self.rx.interrupt().irqfd().as_raw_fd();
        let event = EpollEvent::new(EventSet::IN, 0);
        epoll.ctl(ControlOperation::Add, irqfd, event).unwrap();
        let mut events = [EpollEvent::default()];
        let count = epoll.wait(60_000, &mut events).unwrap();
        assert_eq!(count, 1, "no interrupt comes");
        self.interrupts();
    }

    /// Offers as many RX buffers of Linux's size as the queue takes.
    pub(super) fn offer_all(&mut self) {
        while self.offered.len() < usize::from(RX_ENTRIES) {
            self.offer(&[RX_LEN]);
        }
    }

    /// Offers one RX chain of buffers with these lengths.
    pub(super) fn offer(&mut self, lens: &[usize]) {
        let chain: Vec<_> = lens.iter().map(|len| self.rx.room(*len)).collect();
        self.offer_chain(chain);
    }

    /// The RX queue takes another chain of so many buffers.
    pub(super) fn has_room_for(&self, buffers: usize) -> bool {
        let taken: usize = self.offered.values().map(Vec::len).sum();
        taken + buffers <= usize::from(RX_ENTRIES)
    }

    /// Offers one RX chain.
    pub(super) fn offer_chain(&mut self, chain: Vec<Buffer>) {
        let descs: Vec<_> = chain.iter().copied().map(Desc::writable).collect();
        let head = self.offer_descs(&descs);
        self.offered.insert(head, chain);
    }

    /// Offers an RX chain as it is.
    pub(super) fn offer_descs(&mut self, descs: &[Desc]) -> u16 {
        let head = self.rx.offer(descs);
        self.kick(&self.rx_rings, &self.rx_kick);
        head
    }

    /// Little memory is left for RX buffers.
    pub(super) fn is_worn_out(&mut self) -> bool {
        self.rx.room(0).address.0 > 3 << 20
    }

    /// Takes the packets that the device has sent.
    pub(super) fn receive(&mut self) -> Vec<Packet> {
        let used = self.rx.used();
        used.into_iter()
            .map(|(head, len)| {
                let chain = self
                    .offered
                    .remove(&head)
                    .expect("a chain that was offered");
                let mut bytes = Vec::with_capacity(len as usize);
                for buffer in &chain {
                    let part = (len as usize - bytes.len()).min(buffer.len as usize);
                    bytes.extend(self.rx.read(*buffer, part));
                }
                assert_eq!(bytes.len(), len as usize, "more than the chain can hold");
                if self.refill {
                    self.offer_chain(chain);
                }
                let (header, payload) = bytes.split_first_chunk().expect("a header");
                let header = Header::decode(header);
                assert_eq!(header.len as usize, payload.len());
                assert_eq!(header.dst_cid, GUEST_CID);
                Packet {
                    header,
                    payload: payload.to_vec(),
                }
            })
            .collect()
    }

    /// Waits for packets from a device with a thread, as a driver does: sleeps
    /// until an interrupt, and looks before it does.
    pub(super) fn wait(&mut self) -> Vec<Packet> {
        loop {
            self.want_interrupt();
            let packets = self.receive();
            if !packets.is_empty() {
                return packets;
            }
            self.wait_for_interrupt();
        }
    }

    /// A packet can be sent.
    pub(super) fn can_send(&mut self) -> bool {
        for (head, written) in self.tx.used() {
            assert_eq!(written, 0, "a TX chain has nothing to write to");
            if let Some(slot) = self.sending.remove(&head).expect("a chain that was sent") {
                self.slots.push_back(slot);
            }
        }
        !self.slots.is_empty()
    }

    /// Sends a packet: a header in one buffer, the payload in a second one.
    pub(super) fn send(&mut self, header: &Header, payload: &[u8]) {
        assert!(self.can_send(), "the device does not take TX packets");
        let slot = self.slots.pop_front().unwrap();
        let memory = self.tx.shared_memory();
        let data = vm_memory::Address::unchecked_add(&slot.address, HEADER_LEN as u64);
        memory.write_slice(&header.encode(), slot.address).unwrap();
        memory.write_slice(payload, data).unwrap();
        let mut chain = vec![Desc::readable(Buffer {
            len: HEADER_LEN as u32,
            ..slot
        })];
        if !payload.is_empty() {
            chain.push(Desc::readable(Buffer {
                address: data,
                len: u32::try_from(payload.len()).unwrap(),
            }));
        }
        let head = self.tx.offer(&chain);
        self.kick(&self.tx_rings, &self.tx_kick);
        self.sending.insert(head, Some(slot));
    }

    /// Sends a chain as it is.
    pub(super) fn send_chain(&mut self, chain: &[Desc]) {
        let head = self.tx.offer(chain);
        self.kick(&self.tx_rings, &self.tx_kick);
        self.sending.insert(head, None);
    }

    /// The device has given up on the driver.
    pub(super) fn has_failed(&self) -> bool {
        self.rx.interrupt().has_failed()
    }

    /// Chains that the device has not given back.
    pub(super) fn unsent(&mut self) -> usize {
        self.can_send();
        self.sending.len()
    }
}

/// The guest's end of a connection: what it counts, and what it tells the host.
#[derive(Clone, Debug)]
pub(super) struct GuestSocket {
    pub(super) port: u32,
    pub(super) host_port: u32,
    /// Size of the guest's buffer.
    pub(super) buf_alloc: u32,
    received: u32,
    consumed: u32,
    /// `consumed` as the host has heard it last.
    announced: u32,
    sent: u32,
    host_buf_alloc: u32,
    host_consumed: u32,
}

impl GuestSocket {
    pub(super) fn new(port: u32, host_port: u32) -> Self {
        Self {
            port,
            host_port,
            buf_alloc: 256 << 10,
            received: 0,
            consumed: 0,
            announced: 0,
            sent: 0,
            host_buf_alloc: 0,
            host_consumed: 0,
        }
    }

    /// The header of a packet to the host.
    pub(super) fn header(&mut self, op: Op, len: usize) -> Header {
        let len = u32::try_from(len).unwrap();
        self.sent = self.sent.wrapping_add(len);
        self.announced = self.consumed;
        Header {
            src_cid: GUEST_CID,
            dst_cid: HOST_CID,
            src_port: self.port,
            dst_port: self.host_port,
            len,
            kind: TYPE_STREAM,
            op: op.code(),
            flags: 0,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.consumed,
        }
    }

    /// Takes a packet, which must be for this socket and within its credit.
    pub(super) fn take(&mut self, packet: &Packet) {
        let header = &packet.header;
        assert_eq!((header.src_cid, header.kind), (HOST_CID, TYPE_STREAM));
        assert_eq!(
            (header.src_port, header.dst_port),
            (self.host_port, self.port)
        );
        self.received = self.received.wrapping_add(header.len);
        let on_the_way = self.received.wrapping_sub(self.announced);
        assert!(
            on_the_way <= self.buf_alloc,
            "the device exceeds the guest's credit: {on_the_way}"
        );
        if packet.op() != Op::Reset {
            self.host_buf_alloc = header.buf_alloc;
            self.host_consumed = header.fwd_cnt;
        }
    }

    /// The application has read bytes; whether the host should hear of it, by
    /// Linux's rule.
    pub(super) fn consume(&mut self, count: usize) -> bool {
        self.consumed = self.consumed.wrapping_add(u32::try_from(count).unwrap());
        let unannounced = self.consumed.wrapping_sub(self.announced);
        unannounced > 0 && self.buf_alloc.saturating_sub(unannounced) < 64 << 10
    }

    /// Bytes that the guest may send.
    pub(super) fn credit(&self) -> usize {
        let on_the_way = self.sent.wrapping_sub(self.host_consumed);
        self.host_buf_alloc
            .checked_sub(on_the_way)
            .expect("the device takes credit back") as usize
    }
}

/// A device whose thread is the test itself.
pub(super) struct Bench {
    pub(super) event_loop: EventLoop,
    pub(super) worker: Worker,
    pub(super) connector: Connector,
    pub(super) driver: Driver,
    accepted: Receiver<(u32, OwnedFd)>,
}

impl Bench {
    /// A device that is not active yet.
    pub(super) fn inactive() -> Self {
        let (sender, accepted) = channel();
        let accept = move |port, socket| {
            sender
                .send((port, socket))
                .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
        };
        let (worker, mailbox) = Worker::pair().unwrap();
        let (connector, requests) = Connector::pair().unwrap();
        let muxer = Muxer::new(
            GUEST_CID,
            &[OPEN_PORT, OPEN_PORT + 1],
            Box::new(accept),
            Epoll::new().unwrap(),
        );
        Self {
            event_loop: EventLoop::new(mailbox, requests, muxer).unwrap(),
            worker,
            connector,
            driver: Driver::new(),
            accepted,
        }
    }

    /// An active device with a full RX queue.
    pub(super) fn new() -> Self {
        let mut bench = Self::inactive();
        bench.driver.offer_all();
        bench.activate();
        bench
    }

    pub(super) fn activate(&mut self) {
        self.worker.activate(self.driver.active_device()).unwrap();
        self.poll();
    }

    /// Lets the device do all that it can do.
    pub(super) fn poll(&mut self) {
        for _ in 0..4 {
            self.turn();
        }
    }

    /// Lets the device work for a turn, after which it holds no chain.
    pub(super) fn turn(&mut self) {
        self.event_loop.poll();
        assert_eq!(self.event_loop.chains_held(), [0; 2]);
    }

    /// Lets the device work, and takes what it sends.
    pub(super) fn packets(&mut self) -> Vec<Packet> {
        self.poll();
        self.driver.receive()
    }

    /// As [`packets`](Self::packets), what they are for only.
    pub(super) fn ops(&mut self) -> Vec<Op> {
        self.packets().iter().map(Packet::op).collect()
    }

    /// Sends a packet from a guest's socket.
    pub(super) fn send(&mut self, socket: &mut GuestSocket, op: Op, payload: &[u8]) {
        let header = socket.header(op, payload.len());
        self.driver.send(&header, payload);
    }

    /// Sends a SHUTDOWN with these flags.
    pub(super) fn shutdown(&mut self, socket: &mut GuestSocket, flags: u32) {
        let header = Header {
            flags,
            ..socket.header(Op::Shutdown, 0)
        };
        self.driver.send(&header, &[]);
    }

    /// A connection that the host asked for and the guest agreed to.
    pub(super) fn host_connection(&mut self, guest_port: u32) -> (GuestSocket, UnixStream) {
        let host = self.request(guest_port);
        let packets = self.packets();
        let [request] = &packets[..] else {
            panic!("{packets:?}");
        };
        assert_eq!(request.op(), Op::Request);
        let mut guest = GuestSocket::new(guest_port, request.header.src_port);
        guest.take(request);
        self.send(&mut guest, Op::Response, &[]);
        assert_eq!(self.ops(), []);
        (guest, host)
    }

    /// The front door's end of a socket that is to be connected to the guest.
    pub(super) fn request(&mut self, guest_port: u32) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.connector.connect(guest_port, theirs.into()).unwrap();
        ours.set_nonblocking(true).unwrap();
        ours
    }

    /// A connection that the guest asked for and the host agreed to.
    pub(super) fn guest_connection(&mut self, port: u32) -> (GuestSocket, UnixStream) {
        let mut guest = GuestSocket::new(port, OPEN_PORT);
        self.send(&mut guest, Op::Request, &[]);
        let packets = self.packets();
        let [response] = &packets[..] else {
            panic!("{packets:?}");
        };
        assert_eq!(response.op(), Op::Response);
        guest.take(response);
        (guest, self.accepted().expect("an accepted connection"))
    }

    /// The host end of the connection that was accepted last.
    pub(super) fn accepted(&mut self) -> Option<UnixStream> {
        let (port, socket) = self.accepted.try_recv().ok()?;
        assert!([OPEN_PORT, OPEN_PORT + 1].contains(&port));
        let socket = UnixStream::from(socket);
        socket.set_nonblocking(true).unwrap();
        Some(socket)
    }

    /// From now on no connection is accepted.
    pub(super) fn close_accept(&mut self) {
        self.accepted = channel().1;
    }

    /// As [`restart`](Self::restart), but no RX buffers are offered.
    pub(super) fn restart_without_rx(&mut self) {
        self.reset();
        self.driver = Driver::new();
        self.activate();
    }

    /// A new driver takes the device over, after a reset.
    pub(super) fn restart(&mut self, driver: Driver) {
        self.reset();
        self.driver = driver;
        self.driver.offer_all();
        self.activate();
    }

    /// The driver resets the device.
    pub(super) fn reset(&mut self) {
        self.event_loop.reset();
    }

    /// Connections that the device knows.
    pub(super) fn connections(&mut self) -> usize {
        self.event_loop.muxer().len()
    }
}

/// A device with its thread, already active, whose driver keeps so many RX
/// buffers offered.
pub(super) fn spawned(event_idx: bool, rx_buffers: usize) -> (Vsock, Connector, Driver) {
    use super::super::device::VirtioDevice;
    let (mut vsock, connector) =
        Vsock::spawn(3, &[OPEN_PORT], |_, _| Err(io::ErrorKind::Other.into())).unwrap();
    let mut driver = Driver::with_event_idx(event_idx);
    for _ in 0..rx_buffers {
        driver.offer(&[RX_LEN]);
    }
    vsock.activate(driver.active_device()).unwrap();
    (vsock, connector, driver)
}

/// All that can be read from the socket now, and whether the stream has ended.
pub(super) fn read_available(socket: &mut UnixStream) -> (Vec<u8>, bool) {
    use std::io::Read;
    let mut bytes = Vec::new();
    let mut chunk = [0; 65536];
    loop {
        match socket.read(&mut chunk) {
            Ok(0) => return (bytes, true),
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return (bytes, false),
            Err(error) => panic!("{error}"),
        }
    }
}
