//! What a container uses and which processes it has, as its cgroup says.
//!
//! A controller that the kernel does not have counts nothing.

use std::collections::HashMap;
use std::io;

use nacre_protocol::agent::{ContainerStatsResponse, CpuStats, IoStats, MemoryStats};

use super::Container;
use super::cgroup::{Cgroup, counter};
use super::watched_file::WatchedFile;
use crate::error::{Doing, Error};

/// Processes that are listed.
const MAX_PROCESSES: usize = 64 * 1024;

/// Devices of which counters are told, and fields of a file.
const MAX_LINES: usize = 256;

impl Container {
    /// Its processes, the first one first.
    pub(crate) fn processes(&self) -> Result<Vec<u32>, Error> {
        if self.init.exit().is_some() {
            return Err(self.precondition("has stopped"));
        }
        let first = self.init.pid().unsigned_abs();
        let mut pids = self
            .cgroup
            .processes(MAX_PROCESSES)
            .doing("cannot list the container's processes")?;
        pids.sort_unstable_by_key(|pid| (*pid != first, *pid));
        Ok(pids)
    }

    /// What it uses now.
    pub(crate) fn stats(&self) -> Result<ContainerStatsResponse, Error> {
        read(&self.cgroup).doing("cannot read what the container uses")
    }

    /// Waits until the OOM killer has killed more than `known` processes of it.
    pub(crate) async fn wait_out_of_memory(&self, known: u64) -> Result<u64, Error> {
        let doing = "cannot watch the container's memory";
        let mut events = WatchedFile::open(&self.cgroup.file("memory.events")).doing(doing)?;
        let more = |events: &str| {
            let kills = counter(events, "oom_kill");
            (kills > known).then_some(kills)
        };
        tokio::select! {
            kills = events.until(more) => kills.doing(doing),
            gone = self.deleted() => Err(gone),
        }
    }
}

fn read(cgroup: &Cgroup) -> io::Result<ContainerStatsResponse> {
    let file = |name: &str| cgroup.read_if_there(name);
    let number = |name: &str| file(name).map(|text| limit(&text));
    Ok(ContainerStatsResponse {
        cpu: Some(cpu(&cgroup.read("cpu.stat")?)).into(),
        memory: Some(MemoryStats {
            current: number("memory.current")?,
            max: number("memory.max")?,
            swap_current: number("memory.swap.current")?,
            swap_max: number("memory.swap.max")?,
            stat: fields(&file("memory.stat")?),
            events: fields(&file("memory.events")?),
            ..MemoryStats::default()
        })
        .into(),
        pids_current: number("pids.current")?,
        pids_max: number("pids.max")?,
        io: io_stats(&file("io.stat")?),
        ..ContainerStatsResponse::default()
    })
}

fn cpu(stat: &str) -> CpuStats {
    CpuStats {
        usage_usec: counter(stat, "usage_usec"),
        user_usec: counter(stat, "user_usec"),
        system_usec: counter(stat, "system_usec"),
        nr_periods: counter(stat, "nr_periods"),
        nr_throttled: counter(stat, "nr_throttled"),
        throttled_usec: counter(stat, "throttled_usec"),
        ..CpuStats::default()
    }
}

/// A number, or 0 for `max` and for a file that is not there.
fn limit(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

fn fields(text: &str) -> HashMap<String, u64> {
    text.lines()
        .take(MAX_LINES)
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(name, value)| Some((name.to_owned(), value.trim().parse().ok()?)))
        .collect()
}

/// Lines of the form `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`.
fn io_stats(text: &str) -> Vec<IoStats> {
    let device = |line: &str| {
        let mut words = line.split(' ');
        let (major, minor) = words.next()?.split_once(':')?;
        let mut stats = IoStats {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            ..IoStats::default()
        };
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            let place = match name {
                "rbytes" => &mut stats.rbytes,
                "wbytes" => &mut stats.wbytes,
                "rios" => &mut stats.rios,
                "wios" => &mut stats.wios,
                _ => continue,
            };
            *place = value.parse().ok()?;
        }
        Some(stats)
    };
    text.lines().take(MAX_LINES).filter_map(device).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_is_zero() {
        assert_eq!(limit("max\n"), 0);
        assert_eq!(limit("4096\n"), 4096);
        assert_eq!(limit(""), 0);
    }

    #[test]
    fn counters_of_devices_are_told_apart() {
        let stats = io_stats(
            "8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n\
             254:0 \nbroken\n9:x rbytes=1\n7:0 rbytes=18446744073709551615 wios=1\n",
        );
        let seen: Vec<_> = stats
            .iter()
            .map(|s| (s.major, s.minor, s.rbytes, s.wbytes, s.rios, s.wios))
            .collect();
        assert_eq!(
            seen,
            [
                (8, 16, 1, 2, 3, 4),
                (254, 0, 0, 0, 0, 0),
                (7, 0, u64::MAX, 0, 0, 1)
            ]
        );
    }

    #[test]
    fn fields_are_bounded_and_those_without_a_number_left_out() {
        let text = "anon 4096\nfile 0\nbroken\nx y\n";
        let expected = [("anon".to_owned(), 4096), ("file".to_owned(), 0)];
        assert_eq!(fields(text), HashMap::from(expected));
        let many: String = (0..1000).map(|n| format!("field{n} {n}\n")).collect();
        assert_eq!(fields(&many).len(), MAX_LINES);
    }
}
