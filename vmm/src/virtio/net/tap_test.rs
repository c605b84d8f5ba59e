//! The device on a real tap, in a network namespace of the test's own.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fs, thread};

use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::*;
use crate::virtio::testing::{Desc, GuestQueue};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Runs `test` where it may make interfaces; says loudly where that cannot be.
fn in_a_network_of_its_own(test: fn(&str)) {
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

fn make_tap(name: &str, flags: libc::c_int) -> OwnedFd {
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

/// The host's end of the tap: a socket that sees and sends raw frames.
fn host_end(name: &str) -> fs::File {
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

const TAP_FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

fn config(tap: OwnedFd) -> NetConfig {
    NetConfig {
        mac: MAC,
        mtu: 1450,
        tap,
        vhost: None,
    }
}

/// An Ethernet frame of a protocol that nobody else speaks.
fn frame(payload: &[u8]) -> Vec<u8> {
    [&MAC[..], &[2, 0, 0, 0, 0, 2], &[0x88, 0xb5], payload].concat()
}

fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(started.elapsed() < Duration::from_secs(20), "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn frames_cross_a_real_tap_both_ways() {
    in_a_network_of_its_own(|name| {
        let mut net = Net::spawn(config(make_tap(name, TAP_FLAGS))).unwrap();
        let mut host = host_end(name);
        let mut receive = GuestQueue::new(256);
        let mut transmit = receive.sibling(1, 256);
        let rooms: Vec<_> = (0..64).map(|_| receive.room(1536)).collect();
        for room in &rooms {
            receive.offer(&[Desc::writable(*room)]);
        }
        net.activate(ActiveDevice {
            memory: receive.shared_memory(),
            features: net.features(),
            queues: vec![Some(receive.device_side()), Some(transmit.device_side())],
            interrupt: Arc::clone(receive.interrupt()),
        })
        .unwrap();

        let out = frame(b"from the guest");
        let buffer = transmit.buffer(&[&[0; HEADER_LEN as usize], &out[..]].concat());
        transmit.offer(&[Desc::readable(buffer)]);
        eventually("the host sees the guest's frame", || {
            let mut bytes = [0; 2048];
            let len = host.read(&mut bytes).ok()?;
            (bytes[..len] == out).then_some(())
        });

        let inward = frame(b"from the host");
        host.write_all(&inward).unwrap();
        eventually("the guest sees the host's frame", || {
            receive
                .used()
                .into_iter()
                .map(|(head, len)| receive.read(rooms[usize::from(head)], len as usize))
                .find(|bytes| bytes[usize::from(HEADER_LEN)..] == inward)
        });
        net.reset();
    });
}

#[test]
fn what_the_tap_can_do_is_offered() {
    in_a_network_of_its_own(|name| {
        let net = Net::spawn(config(make_tap(name, TAP_FLAGS))).unwrap();
        // Any tap since Linux 2.6.27 has checksums and TCP segmentation.
        let expected = features::CANDIDATES[1];
        assert_eq!(features::tap_offloads(net.features()) & expected, expected);
        let mut space = [0; 12];
        net.read_config(0, &mut space);
        assert_eq!(space[..6], MAC);
        assert_eq!(space[6..8], 1u16.to_le_bytes());
        assert_eq!(space[10..12], 1450u16.to_le_bytes());
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
