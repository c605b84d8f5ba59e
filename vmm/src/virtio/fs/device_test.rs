use fuse_backend_rs::abi::fuse_abi::Opcode;

use super::driver_test::{Guest, ROOT};
use super::*;

#[test]
fn the_configuration_names_the_share_and_one_request_queue() {
    let fs = Fs::spawn("share", Path::new("/")).unwrap();
    let mut config = [0xff; 44];
    fs.read_config(0, &mut config);
    assert_eq!(&config[..6], b"share\0");
    assert_eq!(config[36..40], 1u32.to_le_bytes());
    let mut queues = [0; 4];
    fs.read_config(36, &mut queues);
    assert_eq!(u32::from_le_bytes(queues), 1);
    fs.read_config(u64::MAX, &mut queues);
}

#[test]
fn a_file_of_the_host_is_found_and_read() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("etc")).unwrap();
    std::fs::write(root.path().join("etc/motd"), "hello from the host").unwrap();

    let mut guest = Guest::mount(root.path());
    let entry = guest.walk("etc/motd").unwrap();
    assert_eq!(entry.attr.size, 19);
    let fh = guest.open(entry.nodeid, libc::O_RDONLY).unwrap();
    assert_eq!(
        guest.read(entry.nodeid, fh, 6, 4096).unwrap(),
        b"from the host"
    );
    assert_eq!(guest.lookup(ROOT, b"missing").unwrap_err(), libc::ENOENT);
}

#[test]
fn what_the_guest_writes_is_in_the_host_file() {
    let root = tempfile::tempdir().unwrap();
    let mut guest = Guest::mount(root.path());
    let (entry, fh) = guest.create(ROOT, "new", 0o640, 0).unwrap();
    assert_eq!(guest.write(entry.nodeid, fh, 0, b"first ").unwrap(), 6);
    assert_eq!(guest.write(entry.nodeid, fh, 6, b"second").unwrap(), 6);
    let path = root.path().join("new");
    assert_eq!(std::fs::read(&path).unwrap(), b"first second");
    assert_eq!(guest.getattr(entry.nodeid).unwrap().attr.size, 12);
}

#[test]
fn a_directory_of_1000_names_is_listed_as_a_whole() {
    let root = tempfile::tempdir().unwrap();
    for index in 0..1000 {
        std::fs::write(root.path().join(format!("file-{index:04}")), "").unwrap();
    }
    let mut guest = Guest::mount(root.path());
    for opcode in [Opcode::Readdir, Opcode::Readdirplus] {
        let mut names = guest.names(ROOT, opcode).unwrap();
        names.retain(|name| name.starts_with(b"file-"));
        names.sort();
        assert_eq!(names.len(), 1000);
        assert_eq!(names[999], b"file-0999");
    }
}
