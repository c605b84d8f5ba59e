//! A device with several pairs of queues on a real tap.

use std::fs::File;
use std::io::{Read, Write};

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ};

use super::tap_test::{
    MAC, TAP_FLAGS, eventually, frame, host_end, in_a_network_of_its_own, interface_flags,
    make_tap, open_vhost, set_queue,
};
use super::*;
use crate::virtio::queue::Buffer;
use crate::virtio::testing::{Desc, GuestQueue};

const PAIRS: usize = 2;
const SEVERAL: libc::c_int = TAP_FLAGS | libc::IFF_MULTI_QUEUE;

fn config(name: &str, vhost: bool) -> NetConfig {
    let pair = |index| {
        let tap = make_tap(name, SEVERAL);
        if index > 0 {
            set_queue(&tap, libc::IFF_DETACH_QUEUE);
        }
        QueuePairFds {
            tap,
            vhost: vhost.then(|| open_vhost().unwrap()),
        }
    };
    NetConfig {
        mac: MAC,
        pairs: (0..PAIRS).map(pair).collect(),
    }
}

/// A guest with two CPUs, and the tap's other end.
struct Guest {
    net: Net,
    /// A queue of the tap, to look at its flags.
    second: std::os::fd::OwnedFd,
    receive: Vec<GuestQueue>,
    rooms: Vec<Vec<Buffer>>,
    transmit: Vec<GuestQueue>,
    control: GuestQueue,
    host: File,
}

impl Guest {
    fn new(name: &str, vhost: bool) -> Self {
        let config = config(name, vhost);
        let second = config.pairs[1].tap.try_clone().unwrap();
        let first = GuestQueue::new(256);
        let queue = |index| first.sibling(index, 256);
        let mut guest = Self {
            net: Net::spawn(config).unwrap(),
            second,
            transmit: vec![queue(1), queue(3)],
            control: first.sibling(4, 16),
            rooms: vec![Vec::new(); PAIRS],
            receive: vec![queue(0), queue(2)],
            host: host_end(name),
        };
        guest.activate();
        guest
    }

    fn activate(&mut self) {
        for (queue, rooms) in self.receive.iter_mut().zip(&mut self.rooms) {
            *rooms = (0..200).map(|_| queue.room(1536)).collect();
            for room in &*rooms {
                queue.offer(&[Desc::writable(*room)]);
            }
        }
        let pairs = self.receive.iter().zip(&self.transmit);
        let queues = pairs
            .flat_map(|(receive, transmit)| [receive, transmit])
            .chain([&self.control])
            .map(|queue| Some(queue.device_side()))
            .collect();
        self.net
            .activate(ActiveDevice {
                memory: self.control.shared_memory(),
                features: 1 << VIRTIO_F_VERSION_1 | self.net.features(),
                queues,
                interrupt: Arc::clone(self.control.interrupt()),
            })
            .unwrap();
    }

    fn reset(&mut self) {
        self.net.reset();
        self.control.interrupt().reset();
        let queues = self.receive.iter_mut().chain(&mut self.transmit);
        queues
            .chain([&mut self.control])
            .for_each(GuestQueue::restart);
    }

    fn set_pairs(&mut self, pairs: u8) {
        let command = self.control.buffer(&[4, 0, pairs, 0]);
        let answer = self.control.buffer(&[0x55]);
        self.control
            .offer(&[Desc::readable(command), Desc::writable(answer)]);
        eventually("an answer", || {
            (!self.control.used().is_empty()).then_some(())
        });
        assert_eq!(self.control.read(answer, 1), [0]);
    }

    fn second_is_attached(&self) -> bool {
        i32::from(interface_flags(&self.second)) & libc::IFF_DETACH_QUEUE == 0
    }

    /// A frame sent through that pair arrives.
    fn assert_sends(&mut self, pair: usize) {
        let out = frame(&[u8::try_from(pair).unwrap(); 50]);
        let message = [&[0; HEADER_LEN as usize], &out[..]].concat();
        let queue = &mut self.transmit[pair];
        let buffer = queue.buffer(&message);
        queue.offer(&[Desc::readable(buffer)]);
        eventually("the host sees the guest's frame", || {
            let mut bytes = [0; 2048];
            let len = self.host.read(&mut bytes).ok()?;
            (bytes[..len] == out).then_some(())
        });
    }

    /// Sends frames of many flows to the guest and says how many arrive on each pair, of
    /// which there must be all.
    fn receive_flows(&mut self) -> Vec<usize> {
        const FLOWS: u8 = 64;
        for flow in 0..FLOWS {
            self.host.write_all(&datagram(flow)).unwrap();
        }
        let mut arrived = vec![0; PAIRS];
        eventually("all flows arrive", || {
            for (count, (queue, rooms)) in arrived
                .iter_mut()
                .zip(self.receive.iter_mut().zip(&self.rooms))
            {
                for (head, len) in queue.used() {
                    let bytes = queue.read(rooms[usize::from(head)], len as usize);
                    let start = datagram(0);
                    *count +=
                        usize::from(bytes[usize::from(HEADER_LEN)..].starts_with(&start[..30]));
                }
            }
            (arrived.iter().sum::<usize>() == usize::from(FLOWS)).then_some(())
        });
        arrived
    }
}

/// A UDP datagram from a port of its own: each a flow.
fn datagram(flow: u8) -> Vec<u8> {
    let ip = [
        0x45, 0, 0, 36, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ];
    let udp = [40, flow, 0, 9, 0, 16, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    [&MAC[..], &[2, 0, 0, 0, 0, 2], &[8, 0], &ip, &udp].concat()
}

fn traffic_takes_the_pairs_in_use(name: &str, vhost: bool) {
    let mut guest = Guest::new(name, vhost);
    for _ in 0..2 {
        assert!(!guest.second_is_attached(), "at first one pair is in use");
        guest.assert_sends(0);
        assert_eq!(guest.receive_flows(), [64, 0]);

        guest.set_pairs(2);
        assert!(guest.second_is_attached());
        guest.assert_sends(0);
        guest.assert_sends(1);
        let arrived = guest.receive_flows();
        assert!(arrived.iter().all(|count| *count > 0), "{arrived:?}");

        guest.set_pairs(1);
        assert!(!guest.second_is_attached());
        assert_eq!(
            guest.receive_flows(),
            [64, 0],
            "none waits where nobody reads"
        );

        guest.set_pairs(2);
        guest.reset();
        guest.activate();
    }
}

#[test]
fn traffic_takes_the_pairs_in_use_in_the_monitor() {
    in_a_network_of_its_own(|name| traffic_takes_the_pairs_in_use(name, false));
}

#[test]
fn traffic_takes_the_pairs_in_use_by_vhost_net() {
    match open_vhost() {
        Ok(_) => in_a_network_of_its_own(|name| traffic_takes_the_pairs_in_use(name, true)),
        Err(error) => eprintln!("SKIPPED: this test needs /dev/vhost-net: {error}"),
    }
}

#[test]
fn several_pairs_are_told_of_and_one_is_not() {
    in_a_network_of_its_own(|name| {
        let several = 1 << VIRTIO_NET_F_MQ | 1 << VIRTIO_NET_F_CTRL_VQ;
        let pairs_told = |net: &Net| {
            let mut told = [0; 2];
            net.read_config(8, &mut told);
            u16::from_le_bytes(told)
        };
        let net = Net::spawn(config(name, false)).unwrap();
        assert_eq!(net.features() & several, several);
        assert_eq!(net.queue_max_sizes().len(), 2 * PAIRS + 1);
        assert_eq!(pairs_told(&net), 2);

        let mut one = config("tap1", false);
        one.pairs.truncate(1);
        let net = Net::spawn(one).unwrap();
        assert_eq!(net.features() & several, 0);
        assert_eq!(net.queue_max_sizes().len(), 2);
        assert_eq!(pairs_told(&net), 1);
    });
}

#[test]
fn a_driver_of_one_pair_and_one_that_left_pairs_out_are_served() {
    in_a_network_of_its_own(|name| {
        let mut guest = Guest::new(name, false);
        guest.net.reset();
        guest.control.restart();
        // Without the feature the control queue is the third.
        let one_pair = |guest: &mut Guest, features: u64, queues: Vec<Option<VirtQueue>>| {
            guest
                .net
                .activate(ActiveDevice {
                    memory: guest.control.shared_memory(),
                    features: 1 << VIRTIO_F_VERSION_1 | features,
                    queues,
                    interrupt: Arc::clone(guest.control.interrupt()),
                })
                .unwrap();
            let command = guest.control.buffer(&[4, 0, 2, 0]);
            let answer = guest.control.buffer(&[0x55]);
            guest
                .control
                .offer(&[Desc::readable(command), Desc::writable(answer)]);
            eventually("an answer", || {
                (!guest.control.used().is_empty()).then_some(())
            });
            assert_eq!(guest.control.read(answer, 1), [1], "two pairs are refused");
            guest.net.reset();
            guest.control.restart();
        };
        let queue = |queue: &GuestQueue| Some(queue.device_side());
        let (receive, transmit, control) = (
            queue(&guest.receive[0]),
            queue(&guest.transmit[0]),
            queue(&guest.control),
        );
        let features = 1 << VIRTIO_NET_F_CTRL_VQ;
        one_pair(
            &mut guest,
            features,
            vec![receive, transmit, control, None, None],
        );
        let (receive, transmit, third, control) = (
            queue(&guest.receive[0]),
            queue(&guest.transmit[0]),
            queue(&guest.receive[1]),
            queue(&guest.control),
        );
        let features = guest.net.features();
        one_pair(
            &mut guest,
            features,
            vec![receive, transmit, third, None, control],
        );
    });
}

#[test]
fn queues_that_are_not_as_they_must_be_are_refused() {
    in_a_network_of_its_own(|name| {
        let attached = config(name, false);
        set_queue(&attached.pairs[1].tap, libc::IFF_ATTACH_QUEUE);
        let error = Net::spawn(attached).unwrap_err().to_string();
        assert!(error.contains("further queues"), "{error}");

        let none = NetConfig {
            mac: MAC,
            pairs: Vec::new(),
        };
        assert!(matches!(Net::spawn(none), Err(NetError::Pairs(0))));
    });
}
