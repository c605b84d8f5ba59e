//! A directory that several containers of a pod mount is one directory to them, as it is with
//! runc: what one makes in it is more than bytes to the others.
//!
//! What works in the containers is this program, by [`inside`].

use std::fs::{self, File};
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use nacre_tests::crictl::{Container, Pids, Pod};
use nacre_tests::{Running, wait_until};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{CWD, FileType, FlockOperation, Mode, flock, mknodat};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::setting::{POD_KINDS, Setting, Test};

pub(crate) const TESTS: &[Test] = &[
    Test {
        name: "a_volume_is_one_directory_to_all_containers_of_a_pod",
        places: POD_KINDS,
        check: one_directory,
    },
    Test {
        name: "what_is_mounted_below_a_read_only_volume_has_its_own_access",
        places: POD_KINDS,
        check: below,
    },
];

/// The word that makes this program work in a container; see [`inside`].
pub(crate) const INSIDE: &str = "inside-shared-volume";

/// What two containers do at a time: the first one's step, which says `ready` and ends after
/// the second one's.
const PAIRS: [(&str, &str); 5] = [
    ("listen", "connect"),
    ("lock", "find-locked"),
    ("await-memory", "write-memory"),
    ("read-fifo", "write-fifo"),
    ("watch", "create"),
];

/// A directory of the host for a pod's containers, with a file system mounted in it.
struct Directory(TempDir);

impl Directory {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("nacre-test-").tempdir();
        let dir = Self(dir.unwrap());
        fs::create_dir(dir.path().join("sub")).unwrap();
        let (flags, options) = (MountFlags::NOSUID, c"size=1m");
        mount("tmpfs", dir.path().join("sub"), "tmpfs", flags, options).unwrap();
        dir
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn mounts(&self, is_read_only: bool) -> Value {
        let program = std::env::current_exe().unwrap();
        json!([
            { "host_path": self.path(), "container_path": "/data", "readonly": is_read_only },
            { "host_path": program, "container_path": "/inside", "readonly": true },
        ])
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = unmount(self.path().join("sub"), UnmountFlags::DETACH);
    }
}

fn run_pair(steps: (&str, &str), dir: &str, first: &Container<'_>, second: &Container<'_>) {
    let words = |step| ["/inside", INSIDE, step, dir];
    let mut running = Running::start(first.stream(&words(steps.0)));
    running.wait_for("ready");
    let _ = second.exec(&words(steps.1)).expect_code(0);
    let _ = running.wait().expect_code(0);
}

fn one_directory(setting: &mut Setting) {
    let dir = Directory::new();
    let pod = Pod::run(setting.containerd, setting.runtime, Pids::Private);
    let start = |is_read_only| {
        let script = "exec sleep 1000";
        pod.start_mounting(script, Pids::Private, &dir.mounts(is_read_only))
    };
    let (one, two, reader) = (start(false), start(false), start(true));
    for place in ["/data", "/data/sub"] {
        for steps in PAIRS {
            run_pair(steps, place, &one, &two);
        }
    }
    // Who may not write can still talk, and look.
    run_pair(("listen", "connect"), "/data", &one, &reader);
    run_pair(("watch", "create"), "/data", &reader, &one);
    assert_ne!(reader.exec(&["touch", "/data/new"]).code(), 0);

    fs::write(dir.path().join("of-host"), "of the host").unwrap();
    for container in [&one, &two, &reader] {
        wait_until("what the host writes is seen", || {
            container.exec(&["cat", "/data/of-host"]).text().trim_end() == "of the host"
        });
    }
    let _ = one.sh("echo of the guest >/data/of-guest");
    let written = fs::read_to_string(dir.path().join("of-guest")).unwrap();
    assert_eq!(written, "of the guest\n");

    // The directory stays for those who have it, and is the same to who comes later.
    one.remove();
    let late = start(false);
    for steps in &PAIRS[..2] {
        run_pair(*steps, "/data", &two, &late);
    }
    for container in [two, reader, late] {
        container.remove();
    }
    let again = (start(true), start(false), start(false));
    run_pair(PAIRS[0], "/data", &again.1, &again.2);
    assert_eq!(again.0.sh("cat /data/of-guest"), "of the guest");
    pod.remove();
}

fn below(setting: &mut Setting) {
    let dir = Directory::new();
    let pod = Pod::run(setting.containerd, setting.runtime, Pids::Private);
    let script = "exec sleep 1000";
    let container = pod.start_mounting(script, Pids::Private, &dir.mounts(true));
    assert_ne!(container.exec(&["touch", "/data/new"]).code(), 0);
    let table = container.sh("grep ' /data' /proc/self/mountinfo | cut -d ' ' -f 5,6");
    let options = |place: &str| {
        let mut lines = table.lines().filter_map(|line| line.split_once(' '));
        let (_, options) = lines.find(|(at, _)| *at == place).unwrap();
        options.split(',').map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(options("/data")[0], "ro", "{table}");
    assert_eq!(options("/data/sub")[..2], ["rw", "nosuid"], "{table}");
    let _ = container.sh("echo written >/data/sub/file");
    let written = fs::read_to_string(dir.path().join("sub/file")).unwrap();
    assert_eq!(written, "written\n");
    pod.remove();
}

/// Takes a step in a directory, as the program of a container.
pub(crate) fn inside(step: &str, dir: &Path) {
    match step {
        "listen" => listen(&dir.join("socket")),
        "connect" => connect(&dir.join("socket")),
        "lock" => lock(dir),
        "find-locked" => find_locked(dir),
        "await-memory" => await_memory(dir),
        "write-memory" => write_memory(dir),
        "read-fifo" => read_fifo(&dir.join("fifo")),
        "write-fifo" => fs::write(dir.join("fifo"), "through the fifo").unwrap(),
        "watch" => watch(dir),
        "create" => drop(File::create(dir.join("created")).unwrap()),
        other => panic!("no step {other:?}"),
    }
}

fn ready() {
    println!("ready");
    std::io::stdout().flush().unwrap();
}

fn wait(mut is_so: impl FnMut() -> bool) {
    while !is_so() {
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn listen(place: &Path) {
    let _ = fs::remove_file(place);
    let listener = UnixListener::bind(place).unwrap();
    ready();
    let mut text = String::new();
    let mut client = listener.accept().unwrap().0;
    client.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
}

fn connect(place: &Path) {
    let mut stream = UnixStream::connect(place).unwrap();
    stream.write_all(b"hello").unwrap();
}

fn lock(dir: &Path) {
    let _ = fs::remove_file(dir.join("seen"));
    let file = File::create(dir.join("lock")).unwrap();
    flock(&file, FlockOperation::LockExclusive).unwrap();
    ready();
    wait(|| dir.join("seen").exists());
}

fn find_locked(dir: &Path) {
    let file = File::open(dir.join("lock")).unwrap();
    let locked = flock(&file, FlockOperation::NonBlockingLockExclusive);
    assert_eq!(locked, Err(Errno::WOULDBLOCK));
    File::create(dir.join("seen")).unwrap();
    flock(&file, FlockOperation::LockExclusive).unwrap();
}

const PAGE: usize = 4096;

/// A page of a file, shared with whoever maps it.
fn page(file: &File) -> *mut u8 {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    let anywhere = std::ptr::null_mut();
    // SAFETY: a new mapping of a page that the file has, which nothing else refers to.
    let page = unsafe { mmap(anywhere, PAGE, access, MapFlags::SHARED, file.as_fd(), 0) };
    page.unwrap().cast()
}

fn await_memory(dir: &Path) {
    fs::write(dir.join("memory"), [0; PAGE]).unwrap();
    let mut file = File::options();
    file.read(true).write(true);
    let page = page(&file.open(dir.join("memory")).unwrap());
    ready();
    // SAFETY: the page is mapped until this process ends.
    wait(|| unsafe { page.read_volatile() } == 1);
    // SAFETY: as above.
    unsafe { page.write_volatile(2) };
}

fn write_memory(dir: &Path) {
    let mut file = File::options();
    file.read(true).write(true);
    let page = page(&file.open(dir.join("memory")).unwrap());
    // SAFETY: the page is mapped until this process ends.
    unsafe { page.write_volatile(1) };
    // SAFETY: as above.
    wait(|| unsafe { page.read_volatile() } == 2);
}

fn read_fifo(place: &Path) {
    let _ = fs::remove_file(place);
    mknodat(CWD, place, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    ready();
    assert_eq!(fs::read_to_string(place).unwrap(), "through the fifo");
}

fn watch(dir: &Path) {
    let watch = inotify::init(CreateFlags::CLOEXEC).unwrap();
    inotify::add_watch(&watch, dir, WatchFlags::OPEN).unwrap();
    ready();
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(&watch, &mut buffer);
    wait(|| {
        let event = reader.next().unwrap();
        event.file_name().is_some_and(|name| name == c"created")
    });
}
