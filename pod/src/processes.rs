//! Processes of a container, as the guest tells of them.

use nacre_protocol::agent::ProcessDetails;
use serde::{Deserialize, Serialize};

use crate::text;

/// A process. Texts are bounded and fit for a terminal; all of it is the guest's word.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct GuestProcess {
    /// Its number in the guest.
    pub pid: u32,
    /// That of the process that has started it; 0 for none.
    pub parent: u32,
    /// Its effective user.
    pub uid: u32,
    /// A letter, as in proc(5).
    pub state: String,
    /// Device number of its terminal; 0 for none.
    pub terminal: u32,
    /// CPU time in milliseconds.
    pub cpu_ms: u64,
    /// When it was started, in seconds since the epoch.
    pub started_at: i64,
    /// Bytes of its address space.
    pub size: u64,
    /// Bytes of memory that it has.
    pub resident: u64,
    /// The kernel's name of it.
    pub name: String,
    /// Its arguments with spaces between them; empty for one without a program.
    pub arguments: String,
}

/// Nanoseconds of a second.
const SECOND: i64 = 1_000_000_000;

impl GuestProcess {
    pub(crate) fn new(details: &ProcessDetails) -> Self {
        Self {
            pid: details.pid,
            parent: details.parent,
            uid: details.uid,
            state: details
                .state
                .chars()
                .take(1)
                .filter(char::is_ascii_alphabetic)
                .collect(),
            terminal: details.terminal,
            cpu_ms: details.cpu_ms,
            started_at: details.started_at_ns.div_euclid(SECOND),
            size: details.size,
            resident: details.resident,
            name: text::one_line(&details.name),
            arguments: text::one_line(&details.arguments),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_says_is_fit_for_a_terminal() {
        let process = GuestProcess::new(&ProcessDetails {
            state: "\u{1b}[2J".to_owned(),
            started_at_ns: 5_999_999_999,
            name: "a\u{1b}[1m".to_owned(),
            arguments: "x ".repeat(1 << 20),
            ..ProcessDetails::default()
        });
        assert_eq!(process.started_at, 5);
        assert_eq!(process.state, "");
        assert!(!process.name.contains('\u{1b}'));
        assert!(process.arguments.chars().count() < 300);
    }
}
