//! Volumes behave as files of the host do: the same program works on them under `vm-run`
//! and under runc, and the host then looks at what it has left.
//!
//! The program is this one, the test `inside`, with the host's libraries beside it.

#![allow(clippy::unwrap_used)]

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nacre_tests::oci::path;
use nacre_tests::{Clean, OciRuntime, TestBundle, count, sh, wait_until};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, XattrFlags,
};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};
use rustix::mount::{MountFlags, mount_remount};
use serde_json::json;
use tempfile::TempDir;

const ALL_POWERS: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_MKNOD",
    "CAP_SETFCAP",
    "CAP_SYS_ADMIN",
];

/// Directories of the host for a container, and what they are mounted as.
struct Volumes {
    dir: TempDir,
}

impl Volumes {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("nacre-test-").tempdir();
        let volumes = Self { dir: dir.unwrap() };
        for name in ["data", "fixed", "full"] {
            fs::create_dir(volumes.at(name)).unwrap();
        }
        fs::write(volumes.at("fixed/file"), "fixed\n").unwrap();
        fs::write(volumes.at("one"), "one\n").unwrap();
        fs::write(volumes.at("beside"), "beside\n").unwrap();
        fs::write(volumes.at("data/of-host"), "of the host\n").unwrap();
        let of_host = volumes.at("data/of-host");
        rustix::fs::setxattr(&of_host, "user.host", b"hers", XattrFlags::empty()).unwrap();
        chown(&of_host, Some(77), Some(78)).unwrap();
        fs::set_permissions(&of_host, Permissions::from_mode(0o4751)).unwrap();
        sh(&format!(
            "mount -t tmpfs -o size=256k full {}",
            path(&volumes.at("full"))
        ));
        volumes
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A bundle of this very program, which is to do `step`.
    fn bundle(&self, step: &str) -> TestBundle {
        let program = std::env::current_exe().unwrap();
        let words = ["/inside", "--ignored", "--exact", "--nocapture", "inside"];
        let bundle = TestBundle::new(&words)
            .with("/process/env/-", json!(format!("STEP={step}")))
            .with("/process/env/-", json!("RUST_BACKTRACE=0"))
            .with_bind(Path::new("/usr"), "/usr", &["bind", "ro"])
            .with_bind(&program, "/inside", &["bind", "ro"])
            .with_bind(&self.at("data"), "/data", &["bind", "rw"])
            .with_bind(&self.at("fixed"), "/fixed", &["bind", "ro"])
            .with_bind(&self.at("full"), "/full", &["bind"])
            .with_bind(&self.at("one"), "/etc/one", &["bind"])
            .with_capabilities(ALL_POWERS);
        for (place, target) in [("lib64", "usr/lib64"), ("lib", "usr/lib")] {
            symlink(target, bundle.in_root(place)).unwrap();
        }
        let soak = std::env::var("NACRE_SOAK").unwrap_or_default();
        bundle.with("/process/env/-", json!(format!("NACRE_SOAK={soak}")))
    }
}

impl Drop for Volumes {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.at("full"), rustix::mount::UnmountFlags::DETACH);
    }
}

/// Runs one step to its end, which must be a good one.
fn carry_out(runtime: &OciRuntime, volumes: &Volumes, step: &str) {
    let bundle = volumes.bundle(step);
    bundle.write();
    let ended = runtime.call(&["run", "--bundle", path(bundle.path()), "x"]);
    let ended = ended.expect_code(0);
    assert!(ended.text().contains(&format!("done: {step}")), "{ended}");
}

/// All that is below a directory, one line each.
fn listing(dir: &Path) -> String {
    let script = r"
        find . -not -path './many/*' -printf '%P|%y|%m|%U|%G|%n|%l|%s|%TY\n'
        find . -type f -size -1M -not -path './many/*' -exec sha256sum {} +
        find many -type f -printf 'of many\n'";
    let dir = path(dir);
    sh(&format!(
        "cd {dir}; ({script}) | LC_ALL=C sed 's/[^ -~]/?/g' | LC_ALL=C sort | uniq -c"
    ))
}

#[test]
fn files_of_a_volume_behave_and_are_seen_by_the_host_as_with_runc() {
    let _clean = Clean::slate();
    let look = |runtime: &OciRuntime| {
        let volumes = Volumes::new();
        carry_out(runtime, &volumes, "files");
        assert_eq!(
            fs::read_to_string(volumes.at("beside")).unwrap(),
            "beside\n"
        );
        assert_eq!(
            fs::read_to_string(volumes.at("one")).unwrap(),
            "changed inside\n"
        );
        assert_eq!(
            fs::read_to_string(volumes.at("fixed/file")).unwrap(),
            "fixed\n"
        );
        assert_eq!(fs::read_dir(volumes.at("fixed")).unwrap().count(), 1);
        let sparse = fs::metadata(volumes.at("data/sparse")).unwrap();
        assert!(sparse.blocks() < 1024, "{} blocks", sparse.blocks());
        let mut value = [0; 16];
        let linked = volumes.at("data/linked");
        let len = rustix::fs::getxattr(&linked, "user.guest", &mut value).unwrap();
        assert_eq!(&value[..len], b"\xff\0his");
        listing(&volumes.at("data"))
    };
    let runcs = look(&OciRuntime::runc());
    assert_eq!(look(&OciRuntime::vm_run()), runcs);
    assert!(runcs.contains("linked|f|640|5|6|2||"), "{runcs}");
}

#[test]
fn changes_are_seen_on_both_sides_while_a_container_runs() {
    let _clean = Clean::slate();
    for runtime in [OciRuntime::runc(), OciRuntime::vm_run()] {
        let volumes = Volumes::new();
        let bundle = volumes.bundle("live");
        runtime.run_detached("x", &bundle);
        let data = |name: &str| volumes.at("data").join(name);
        wait_until("the guest has begun", || data("begun").exists());
        fs::write(data("new"), "first").unwrap();
        wait_until("the guest has seen a file", || data("seen-new").exists());
        fs::write(data("new"), "second, and longer").unwrap();
        fs::write(volumes.at("one"), "changed by the host").unwrap();
        wait_until("the guest has seen its change", || {
            data("seen-change").exists()
        });
        fs::create_dir_all(data("tree/deep")).unwrap();
        fs::write(data("tree/deep/leaf"), "leaf").unwrap();
        fs::rename(data("tree"), data("moved")).unwrap();
        fs::remove_file(data("new")).unwrap();
        wait_until("the guest has seen what moved and went", || {
            data("seen-end").exists()
        });

        // Two processes of the guest, one memory.
        let map = |step: &str| {
            let step = format!("STEP_OF_EXEC={step}");
            let words = [
                "exec",
                "-e",
                &step,
                "x",
                "/inside",
                "--ignored",
                "--exact",
                "inside",
            ];
            runtime.spawn(runtime.command(&words))
        };
        let both = [map("ping"), map("pong")];
        for child in both {
            let _ = runtime.wait(child).expect_code(0);
        }
        let left = fs::read(data("shared")).unwrap();
        assert_eq!(left[0], 200, "what was written to memory is in the file");
        runtime.call(&["kill", "x", "KILL"]);
        runtime.wait_for_status("x", "stopped");
    }
}

/// As a container engine writes `/etc/hosts` after it has created the container.
#[test]
fn what_is_written_to_a_mounted_file_is_seen_at_once() {
    let _clean = Clean::slate();
    for runtime in [OciRuntime::runc(), OciRuntime::vm_run()] {
        let dir = tempfile::Builder::new().prefix("nacre-test-").tempdir();
        let dir = dir.unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let script = "echo looking
            while [ ! -e /dir/go ]; do stat /file >/dev/null; done
            cat /file; echo read";
        let bundle = TestBundle::sh(script)
            .with_bind(&file, "/file", &["bind"])
            .with_bind(dir.path(), "/dir", &["bind"]);
        runtime.run_detached("x", &bundle);
        runtime.wait_for_output("looking");
        fs::write(&file, "written, ").unwrap();
        std::thread::sleep(Duration::from_millis(50));
        fs::write(dir.path().join("go"), "").unwrap();
        runtime.wait_for_output("read\n");
        assert_eq!(runtime.output(), "looking\nwritten, read\n");
    }
}

/// What is done in the container.
#[test]
#[ignore = "is run in a container by the other tests"]
fn inside() {
    // An exec has the container's variables before its own.
    let step = std::env::var("STEP_OF_EXEC").or_else(|_| std::env::var("STEP"));
    let step = step.unwrap();
    match step.as_str() {
        "files" => files(),
        "live" => live(),
        "ping" => play(0),
        "pong" => play(1),
        other => panic!("no step {other:?}"),
    }
    println!("done: {step}");
}

fn assert_is(error: &std::io::Error, expected: Errno) {
    assert_eq!(
        error.raw_os_error(),
        Some(expected.raw_os_error()),
        "{error}"
    );
}

/// What a part of the work is called, and what does it in a directory.
type Step = (&'static str, fn(&Path));

fn files() {
    let steps: &[Step] = &[
        ("what the host has set", host_attributes),
        ("links", links),
        ("attributes", attributes),
        ("names", names),
        ("open files that go", unlinked),
        ("renames", renames),
        ("sparse files", sparse),
        ("locks", locks),
        ("ways to write", writes),
        ("shared memory", shared_memory),
        ("fifos and sockets", special),
        ("a large directory", many),
        ("a read-only volume", read_only),
        ("a single file", single),
        ("a full disk", full),
    ];
    for (name, step) in steps {
        let start = Instant::now();
        step(Path::new("/data"));
        println!("{name}: {:?}", start.elapsed());
    }
}

fn host_attributes(data: &Path) {
    let file = data.join("of-host");
    let metadata = fs::metadata(&file).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (77, 78));
    assert_eq!(metadata.mode() & 0o7777, 0o4751);
    let mut value = [0; 16];
    let len = rustix::fs::getxattr(&file, "user.host", &mut value).unwrap();
    assert_eq!(&value[..len], b"hers");
}

fn links(data: &Path) {
    let (first, second) = (data.join("linked"), data.join("link"));
    fs::write(&first, "through one").unwrap();
    fs::hard_link(&first, &second).unwrap();
    let (one, two) = (
        fs::metadata(&first).unwrap(),
        fs::metadata(&second).unwrap(),
    );
    assert_eq!((one.ino(), one.nlink()), (two.ino(), 2));
    fs::write(&second, "through the other").unwrap();
    assert_eq!(fs::read_to_string(&first).unwrap(), "through the other");
    for (name, target) in [
        ("relative", "linked"),
        ("dangling", "../nowhere"),
        ("absolute", "/etc/one"),
    ] {
        symlink(target, data.join(name)).unwrap();
        assert_eq!(fs::read_link(data.join(name)).unwrap(), Path::new(target));
    }
    assert_eq!(
        fs::read_to_string(data.join("relative")).unwrap(),
        "through the other"
    );
    assert!(!data.join("dangling").exists());
}

fn attributes(data: &Path) {
    let file = data.join("linked");
    chown(&file, Some(5), Some(6)).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
    rustix::fs::setxattr(&file, "user.guest", b"\xff\0his", XattrFlags::CREATE).unwrap();
    let again = rustix::fs::setxattr(&file, "user.guest", b"x", XattrFlags::CREATE);
    assert_eq!(again, Err(Errno::EXIST));
    rustix::fs::setxattr(&file, "user.gone", b"x", XattrFlags::empty()).unwrap();
    rustix::fs::removexattr(&file, "user.gone").unwrap();
    let mut list = [0; 64];
    let len = rustix::fs::listxattr(&file, &mut list).unwrap();
    assert!(
        list[..len].starts_with(b"user.guest\0"),
        "{:?}",
        &list[..len]
    );
    let old = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    File::open(&file).unwrap().set_modified(old).unwrap();
    let metadata = fs::metadata(&file).unwrap();
    assert_eq!(
        (metadata.mtime(), metadata.mode() & 0o7777),
        (1_000_000_000, 0o640)
    );
    let sticky = data.join("sticky");
    fs::create_dir(&sticky).unwrap();
    fs::set_permissions(&sticky, Permissions::from_mode(0o3777)).unwrap();
    chown(&sticky, Some(0), Some(9)).unwrap();
    fs::write(sticky.join("inherits"), "").unwrap();
    assert_eq!(fs::metadata(sticky.join("inherits")).unwrap().gid(), 9);
}

fn names(data: &Path) {
    let odd = OsStr::from_bytes(b"odd \xff\xfe\nname\\");
    fs::write(data.join(odd), "odd").unwrap();
    let found = fs::read_dir(data).unwrap();
    assert!(
        found
            .map(|entry| entry.unwrap().file_name())
            .any(|name| name == odd)
    );
    assert_eq!(fs::read(data.join(odd)).unwrap(), b"odd");
    fs::write(data.join("n".repeat(255)), "").unwrap();
    let longer = fs::write(data.join("n".repeat(256)), "").unwrap_err();
    assert_is(&longer, Errno::NAMETOOLONG);
}

fn unlinked(data: &Path) {
    let place = data.join("unlinked");
    let mut file = File::create_new(&place).unwrap();
    file.write_all(b"before ").unwrap();
    fs::remove_file(&place).unwrap();
    file.write_all(b"and after").unwrap();
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "before and after");
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    file.set_len(3).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 3);
    fs::write(&place, "another").unwrap();
    assert_eq!(file.metadata().unwrap().len(), 3);
    fs::remove_file(&place).unwrap();
    let dir = data.join("removed");
    fs::create_dir(&dir).unwrap();
    let held = File::open(&dir).unwrap();
    fs::remove_dir(&dir).unwrap();
    assert_eq!(rustix::fs::fstat(&held).unwrap().st_nlink, 0);
}

fn renames(data: &Path) {
    let (old, new) = (data.join("old"), data.join("renamed"));
    fs::write(&old, "the new one").unwrap();
    fs::write(&new, "the first one").unwrap();
    let mut held = File::open(&new).unwrap();
    fs::rename(&old, &new).unwrap();
    let mut text = String::new();
    held.read_to_string(&mut text).unwrap();
    assert_eq!(text, "the first one");
    assert_eq!(fs::read_to_string(&new).unwrap(), "the new one");
    fs::write(&old, "the third").unwrap();
    let rename = |flags| rustix::fs::renameat_with(CWD, &old, CWD, &new, flags);
    assert_eq!(rename(RenameFlags::NOREPLACE), Err(Errno::EXIST));
    rename(RenameFlags::EXCHANGE).unwrap();
    assert_eq!(fs::read_to_string(&new).unwrap(), "the third");
    fs::create_dir_all(data.join("from/deep")).unwrap();
    fs::write(data.join("from/deep/leaf"), "leaf").unwrap();
    let held = File::open(data.join("from/deep/leaf")).unwrap();
    fs::rename(data.join("from"), data.join("to")).unwrap();
    assert_eq!(
        fs::read_to_string(data.join("to/deep/leaf")).unwrap(),
        "leaf"
    );
    assert_eq!(held.metadata().unwrap().len(), 4);
    assert!(!data.join("from").exists());
}

fn sparse(data: &Path) {
    let place = data.join("sparse");
    let mut file = File::create_new(&place).unwrap();
    let end = 20_u64 << 30;
    file.write_all_at(b"begin", 0).unwrap();
    file.write_all_at(b"end", end).unwrap();
    let metadata = file.metadata().unwrap();
    assert_eq!(metadata.len(), end + 3);
    assert!(metadata.blocks() < 1024, "{} blocks", metadata.blocks());
    let mut hole = [1; 100];
    file.read_exact_at(&mut hole, end / 2).unwrap();
    assert_eq!(hole, [0; 100]);
    let next = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(1 << 20)).unwrap();
    assert!(next > 1 << 30 && next <= end, "data at {next}");
    file.seek(SeekFrom::Start(0)).unwrap();
    file.write_all(&[7; 1 << 20]).unwrap();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, punch, 0, 1 << 20).unwrap();
    assert!(file.metadata().unwrap().blocks() < 1024);
    rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, end, 1 << 16).unwrap();
}

fn locks(data: &Path) {
    let place = data.join("lock");
    let (first, second) = (File::create(&place).unwrap(), File::open(&place).unwrap());
    rustix::fs::flock(&first, FlockOperation::LockExclusive).unwrap();
    let refused = rustix::fs::flock(&second, FlockOperation::NonBlockingLockShared);
    assert_eq!(refused, Err(Errno::WOULDBLOCK));
    rustix::fs::flock(&first, FlockOperation::Unlock).unwrap();
    rustix::fs::flock(&second, FlockOperation::NonBlockingLockExclusive).unwrap();
    drop(second);
    rustix::fs::flock(&first, FlockOperation::NonBlockingLockExclusive).unwrap();
    rustix::fs::fcntl_lock(&first, FlockOperation::NonBlockingLockExclusive).unwrap();
}

fn writes(data: &Path) {
    let place = data.join("written");
    let mut options = OpenOptions::new();
    let mut append = || options.append(true).create(true).open(&place).unwrap();
    let (mut first, mut second) = (append(), append());
    for _ in 0..100 {
        first.write_all(b"first\n").unwrap();
        second.write_all(b"other\n").unwrap();
    }
    let text = fs::read_to_string(&place).unwrap();
    assert_eq!(text, "first\nother\n".repeat(100));
    first.sync_all().unwrap();
    let exclusive = OpenOptions::new().write(true).create_new(true).open(&place);
    assert_is(&exclusive.unwrap_err(), Errno::EXIST);
    let copied = fs::copy(&place, data.join("copied")).unwrap();
    assert_eq!(copied, 1200);
    File::options()
        .write(true)
        .truncate(true)
        .open(&place)
        .unwrap();
    assert_eq!(fs::metadata(&place).unwrap().len(), 0);
    let unnamed = rustix::fs::open(
        data,
        OFlags::TMPFILE | OFlags::RDWR,
        Mode::from_raw_mode(0o600),
    );
    // Not every file system of a host has these.
    if let Ok(unnamed) = unnamed {
        rustix::io::write(&unnamed, b"unnamed").unwrap();
    }
}

/// A file's first page in memory.
fn map(file: &File) -> *mut u8 {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping of a page that the file has, which nothing else refers to.
    let page = unsafe {
        mmap(
            std::ptr::null_mut(),
            PAGE,
            access,
            MapFlags::SHARED,
            file.as_fd(),
            0,
        )
    };
    page.unwrap().cast()
}

const PAGE: usize = 4096;

fn shared_memory(data: &Path) {
    let place = data.join("mapped");
    fs::write(&place, [b'-'; PAGE]).unwrap();
    let file = File::options().read(true).write(true).open(&place).unwrap();
    let page = map(&file);
    file.write_all_at(b"by write", 0).unwrap();
    // SAFETY: the page is there until it is unmapped below.
    unsafe {
        assert_eq!(std::slice::from_raw_parts(page, 8), b"by write");
        page.add(8).write_volatile(b'!');
        msync(page.cast(), PAGE, MsyncFlags::SYNC).unwrap();
        munmap(page.cast(), PAGE).unwrap();
    }
    assert!(fs::read(&place).unwrap().starts_with(b"by write!-"));
}

fn special(data: &Path) {
    let fifo = data.join("fifo");
    rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let (writer, text) = (fifo.clone(), "through the fifo");
    let thread = std::thread::spawn(move || fs::write(writer, text).unwrap());
    assert_eq!(fs::read_to_string(&fifo).unwrap(), text);
    thread.join().unwrap();
    let socket = data.join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let mut client = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    client.write_all(b"x").unwrap();
    let mut byte = [0];
    listener.accept().unwrap().0.read_exact(&mut byte).unwrap();
    fs::remove_file(&socket).unwrap();
}

fn many(data: &Path) {
    let dir = data.join("many");
    fs::create_dir(&dir).unwrap();
    let files = count(2_000, 100_000);
    for number in 0..files {
        File::create_new(dir.join(format!("file-{number:06}"))).unwrap();
    }
    let listed: std::collections::BTreeSet<_> = fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(listed.len(), files);
    // Half of them go while the directory is read.
    let mut seen = 0;
    for entry in fs::read_dir(&dir).unwrap() {
        let entry = entry.unwrap();
        seen += 1;
        if entry.file_name().as_bytes().last().unwrap() % 2 == 0 {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    assert_eq!(seen, files);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), files / 2);
}

fn read_only(_: &Path) {
    let (dir, file) = (Path::new("/fixed"), Path::new("/fixed/file"));
    let try_all = || {
        let attempts: Vec<Result<(), std::io::Error>> = vec![
            fs::write(dir.join("new"), "x"),
            File::options().append(true).open(file).map(drop),
            fs::remove_file(file),
            fs::create_dir(dir.join("dir")),
            fs::rename(file, dir.join("other")),
            fs::hard_link(file, dir.join("link")),
            symlink("x", dir.join("symlink")),
            fs::set_permissions(file, Permissions::from_mode(0o777)),
            chown(file, Some(1), Some(1)),
            rustix::fs::setxattr(file, "user.x", b"x", XattrFlags::empty()).map_err(Into::into),
            rustix::fs::utimensat(
                CWD,
                file,
                &rustix::fs::Timestamps {
                    last_access: rustix::fs::Timespec {
                        tv_sec: 1,
                        tv_nsec: 0,
                    },
                    last_modification: rustix::fs::Timespec {
                        tv_sec: 1,
                        tv_nsec: 0,
                    },
                },
                AtFlags::empty(),
            )
            .map_err(Into::into),
            truncate(file),
        ];
        for (number, attempt) in attempts.into_iter().enumerate() {
            println!("attempt {number}");
            assert_is(&attempt.unwrap_err(), Errno::ROFS);
        }
    };
    try_all();
    assert_eq!(fs::read_to_string(file).unwrap(), "fixed\n");
    // Under runc, root of the host takes the flag away; a guest's root may try.
    if fs::read_to_string("/proc/cmdline")
        .unwrap()
        .contains("virtio_mmio")
    {
        let _ = mount_remount(dir, MountFlags::BIND, c"");
        try_all();
    }
}

fn truncate(file: &Path) -> std::io::Result<()> {
    File::options().write(true).open(file)?.set_len(0)
}

fn single(_: &Path) {
    let one = Path::new("/etc/one");
    assert_eq!(fs::read_to_string(one).unwrap(), "one\n");
    fs::write(one, "changed inside\n").unwrap();
    assert!(!Path::new("/etc/beside").exists());
    let above = fs::read("/etc/one/../beside").unwrap_err();
    assert_is(&above, Errno::NOTDIR);
    assert_is(&fs::remove_file(one).unwrap_err(), Errno::BUSY);
}

fn full(_: &Path) {
    let mut file = File::create("/full/large").unwrap();
    let error = loop {
        if let Err(error) = file.write_all(&[1; 16 << 10]) {
            break error;
        }
    };
    assert_is(&error, Errno::NOSPC);
    let statistics = rustix::fs::statvfs("/full").unwrap();
    assert_eq!(statistics.f_bavail, 0);
    drop(file);
    fs::remove_file("/full/large").unwrap();
    fs::write("/full/small", [1; 16 << 10]).unwrap();
}

fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed().as_secs() < 120, "not so: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn live() {
    let data = |name: &str| Path::new("/data").join(name);
    let text = |name: &str| fs::read_to_string(data(name)).unwrap_or_default();
    assert!(!data("new").exists());
    let page = vec![0; PAGE];
    fs::write(data("shared"), page).unwrap();
    fs::write(data("begun"), "").unwrap();
    wait("a new file", || text("new") == "first");
    fs::write(data("seen-new"), "").unwrap();
    wait("its change", || text("new") == "second, and longer");
    wait("the file alone", || {
        fs::read_to_string("/etc/one").unwrap() == "changed by the host"
    });
    fs::write(data("seen-change"), "").unwrap();
    wait("a moved directory", || text("moved/deep/leaf") == "leaf");
    wait("what has gone", || {
        !data("new").exists() && !data("tree").exists()
    });
    fs::write(data("seen-end"), "").unwrap();
    std::thread::sleep(Duration::from_secs(1000));
}

/// Two processes count in turns in the same page, one the even numbers, one the odd ones.
fn play(mine: u8) {
    let shared = File::options()
        .read(true)
        .write(true)
        .open("/data/shared")
        .unwrap();
    let page = map(&shared);
    for turn in (0..200).filter(|turn| turn % 2 == mine) {
        // SAFETY: the page is mapped until this process ends.
        wait(
            "the other's turn",
            || unsafe { page.read_volatile() } == turn,
        );
        // SAFETY: as above.
        unsafe { page.write_volatile(turn + 1) };
    }
}
