//! The device on a real tap, in a network namespace of the test's own.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};
use std::{fs, thread};

use rustix::thread::{UnshareFlags, unshare_unsafe};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;

use super::*;
use crate::virtio::queue::Buffer;
use crate::virtio::testing::{Desc, GuestQueue};

pub(super) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Runs `test` where it may make interfaces; says loudly where that cannot be.
pub(super) fn in_a_network_of_its_own(test: impl FnOnce(&str) + Send + 'static) {
    let test = move || {
        // SAFETY: only this thread's network is replaced, no memory or files.
        let unshared = unsafe { unshare_unsafe(UnshareFlags::NEWNET) };
        match unshared {
            Ok(()) if fs::exists("/dev/net/tun").unwrap_or(false) => test("tap0"),
            Ok(()) => eprintln!("SKIPPED: this test needs /dev/net/tun"),
            Err(error) => eprintln!("SKIPPED: this test needs a network namespace: {error}"),
        }
    };
    thread::spawn(test).join().unwrap();
}

fn request(name: &str, flags: libc::c_int) -> libc::ifreq {
    // SAFETY: all zeroes is a valid value of this structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    request
}

pub(super) fn make_tap(name: &str, flags: libc::c_int) -> OwnedFd {
    let tap = fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .unwrap();
    let request = request(name, flags);
    // SAFETY: the kernel reads and writes one ifreq, which outlives the call.
    let result = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw const request) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    tap.into()
}

/// Attaches or detaches a queue of a tap.
pub(super) fn set_queue(tap: &OwnedFd, flag: libc::c_int) {
    let request = request("", flag);
    // SAFETY: the kernel reads one ifreq, which outlives the call.
    let result = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETQUEUE, &raw const request) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

pub(super) fn interface_flags(tap: &OwnedFd) -> u16 {
    let mut request = request("", 0);
    // SAFETY: the kernel writes one ifreq, which outlives the call, and any value of the
    // member that it fills is valid.
    unsafe {
        let result = libc::ioctl(tap.as_raw_fd(), libc::TUNGETIFF, &raw mut request);
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        request.ifr_ifru.ifru_flags.cast_unsigned()
    }
}

pub(super) fn open_vhost() -> io::Result<OwnedFd> {
    let device = fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/vhost-net")?;
    Ok(device.into())
}

/// The host's end of the tap: a socket that sees and sends raw frames.
pub(super) fn host_end(name: &str) -> fs::File {
    let up = request(name, libc::IFF_UP);
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: plain system calls on a socket that this function makes; the
    // structures outlive the calls.
    unsafe {
        let socket = libc::socket(
            libc::AF_PACKET,
            libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
            i32::from(protocol),
        );
        assert!(socket >= 0, "{}", io::Error::last_os_error());
        let socket = fs::File::from_raw_fd(socket);
        assert_eq!(
            libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const up),
            0
        );
        let mut index = up;
        assert_eq!(
            libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFINDEX, &raw mut index),
            0
        );
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = index.ifr_ifru.ifru_ifindex;
        assert_eq!(
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            ),
            0
        );
        socket
    }
}

pub(super) const TAP_FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

fn config(tap: OwnedFd) -> NetConfig {
    NetConfig {
        mac: MAC,
        pairs: vec![QueuePairFds { tap, vhost: None }],
    }
}

/// An Ethernet frame of a protocol that nobody else speaks.
pub(super) fn frame(payload: &[u8]) -> Vec<u8> {
    [&MAC[..], &[2, 0, 0, 0, 0, 2], &[0x88, 0xb5], payload].concat()
}

pub(super) fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(started.elapsed() < Duration::from_secs(20), "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A guest whose interface is on a real tap, and the tap's other end.
struct Guest {
    net: Net,
    receive: GuestQueue,
    transmit: GuestQueue,
    rooms: Vec<Buffer>,
    host: fs::File,
}

impl Guest {
    fn new(config: NetConfig, name: &str) -> Self {
        let receive = GuestQueue::new(256);
        let transmit = receive.sibling(1, 256);
        let mut guest = Self {
            net: Net::spawn(config).unwrap(),
            receive,
            transmit,
            rooms: Vec::new(),
            host: host_end(name),
        };
        guest.activate();
        guest
    }

    fn activate(&mut self) {
        self.rooms = (0..64).map(|_| self.receive.room(1536)).collect();
        for room in &self.rooms {
            self.receive.offer(&[Desc::writable(*room)]);
        }
        self.net
            .activate(ActiveDevice {
                memory: self.receive.shared_memory(),
                // EVENT_IDX stays off: the test's driver does not do its part in it.
                features: 1 << VIRTIO_F_VERSION_1 | self.net.features(),
                queues: vec![
                    Some(self.receive.device_side()),
                    Some(self.transmit.device_side()),
                ],
                interrupt: Arc::clone(self.receive.interrupt()),
            })
            .unwrap();
    }

    fn reset(&mut self) {
        self.net.reset();
        self.receive.interrupt().reset();
        self.receive.restart();
        self.transmit.restart();
    }

    fn send(&mut self, frame: &[u8]) {
        let message = [&[0; HEADER_LEN as usize], frame].concat();
        let buffer = self.transmit.buffer(&message);
        self.transmit.offer(&[Desc::readable(buffer)]);
    }

    fn assert_frames_cross(&mut self) {
        let out = frame(b"from the guest");
        self.send(&out);
        eventually("the host sees the guest's frame", || {
            let mut bytes = [0; 2048];
            let len = self.host.read(&mut bytes).ok()?;
            (bytes[..len] == out).then_some(())
        });
        let _ = self.receive.interrupt().irqfd().read();
        let inward = frame(b"from the host");
        self.host.write_all(&inward).unwrap();
        eventually("the guest sees the host's frame", || {
            self.receive
                .used()
                .into_iter()
                .map(|(head, len)| {
                    let room = self.rooms[usize::from(head)];
                    self.receive.read(room, len as usize)
                })
                .find(|bytes| bytes[usize::from(HEADER_LEN)..] == inward)
        });
        eventually("an interrupt", || {
            self.receive.interrupt().irqfd().read().ok()
        });
    }
}

/// Runs `test` with vhost-net; says loudly where there is none.
fn with_vhost(test: fn(OwnedFd, &str)) {
    match open_vhost() {
        Ok(vhost) => in_a_network_of_its_own(move |name| test(vhost, name)),
        Err(error) => eprintln!("SKIPPED: this test needs /dev/vhost-net: {error}"),
    }
}

fn on_vhost(vhost: OwnedFd, name: &str) -> Guest {
    let mut config = config(make_tap(name, TAP_FLAGS));
    config.pairs[0].vhost = Some(vhost);
    let guest = Guest::new(config, name);
    assert!(guest.net.interrupts_from_kernel());
    guest
}

#[test]
pub(super) fn frames_cross_a_real_tap_both_ways_and_after_a_reset_again() {
    in_a_network_of_its_own(|name| {
        let mut guest = Guest::new(config(make_tap(name, TAP_FLAGS)), name);
        for _ in 0..3 {
            guest.assert_frames_cross();
            guest.reset();
            guest.activate();
        }
    });
}

#[test]
pub(super) fn frames_cross_by_vhost_net_and_after_a_reset_again() {
    with_vhost(|vhost, name| {
        let mut guest = on_vhost(vhost, name);
        for _ in 0..3 {
            guest.assert_frames_cross();
            guest.reset();
            guest.activate();
        }
    });
}

#[test]
fn vhost_net_is_stopped_by_a_reset() {
    with_vhost(|vhost, name| {
        let mut guest = on_vhost(vhost, name);
        guest.assert_frames_cross();
        guest.net.reset();
        guest.receive.used();
        guest.host.write_all(&frame(b"too late")).unwrap();
        guest.send(&frame(b"too late, too"));
        thread::sleep(Duration::from_millis(200));
        assert_eq!(guest.receive.used(), vec![]);
        assert_eq!(guest.transmit.used().len(), 1);
    });
}

#[test]
fn a_ring_that_vhost_net_cannot_follow_fails_the_device() {
    with_vhost(|vhost, name| {
        let mut guest = on_vhost(vhost, name);
        guest.transmit.set_available_index(5000);
        guest.transmit.kick();
        eventually("the device needs a reset", || {
            guest.transmit.interrupt().has_failed().then_some(())
        });
        guest.reset();
        guest.activate();
        guest.assert_frames_cross();
    });
}

#[test]
fn what_the_tap_can_do_is_offered() {
    in_a_network_of_its_own(|name| {
        let net = Net::spawn(config(make_tap(name, TAP_FLAGS))).unwrap();
        // Any tap since Linux 2.6.27 has checksums and TCP segmentation.
        let expected = features::CANDIDATES[1];
        assert_eq!(features::tap_offloads(net.features()) & expected, expected);
        let mut space = [0; 10];
        net.read_config(0, &mut space);
        assert_eq!(space[..6], MAC);
        assert_eq!(space[6..8], 1u16.to_le_bytes());
        net.read_config(u64::MAX, &mut space);
    });
}

#[test]
fn a_tap_without_offload_headers_is_refused_with_its_flags() {
    in_a_network_of_its_own(|name| {
        let tap = make_tap(name, libc::IFF_TAP | libc::IFF_NO_PI);
        let error = Net::spawn(config(tap)).unwrap_err().to_string();
        assert!(error.contains("IFF_VNET_HDR"), "{error}");
        assert!(error.contains("0x1002"), "{error}");
    });
}

#[test]
fn what_is_no_tap_is_refused() {
    let file = fs::File::open("/dev/null").unwrap();
    let error = Net::spawn(config(file.into())).unwrap_err().to_string();
    assert!(
        error.contains("cannot read the flags of the tap"),
        "{error}"
    );
}
