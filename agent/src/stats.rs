//! What the guest uses.

use std::fs;

use nacre_protocol::agent::GuestStatsResponse;

use crate::error::{Doing, Error};
use crate::pod::cpus;

/// Release of the guest's kernel, as `uname -r` prints it.
pub(crate) fn kernel_release() -> String {
    let name = rustix::system::uname();
    name.release().to_string_lossy().into_owned()
}

/// Reads the figures of the guest and of the agent itself.
pub(crate) fn read() -> Result<GuestStatsResponse, Error> {
    let memory = read_file("/proc/meminfo")?;
    let agent = read_file("/proc/self/status")?;
    Ok(GuestStatsResponse {
        memory_total: kilobytes(&memory, "MemTotal"),
        memory_available: kilobytes(&memory, "MemAvailable"),
        cpus_online: cpus::online()?,
        agent_rss: kilobytes(&agent, "VmRSS"),
        ..GuestStatsResponse::default()
    })
}

fn read_file(path: &str) -> Result<String, Error> {
    fs::read_to_string(path).doing(path)
}

/// Bytes of a line `Name:  123 kB`; 0 when it is not there.
fn kilobytes(text: &str, name: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| *key == name)
        .and_then(|(_, value)| value.trim().trim_end_matches(" kB").parse::<u64>().ok())
        .map_or(0, |kilobytes| kilobytes.saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_bytes_and_found_by_their_whole_name() {
        let text = "MemTotal:        2048 kB\nMemAvailable:    1024 kB\n";
        assert_eq!(kilobytes(text, "MemTotal"), 2 << 20);
        assert_eq!(kilobytes(text, "MemAvailable"), 1 << 20);
        assert_eq!(kilobytes(text, "Mem"), 0);
    }
}
