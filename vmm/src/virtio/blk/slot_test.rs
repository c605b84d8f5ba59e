use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use super::*;
use crate::virtio::testing::{Desc, GuestQueue};

const CONFIG: DiskConfig = DiskConfig {
    bytes: 4096,
    block_size: 4096,
    read_only: true,
    serial: String::new(),
};

fn disk() -> (OwnedFd, String) {
    let file: File = tempfile::tempfile().unwrap();
    file.set_len(4096).unwrap();
    let fd = OwnedFd::from(file);
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
    (fd, link.display().to_string())
}

/// Whether this process has the file open.
fn is_open(file: &str) -> bool {
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    open.flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .any(|link| link.display().to_string() == file)
}

fn activate(blk: &mut Blk, guest: &GuestQueue) -> Result<(), ActivateError> {
    blk.activate(ActiveDevice {
        memory: guest.shared_memory(),
        features: blk.features(),
        queues: vec![Some(guest.device_side())],
        interrupt: Arc::clone(guest.interrupt()),
    })
}

fn flush(guest: &mut GuestQueue) -> Vec<Desc> {
    let mut header = [0; 16];
    header[0] = 4;
    let header = guest.buffer(&header);
    let status = guest.room(1);
    vec![Desc::readable(header), Desc::writable(status)]
}

fn wait_for_used(guest: &mut GuestQueue) -> usize {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let used = guest.used().len();
        if used > 0 || Instant::now() > deadline {
            return used;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn an_empty_slot_is_no_device_and_cannot_be_used() {
    let slot = Slot::default();
    let mut blk = Blk::spawn(slot.clone()).unwrap();
    assert_eq!(blk.device_type(), 0);
    assert_eq!(blk.features(), 0);
    let mut config = [0xff; 8];
    blk.read_config(0, &mut config);
    assert_eq!(config, [0xff; 8]);
    activate(&mut blk, &GuestQueue::new(128)).unwrap_err();

    slot.insert(disk().0, &CONFIG).unwrap();
    assert_eq!(blk.device_type(), 2);
    assert_ne!(blk.features() & 1 << VIRTIO_BLK_F_RO, 0);
    blk.read_config(0, &mut config);
    assert_eq!(u64::from_le_bytes(config), 8);
    let mut block_size = [0; 4];
    blk.read_config(20, &mut block_size);
    assert_eq!(u32::from_le_bytes(block_size), 4096);
}

#[test]
fn a_slot_takes_one_disk_at_a_time() {
    let slot = Slot::default();
    slot.insert(disk().0, &CONFIG).unwrap();
    slot.insert(disk().0, &CONFIG).unwrap_err();
    slot.remove();
    slot.insert(disk().0, &CONFIG).unwrap();
}

#[test]
fn a_disk_is_closed_when_it_is_removed_and_the_device_reset_and_the_next_is_served() {
    let slot = Slot::default();
    let mut blk = Blk::spawn(slot.clone()).unwrap();
    for _ in 0..3 {
        let (fd, file) = disk();
        slot.insert(fd, &CONFIG).unwrap();
        let mut guest = GuestQueue::new(128);
        activate(&mut blk, &guest).unwrap();
        let chain = flush(&mut guest);
        guest.offer(&chain);
        assert_eq!(wait_for_used(&mut guest), 1);

        slot.remove();
        assert!(is_open(&file));
        blk.reset();
        assert!(!is_open(&file));
        assert_eq!(blk.device_type(), 0);
    }
}

#[test]
fn a_driver_that_breaks_the_rules_fails_the_device_until_it_is_reset() {
    let slot = Slot::default();
    slot.insert(disk().0, &CONFIG).unwrap();
    let mut blk = Blk::spawn(slot).unwrap();
    let mut guest = GuestQueue::new(128);
    activate(&mut blk, &guest).unwrap();
    let room = guest.room(1);
    guest.offer(&[Desc::writable(room)]);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !guest.interrupt().has_failed() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(guest.interrupt().has_failed());

    blk.reset();
    guest.interrupt().reset();
    guest.restart();
    activate(&mut blk, &guest).unwrap();
    let chain = flush(&mut guest);
    guest.offer(&chain);
    assert_eq!(wait_for_used(&mut guest), 1);
}
