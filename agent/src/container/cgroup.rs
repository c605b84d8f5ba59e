//! The cgroup of a container: made, looked at, emptied and removed.
//!
//! A workload may make cgroups below its own, as deep as it likes, so nothing
//! here recurses and everything read is bounded.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::time::{Instant, sleep};

use super::id::Id;
use super::paths;

/// How long a killed cgroup may take to become empty.
const EMPTYING: Duration = Duration::from_secs(10);

/// Between two looks at a cgroup that becomes empty.
const POLL: Duration = Duration::from_millis(2);

/// cgroups below one container that are walked through.
const MAX_CGROUPS: usize = 10_000;

/// Bytes read of one file.
pub(super) const MAX_FILE: u64 = 1 << 20;

/// A container's cgroup. Dropping it does nothing; see [`Cgroup::remove`].
#[derive(Clone, Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// The cgroup that belongs to a container, made or not.
    pub(crate) fn of(id: &Id) -> Self {
        let below_root = paths::cgroup(id);
        let relative = below_root.strip_prefix("/").unwrap_or(&below_root);
        Self {
            path: Path::new(paths::CGROUP_ROOT).join(relative),
        }
    }

    /// Its directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Path of one of its files.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Content of one of its files.
    pub(super) fn read(&self, name: &str) -> io::Result<String> {
        read_bounded(&self.file(name))
    }

    /// Content of one of its files; nothing when the kernel has no such file.
    pub(super) fn read_if_there(&self, name: &str) -> io::Result<String> {
        match self.read(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            read => read,
        }
    }

    /// Writes one of its files.
    pub(super) fn write(&self, name: &str, value: &str) -> io::Result<()> {
        let mut file = fs::File::options().write(true).open(self.file(name))?;
        file.write_all(value.as_bytes())
    }

    /// The processes in it and in those below, at most `limit`.
    pub(super) fn processes(&self, limit: usize) -> io::Result<Vec<u32>> {
        let mut pids = Vec::new();
        for cgroup in self.with_descendants()? {
            let members = match read_bounded(&cgroup.join("cgroup.procs")) {
                // The workload has removed it, or made it hold threads only.
                Err(_) if cgroup != self.path => continue,
                members => members?,
            };
            pids.extend(members.lines().filter_map(|line| line.parse::<u32>().ok()));
            if pids.len() >= limit {
                pids.truncate(limit);
                break;
            }
        }
        Ok(pids)
    }

    /// Makes the directory.
    pub(crate) fn create(&self) -> io::Result<()> {
        fs::create_dir(&self.path)
    }

    /// Kills every process in it, those in cgroups below included.
    pub(crate) fn kill(&self) -> io::Result<()> {
        match fs::write(self.path.join("cgroup.kill"), "1") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Sends a signal to every process in it. Processes that are made meanwhile
    /// may be missed, as with any signal but SIGKILL.
    pub(crate) fn signal_all(&self, signal: Signal) -> io::Result<()> {
        for pid in self.processes(usize::MAX)? {
            self.signal_member(pid.cast_signed(), signal);
        }
        Ok(())
    }

    fn signal_member(&self, pid: i32, signal: Signal) {
        let Some(pid) = Pid::from_raw(pid) else {
            return;
        };
        // Whoever has the number now is held by the pidfd, and checked after.
        let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else {
            return;
        };
        if self.contains(pid) {
            send(&pidfd, pid, signal);
        }
    }

    fn contains(&self, pid: Pid) -> bool {
        let file = format!("/proc/{}/cgroup", pid.as_raw_pid());
        let Ok(membership) = read_bounded(Path::new(&file)) else {
            return false;
        };
        let root = Path::new(paths::CGROUP_ROOT);
        membership.lines().any(|line| {
            line.strip_prefix("0::/")
                .is_some_and(|path| root.join(path).starts_with(&self.path))
        })
    }

    /// Whether the kernel's OOM killer has killed a process of it.
    pub(crate) fn oom_killed(&self) -> bool {
        read_bounded(&self.path.join("memory.events"))
            .is_ok_and(|events| counter(&events, "oom_kill") > 0)
    }

    /// Kills what is left in it and removes it with the cgroups below.
    pub(crate) async fn remove(&self) -> io::Result<()> {
        let deadline = Instant::now() + EMPTYING;
        loop {
            self.kill()?;
            match self.try_remove() {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_busy) => sleep(POLL).await,
            }
        }
    }

    fn try_remove(&self) -> io::Result<()> {
        let mut result = Ok(());
        for cgroup in self.with_descendants()?.iter().rev() {
            result = fs::remove_dir(cgroup);
        }
        result
    }

    /// Its directory and those below, parents first.
    fn with_descendants(&self) -> io::Result<Vec<PathBuf>> {
        let mut found = vec![self.path.clone()];
        let mut next = 0;
        while let Some(cgroup) = found.get(next) {
            let entries = match fs::read_dir(cgroup) {
                // The workload has removed it meanwhile.
                Err(_) if next > 0 => {
                    next += 1;
                    continue;
                }
                entries => entries?,
            };
            for entry in entries.flatten() {
                let is_cgroup = entry.file_type().is_ok_and(|kind| kind.is_dir());
                if is_cgroup && found.len() < MAX_CGROUPS {
                    found.push(entry.path());
                }
            }
            next += 1;
        }
        Ok(found)
    }
}

/// Sends a signal and says so when that fails for any reason but that the
/// process has ended.
fn send(pidfd: &OwnedFd, pid: Pid, signal: Signal) {
    match pidfd_send_signal(pidfd, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => log::warn!("cannot signal process {}: {error}", pid.as_raw_pid()),
    }
}

fn read_bounded(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?
        .take(MAX_FILE)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// Value of a key in a file of `key value` lines; 0 when it is not there.
pub(super) fn counter(file: &str, key: &str) -> u64 {
    file.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| *name == key)
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_read_by_its_whole_name() {
        let events = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 9\n";
        assert_eq!(counter(events, "oom_kill"), 2);
        assert_eq!(counter(events, "oom"), 3);
        assert_eq!(counter(events, "kill"), 0);
        assert_eq!(counter("", "oom_kill"), 0);
    }

    #[test]
    fn a_container_has_a_cgroup_of_its_own_name() {
        let id = Id::parse("web.1", "container_id").unwrap();
        let path = Cgroup::of(&id).path;
        assert_eq!(path, Path::new("/sys/fs/cgroup/nacre/web.1"));
    }
}
