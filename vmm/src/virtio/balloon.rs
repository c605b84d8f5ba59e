//! virtio-balloon (virtio 1.2, section 5.5) for one purpose: the guest reports
//! memory that it does not use, and it goes back to the host.
//!
//! Nothing is ever inflated: the size wanted is zero. The vCPU that notifies does
//! the work; a report is a few large ranges, every two seconds at most.

use rustix::mm::{Advice, madvise};
use vm_memory::VolatileSlice;

use super::device::{ActivateError, ActiveDevice, Notification, VirtioDevice, read_space};
use super::queue::{QueueError, VirtQueue};

const DEVICE_TYPE: u32 = 5;
/// `VIRTIO_BALLOON_F_REPORTING` of linux/virtio_balloon.h (section 5.5.3).
const REPORTING: u64 = 1 << 5;

/// Inflating, deflating, reporting. Linux has 32 ranges in a report.
const QUEUE_SIZES: [u16; 3] = [32, 32, 32];
const REPORTING_QUEUE: u16 = 2;

/// Wanted and actual size in pages, both zero for ever.
const CONFIG: [u8; 8] = [0; 8];

const PAGE_SIZE: usize = 4096;

/// The balloon.
#[derive(Debug, Default)]
pub struct Balloon {
    active: Option<(ActiveDevice, VirtQueue)>,
}

impl Balloon {
    fn serve(active: &ActiveDevice, queue: &mut VirtQueue) -> Result<(), QueueError> {
        let memory = &active.memory;
        let mut served = false;
        // A driver that refills the ring as fast as it is served has to notify again.
        for _ in 0..2 * QUEUE_SIZES[usize::from(REPORTING_QUEUE)] {
            let Some(chain) = queue.pop(memory)? else {
                if queue.enable_kicks(memory)? {
                    continue;
                }
                break;
            };
            for range in chain.writable_slices()? {
                give_back(&range);
            }
            queue.push(memory, chain.head(), 0)?;
            served = true;
        }
        if served { queue.signal(memory) } else { Ok(()) }
    }
}

/// Frees the whole pages in a range; the guest finds zeroes there.
fn give_back(range: &VolatileSlice<'_>) {
    let address = range.ptr_guard_mut().as_ptr();
    let lead = address.align_offset(PAGE_SIZE);
    let len = range.len().saturating_sub(lead) / PAGE_SIZE * PAGE_SIZE;
    if len == 0 {
        return;
    }
    // SAFETY: the pages are the guest's own, within the slice; all access to them
    // is volatile and expects any content.
    let freed = unsafe { madvise(address.add(lead).cast(), len, Advice::LinuxDontNeed) };
    if let Err(error) = freed {
        log::debug!("balloon: {error}");
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn name(&self) -> &'static str {
        "balloon"
    }

    fn features(&self) -> u64 {
        REPORTING
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_space(&CONFIG, offset, data);
    }

    fn notification(&self) -> Notification {
        Notification::Inline
    }

    fn activate(&mut self, mut active: ActiveDevice) -> Result<(), ActivateError> {
        let queue = active.take_queue(REPORTING_QUEUE.into())?;
        self.active = Some((active, queue));
        Ok(())
    }

    fn notify(&mut self, queue: u16) {
        if queue == REPORTING_QUEUE
            && let Some((active, queue)) = &mut self.active
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

    use vm_memory::{Bytes, GuestAddress};

    use super::super::GuestMemory;
    use super::super::interrupt::Interrupt;
    use super::super::queue::Buffer;
    use super::super::testing::{Desc, GuestQueue};
    use super::*;
    use crate::arch::current::memory_map::MemoryRange;
    use crate::memory::PodMemory;

    const SIZE: u64 = 16 << 20;
    const PLACE: u64 = 8 << 20;

    struct Bench {
        memory: Arc<GuestMemory>,
        guest: GuestQueue,
        balloon: Balloon,
    }

    fn bench() -> Bench {
        let range = MemoryRange {
            start: GuestAddress(0),
            len: SIZE,
        };
        let memory = Arc::new(PodMemory::new(&[range]).unwrap().into_mapped());
        let interrupt = Arc::new(Interrupt::new("test").unwrap());
        let guest = GuestQueue::in_memory(memory.clone(), interrupt, 2, 32);
        let mut balloon = Balloon::default();
        balloon
            .activate(ActiveDevice {
                memory: guest.shared_memory(),
                features: REPORTING,
                queues: vec![None, None, Some(guest.device_side())],
                interrupt: Arc::clone(guest.interrupt()),
            })
            .unwrap();
        let page = [1; PAGE_SIZE];
        for page_number in 0..8 {
            let place = GuestAddress(PLACE + page_number * PAGE_SIZE as u64);
            memory.write_slice(&page, place).unwrap();
        }
        Bench {
            memory,
            guest,
            balloon,
        }
    }

    impl Bench {
        fn report(&mut self, offset: u64, len: u32) {
            let buffer = Buffer {
                address: GuestAddress(PLACE + offset),
                len,
            };
            self.guest.offer(&[Desc::writable(buffer)]);
            self.balloon.notify(REPORTING_QUEUE);
        }

        /// Which of the first pages still hold what was written.
        fn kept(&self) -> Vec<bool> {
            let byte = |page: u64| {
                let mut byte = [0];
                let place = PLACE + page * PAGE_SIZE as u64 + 100;
                self.memory
                    .read_slice(&mut byte, GuestAddress(place))
                    .unwrap();
                byte[0] == 1
            };
            (0..8).map(byte).collect()
        }
    }

    #[test]
    fn what_is_reported_goes_back_and_reads_as_zeroes() {
        let mut bench = bench();
        bench.report(0x2000, 0x3000);
        assert_eq!(
            bench.kept(),
            [true, true, false, false, false, true, true, true]
        );
        assert_eq!(bench.guest.used(), vec![(0, 0)]);
    }

    #[test]
    fn only_whole_pages_go_back() {
        let mut bench = bench();
        bench.report(0x0800, 0x1000);
        assert_eq!(bench.kept(), [true; 8]);
        bench.report(0x0800, 0x2000);
        assert_eq!(bench.kept()[..3], [true, false, true]);
    }

    #[test]
    fn a_range_outside_of_memory_fails_the_device() {
        let mut bench = bench();
        bench.report(PLACE, 0x1000);
        assert!(bench.guest.interrupt().has_failed());
        bench.report(0, 0x1000);
        assert_eq!(bench.kept(), [true; 8]);
    }
}
