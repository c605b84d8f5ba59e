//! virtio-rng (virtio 1.2, section 5.4): entropy from the host's `getrandom(2)`.
//!
//! The kernel asks once at boot and seldom afterwards, so the vCPU that
//! notifies does the work; what one notification can cost is bounded.

use rustix::rand::{GetRandomFlags, getrandom};

use super::device::{ActivateError, ActiveDevice, Notification, VirtioDevice};
use super::queue::{QueueError, VirtQueue};

const DEVICE_TYPE: u32 = 4;
const QUEUE_SIZES: [u16; 1] = [16];
/// Most bytes given for one chain: the kernel asks for 64 at a time, and a
/// short answer is allowed.
const MAX_BYTES: usize = 256;

/// The entropy device.
#[derive(Debug, Default)]
pub struct Rng {
    active: Option<(ActiveDevice, VirtQueue)>,
}

impl Rng {
    fn serve(active: &ActiveDevice, queue: &mut VirtQueue) -> Result<(), QueueError> {
        let memory = &active.memory;
        let mut served = false;
        // A driver that refills the ring as fast as it is served has to notify again.
        for _ in 0..2 * QUEUE_SIZES[0] {
            let Some(chain) = queue.pop(memory)? else {
                if queue.enable_kicks(memory)? {
                    continue;
                }
                break;
            };
            let mut bytes = [0; MAX_BYTES];
            let wanted = usize::try_from(chain.writable_len())
                .unwrap_or(MAX_BYTES)
                .min(MAX_BYTES);
            // Fails only before the host's generator is seeded: then nothing is given.
            let filled = getrandom(&mut bytes[..wanted], GetRandomFlags::NONBLOCK).unwrap_or(0);
            let written = chain.write(&bytes[..filled])?;
            queue.push(memory, chain.head(), u32::try_from(written).unwrap_or(0))?;
            served = true;
        }
        if served { queue.signal(memory) } else { Ok(()) }
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn name(&self) -> &'static str {
        "rng"
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn notification(&self) -> Notification {
        Notification::Inline
    }

    fn activate(&mut self, mut active: ActiveDevice) -> Result<(), ActivateError> {
        let queue = active.take_queue(0)?;
        self.active = Some((active, queue));
        Ok(())
    }

    fn notify(&mut self, _queue: u16) {
        if let Some((active, queue)) = &mut self.active
            && let Err(error) = Self::serve(active, queue)
        {
            active.interrupt.fail_device(&error);
            self.active = None;
        }
    }

    fn reset(&mut self) {
        self.active = None;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::testing::{Desc, GuestQueue};
    use super::*;

    fn active_rng(guest: &GuestQueue) -> Rng {
        let mut rng = Rng::default();
        rng.activate(ActiveDevice {
            memory: guest.shared_memory(),
            features: 0,
            queues: vec![Some(guest.device_side())],
            interrupt: Arc::clone(guest.interrupt()),
        })
        .unwrap();
        rng
    }

    #[test]
    fn a_request_is_filled_with_random_bytes() {
        let mut guest = GuestQueue::new(16);
        let room = guest.room(64);
        guest.offer(&[Desc::writable(room)]);
        active_rng(&guest).notify(0);
        assert_eq!(guest.used(), vec![(0, 64)]);
        assert_ne!(guest.read(room, 64), vec![0; 64]);
    }

    #[test]
    fn a_driver_with_event_idx_is_asked_to_notify_again() {
        let mut guest = GuestQueue::with_event_idx(16);
        let mut rng = active_rng(&guest);
        for request in 1..=3 {
            let room = guest.room(8);
            guest.offer(&[Desc::writable(room)]);
            rng.notify(0);
            assert_eq!(guest.used().len(), 1);
            assert_eq!(guest.kick_wanted_at(), request);
        }
    }

    #[test]
    fn a_huge_request_is_answered_in_part() {
        let mut guest = GuestQueue::new(16);
        let room = guest.room(1 << 20);
        guest.offer(&[Desc::writable(room)]);
        active_rng(&guest).notify(0);
        assert_eq!(guest.used(), vec![(0, 256)]);
    }

    #[test]
    fn a_broken_chain_fails_the_device_until_it_is_reset() {
        let mut guest = GuestQueue::new(16);
        let room = guest.room(64);
        guest.offer(&[Desc {
            next: Some(0),
            ..Desc::writable(room)
        }]);
        let mut rng = active_rng(&guest);
        rng.notify(0);
        assert!(guest.interrupt().has_failed());
        rng.notify(0);
        assert_eq!(guest.used(), vec![]);
    }
}
