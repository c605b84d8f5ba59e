//! A process, known beyond its identifier being given to another one.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// One life of a process identifier.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Life {
    pid: u32,
    /// When it began, in clock ticks since the host's boot (proc_pid_stat(5), field 22).
    began: u64,
}

impl Life {
    /// This process's.
    pub(crate) fn own() -> io::Result<Self> {
        let pid = std::process::id();
        let (_, began) = stat(pid).ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { pid, began })
    }

    /// One that is over.
    #[cfg(test)]
    pub(crate) fn of_dead() -> Self {
        Self {
            pid: std::process::id(),
            began: 1,
        }
    }

    pub(crate) fn pid(self) -> u32 {
        self.pid
    }

    /// Whether the process has ended, even if nobody has asked for its status yet.
    pub(crate) fn is_over(self) -> bool {
        match stat(self.pid) {
            Some((state, began)) => began != self.began || matches!(state, 'Z' | 'X'),
            None => true,
        }
    }

    /// Waits for the end of the process; says whether it came in time.
    pub(crate) fn wait(self, limit: Duration) -> io::Result<bool> {
        let Some(pidfd) = self.pidfd()? else {
            return Ok(true);
        };
        let limit = Timespec::try_from(limit).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut polled = [PollFd::new(&pidfd, PollFlags::IN)];
        let ended = rustix::io::retry_on_intr(|| poll(&mut polled, Some(&limit)))?;
        Ok(ended > 0)
    }

    /// Kills the process.
    pub(crate) fn kill(self) -> io::Result<()> {
        if let Some(pidfd) = self.pidfd()? {
            // It may have ended by itself meanwhile.
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
        }
        Ok(())
    }

    /// A descriptor of the process; none when it has ended.
    fn pidfd(self) -> io::Result<Option<OwnedFd>> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        // Looked at after it was opened: it is this life's, or none.
        Ok((!self.is_over()).then_some(pidfd))
    }
}

/// State and begin of a process.
fn stat(pid: u32) -> Option<(char, u64)> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse(stat: &str) -> Option<(char, u64)> {
    // The name, in parentheses, may have spaces and parentheses in it.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let state = fields.next()?.chars().next()?;
    let began = fields.nth(18)?.parse().ok()?;
    Some((state, began))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_name_in_stat_does_not_confuse() {
        let stat = "7 (a) R 1) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 0 0";
        assert_eq!(parse(stat), Some(('S', 4242)));
        assert_eq!(parse("7 (x)"), None);
    }

    #[test]
    fn a_life_ends_once() {
        let own = Life::own().unwrap();
        assert!(!own.is_over());
        assert!(!own.wait(Duration::from_millis(1)).unwrap());
        assert!(Life::of_dead().is_over());
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let (_, began) = stat(child.id()).unwrap();
        let life = Life {
            pid: child.id(),
            began,
        };
        assert!(!life.is_over());
        life.kill().unwrap();
        assert!(life.wait(Duration::from_secs(60)).unwrap());
        assert!(life.is_over(), "a zombie is no life");
        child.wait().unwrap();
        assert!(life.is_over());
        life.kill().unwrap();
        // Of another life under the same number, nothing is waited for or killed.
        let other = Life { began: 1, ..own };
        other.kill().unwrap();
        assert!(other.wait(Duration::ZERO).unwrap());
    }
}
