//! What `/proc` of the host says of processes.

use std::fs;
use std::path::{Path, PathBuf};

/// Identifiers of all processes whose program has this name.
#[must_use]
pub fn named(name: &str) -> Vec<u32> {
    all()
        .into_iter()
        .filter(|pid| {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm"));
            comm.is_ok_and(|comm| comm.trim_end() == name) && !is_zombie_or_gone(*pid)
        })
        .collect()
}

/// Identifiers of all processes.
#[must_use]
pub fn all() -> Vec<u32> {
    names(Path::new("/proc"))
        .iter()
        .filter_map(|name| name.parse().ok())
        .collect()
}

/// Whether it is a thread of the kernel, which come and go with the work there is.
#[must_use]
pub fn is_kernels(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/status"))
        .is_ok_and(|status| pid == 2 || field(&status, "PPid") == "2")
}

fn is_zombie_or_gone(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/status"))
        .map_or(true, |status| field(&status, "State").starts_with('Z'))
}

/// Names of what is in a directory, in order; none when there is no directory.
#[must_use]
pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    names.sort();
    names
}

/// The value of `NAME:` in a status file, without white space around it; empty
/// when there is no such line.
#[must_use]
pub fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map_or("", str::trim)
}

/// Anonymous memory of a process in KiB, as far as it is its own and not the guest's.
///
/// # Panics
/// When it has ended.
#[must_use]
pub fn own_anonymous_kib(pid: u32) -> u64 {
    // Half of what a guest has by default.
    const GUEST_KIB: u64 = 256 << 10;
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("a running process");
    let sizes = values(&smaps, "Size");
    let anonymous = values(&smaps, "Anonymous");
    sizes
        .zip(anonymous)
        .filter_map(|(size, anonymous)| (size < GUEST_KIB).then_some(anonymous))
        .sum()
}

/// The sizes in a file's lines `NAME: N kB`, in their order.
fn values<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = u64> + 'a {
    let of_name = move |line: &'a str| line.strip_prefix(name)?.strip_prefix(':');
    text.lines().filter_map(of_name).map(str::trim).map(kib)
}

/// Memory that the host could give away, in KiB, with the free pages that each CPU keeps for
/// itself: they are tens of MiB, and others at each look.
///
/// # Panics
/// Never on Linux.
#[must_use]
pub fn available_kib() -> u64 {
    let read = |path: &str| fs::read_to_string(path).unwrap();
    let zones = read("/proc/zoneinfo");
    let kept = zones
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("count:"));
    let pages: u64 = kept.map(|count| count.trim().parse::<u64>().unwrap()).sum();
    let page_kib = rustix::param::page_size() as u64 / 1024;
    kib(field(&read("/proc/meminfo"), "MemAvailable")) + pages * page_kib
}

/// The number in a value such as `512 kB`.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn kib(value: &str) -> u64 {
    value
        .trim_end_matches(" kB")
        .parse()
        .unwrap_or_else(|_| panic!("{value:?} is no size"))
}

/// What the descriptors of a process are, in the order of their numbers.
#[must_use]
pub fn descriptors(pid: u32) -> Vec<(u32, PathBuf)> {
    let dir = PathBuf::from(format!("/proc/{pid}/fd"));
    let mut descriptors: Vec<(u32, PathBuf)> = names(&dir)
        .into_iter()
        .filter_map(|name| Some((name.parse().ok()?, fs::read_link(dir.join(&name)).ok()?)))
        .collect();
    descriptors.sort();
    descriptors
}
