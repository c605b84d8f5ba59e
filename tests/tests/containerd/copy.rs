//! Files in and out of a running container by `tar` over an exec's streams, as `kubectl cp` does.

use std::fs::{self, File};
use std::path::Path;
use std::time::Instant;

use nacre_tests::crictl::{Container, Pids, Pod};
use nacre_tests::{Running, count, noise, sh};

use crate::setting::{EVERYWHERE, Setting, Test};

pub(crate) const TESTS: &[Test] = &[Test {
    name: "a_copy_by_tar_arrives_whole_both_ways",
    places: EVERYWHERE,
    check: both_ways,
}];

/// A directory that goes when it is dropped.
struct Scratch<'a>(&'a Path);

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.0);
    }
}

fn both_ways(setting: &mut Setting) {
    let mib = count(16, 256);
    let dir = setting.containerd.dir().join("copy");
    fs::create_dir(&dir).unwrap();
    let _scratch = Scratch(&dir);
    fs::write(dir.join("data"), noise(mib << 20)).unwrap();
    let there = dir.display();
    let sum = sh(&format!(
        "cd {there}; tar -cf in.tar data; sha256sum data; rm data"
    ));
    let pod = Pod::run(setting.containerd, setting.runtime, Pids::Private);
    let container = pod.start("exec sleep 100000", Pids::Private);

    let start = Instant::now();
    copy_in(&container, &dir.join("in.tar"));
    let (copied_in, start) = (start.elapsed(), Instant::now());
    assert_eq!(container.sh("cd /root; sha256sum data") + "\n", sum);
    let verified = start.elapsed();
    let start = Instant::now();
    copy_out(&container, &dir.join("out.tar"));
    let copied_out = start.elapsed();
    let back = sh(&format!("cd {there}; tar -xf out.tar; sha256sum data"));
    assert_eq!(back, sum);
    eprintln!(
        "{}: {mib} MiB in {copied_in:.1?}, sum in the container {verified:.1?}, out {copied_out:.1?}, {sum}",
        setting.runtime
    );
    pod.remove();
}

fn copy_in(container: &Container, archive: &Path) {
    let mut command = container.stream(&["tar", "-xmf", "-", "-C", "/root"]);
    command.stdin(File::open(archive).unwrap());
    let ended = Running::start(command).wait().expect_code(0);
    assert_eq!((ended.text(), ended.stderr.as_str()), (String::new(), ""));
}

fn copy_out(container: &Container, archive: &Path) {
    let mut command = container.stream(&["tar", "-cf", "-", "-C", "/root", "data"]);
    command.stdin(std::process::Stdio::null());
    let (running, mut output) = Running::start_unread(command);
    std::io::copy(&mut output, &mut File::create(archive).unwrap()).unwrap();
    let ended = running.wait().expect_code(0);
    assert_eq!(ended.stderr, "");
}
