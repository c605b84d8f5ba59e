//! CPUs of the host that a container is confined to (`linux.resources.cpu.cpus`): those that
//! its monitor, and so its guest's CPUs, run on.

use std::collections::BTreeSet;
use std::io;

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// A list such as `0-2,5`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HostCpus(BTreeSet<usize>);

impl HostCpus {
    /// Reads a list; none when it is no such list, or empty.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut cpus = BTreeSet::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (usize, usize) =
                (first.trim().parse().ok()?, last.trim().parse().ok()?);
            if first > last || last >= CpuSet::MAX_CPU {
                return None;
            }
            cpus.extend(first..=last);
        }
        Some(Self(cpus))
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len() as u64
    }

    /// Confines the calling thread, and all that it starts, to them.
    ///
    /// # Errors
    /// When it may not run on one of them, or the host has no such CPU.
    pub fn confine(&self) -> io::Result<()> {
        Ok(sched_setaffinity(None, &self.set()?)?)
    }

    /// Confines another thread, and all that it then starts, to them.
    ///
    /// # Errors
    /// When the calling one may not run on one of them, or the host has no such CPU, or there is
    /// no such thread.
    pub fn confine_thread(&self, thread: Pid) -> io::Result<()> {
        Ok(sched_setaffinity(Some(thread), &self.set()?)?)
    }

    fn set(&self) -> io::Result<CpuSet> {
        let allowed = sched_getaffinity(None)?;
        let mut set = CpuSet::new();
        for cpu in &self.0 {
            if !allowed.is_set(*cpu) {
                return Err(io::Error::other(format!("there is no CPU {cpu}")));
            }
            set.set(*cpu);
        }
        Ok(set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_names_each_cpu_once() {
        assert_eq!(
            HostCpus::parse("0-2,5,1"),
            Some(HostCpus([0, 1, 2, 5].into()))
        );
        assert_eq!(HostCpus::parse("3").unwrap().count(), 1);
        for text in ["", "a", "1-", "2-1", "0,,1", "-1", "0-99999999999"] {
            assert_eq!(HostCpus::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_thread_runs_where_it_is_confined_to() {
        let allowed = sched_getaffinity(None).unwrap();
        let first = (0..CpuSet::MAX_CPU)
            .find(|cpu| allowed.is_set(*cpu))
            .unwrap();
        std::thread::spawn(move || {
            HostCpus([first].into()).confine().unwrap();
            assert_eq!(sched_getaffinity(None).unwrap().count(), 1);
            HostCpus([CpuSet::MAX_CPU - 1].into())
                .confine()
                .unwrap_err();
        })
        .join()
        .unwrap();
    }
}
