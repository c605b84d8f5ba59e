use super::*;
use crate::config::DiskConfig;
use crate::virtio::testing::{Desc, GuestQueue};

const MIB: usize = 1 << 20;

fn session(guest: &GuestQueue) -> Session {
    let file = tempfile::tempfile().unwrap();
    file.set_len(MIB as u64).unwrap();
    let config = DiskConfig {
        bytes: MIB as u64,
        block_size: 512,
        read_only: true,
        serial: String::new(),
    };
    Session {
        memory: guest.shared_memory(),
        interrupt: Arc::clone(guest.interrupt()),
        queue: guest.device_side(),
        disk: Arc::new(Disk::new(file.into(), &config)),
        write_through: false,
    }
}

#[test]
fn many_bytes_are_served_in_rounds_between_which_a_reset_is_heard() {
    let mut guest = GuestQueue::new(128);
    let mut session = session(&guest);
    let header = guest.buffer(&[0; 16]);
    let (data, status) = (guest.room(MIB), guest.room(1));
    for _ in 0..20 {
        guest.offer(&[
            Desc::readable(header),
            Desc::writable(data),
            Desc::writable(status),
        ]);
    }
    let served: Vec<_> = (0..3)
        .map(|_| {
            session.drain().unwrap();
            // What is left is announced by nobody else.
            (guest.used().len(), session.queue.kick().read().is_ok())
        })
        .collect();
    // Header and status take a round beyond the limit with the eighth MiB.
    assert_eq!(served, [(8, true), (8, true), (4, false)]);
}
