//! What a test leaves behind.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::proc::{named, names};

/// Programs of which a test must leave no process.
/// The kernel remembers 15 bytes of a name, so that a shim is one whatever its runtime.
const PROGRAMS: &[&str] = &["vm-run", "nacre-vmm", "containerd-shim"];

/// How long what was killed may take to go.
const PATIENCE: Duration = Duration::from_secs(10);

/// Looks at the host when a test begins, and fails it when there is more at its
/// end. Make it first, so that it is dropped last; a bundle that was made before it
/// is no trace. Processes that a failed test
/// leaves are ended, so that the next test does not meet them.
#[derive(Debug)]
pub struct Clean {
    trees: Vec<PathBuf>,
    before: BTreeSet<String>,
}

impl Clean {
    /// Remembers what there is.
    ///
    /// # Panics
    /// When a process of an earlier test is still there.
    #[must_use]
    pub fn slate() -> Self {
        Self::slate_and(Vec::new())
    }

    /// Remembers what there is, also of all that is below these directories.
    ///
    /// # Panics
    /// When a process of an earlier test is still there.
    #[must_use]
    pub fn slate_and(trees: Vec<PathBuf>) -> Self {
        let running: Vec<_> = PROGRAMS.iter().flat_map(|name| named(name)).collect();
        assert!(running.is_empty(), "still running: {running:?}");
        let before = traces(&trees);
        Self { trees, before }
    }

    /// What there is that was not there before, and stays.
    #[must_use]
    pub fn left_behind(&self) -> Vec<String> {
        let start = Instant::now();
        loop {
            let left: Vec<_> = traces(&self.trees)
                .difference(&self.before)
                .cloned()
                .collect();
            if left.is_empty() || start.elapsed() > PATIENCE {
                return left;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Fails unless all is as it was.
    ///
    /// # Panics
    /// When something was left behind.
    pub fn assert_nothing_left(&self) {
        let left = self.left_behind();
        assert!(left.is_empty(), "left behind: {left:#?}");
    }
}

impl Drop for Clean {
    fn drop(&mut self) {
        let left = if std::thread::panicking() {
            Vec::new()
        } else {
            self.left_behind()
        };
        for pid in PROGRAMS.iter().flat_map(|name| named(name)) {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        // Those that were just killed are to be gone for the next test.
        let _ = self.left_behind();
        assert!(left.is_empty(), "left behind: {left:#?}");
    }
}

/// All that a pod could leave on its host, one line each.
fn traces(trees: &[PathBuf]) -> BTreeSet<String> {
    let mut traces = BTreeSet::new();
    for program in PROGRAMS {
        traces.extend(
            named(program)
                .iter()
                .map(|pid| format!("process {program} {pid}")),
        );
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounts = mounts
        .lines()
        .filter(|line| !is_the_table_of_ip_netns(line));
    traces.extend(mounts.map(|line| format!("mount {line}")));
    for dir in [
        "/run/nacre",
        "/run/nacre-pods",
        "/run/netns",
        "/sys/class/net",
        "/tmp",
        "/dev",
        "/var/tmp",
    ] {
        traces.extend(
            names(Path::new(dir))
                .iter()
                .map(|name| format!("{dir}/{name}")),
        );
    }
    let sockets = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let with_path = sockets
        .lines()
        .filter_map(|line| line.split_whitespace().nth(7));
    traces.extend(with_path.map(|path| format!("socket {path}")));
    add_directories(Path::new("/sys/fs/cgroup"), &mut traces);
    for tree in trees {
        add_all(tree, &mut traces);
    }
    traces
}

/// The first `ip netns add` after a boot mounts this directory on itself, for good.
fn is_the_table_of_ip_netns(mount: &str) -> bool {
    mount.split_whitespace().nth(4) == Some("/run/netns")
}

fn add_directories(dir: &Path, traces: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            traces.insert(format!("cgroup {}", entry.path().display()));
            add_directories(&entry.path(), traces);
        }
    }
}

fn add_all(dir: &Path, traces: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        traces.insert(entry.path().display().to_string());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            add_all(&entry.path(), traces);
        }
    }
}
