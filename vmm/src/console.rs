//! The guest kernel's console: a ring that keeps the newest bytes, to be shown
//! when a boot fails.

use std::collections::VecDeque;

/// Bytes that are kept.
const CAPACITY: usize = 64 << 10;
/// Bytes of the tail that is reported: with every byte escaped it still fits
/// into one control message.
const TAIL: usize = 12 << 10;
/// Target of the log lines that carry the console.
pub const LOG_TARGET: &str = "console";
/// Longest line that is logged whole.
const MAX_LINE: usize = 1024;

/// The ring.
#[derive(Debug)]
pub struct Console {
    bytes: VecDeque<u8>,
    line: Option<Vec<u8>>,
}

impl Console {
    /// An empty console, whose lines are also logged if `log_lines`.
    #[must_use]
    pub fn new(log_lines: bool) -> Self {
        Self {
            bytes: VecDeque::new(),
            line: log_lines.then(Vec::new),
        }
    }

    /// The guest writes a byte.
    pub fn push(&mut self, byte: u8) {
        if self.bytes.len() == CAPACITY {
            self.bytes.pop_front();
        }
        self.bytes.push_back(byte);
        if let Some(line) = &mut self.line {
            match byte {
                b'\r' => {}
                b'\n' => {
                    log::info!(target: LOG_TARGET, "guest: {}", String::from_utf8_lossy(line).escape_debug());
                    line.clear();
                }
                byte if line.len() < MAX_LINE => line.push(byte),
                _ => {}
            }
        }
    }

    /// The newest part of what was written, as text.
    #[must_use]
    pub fn tail(&self) -> String {
        let skipped = self.bytes.len().saturating_sub(TAIL);
        let bytes: Vec<u8> = self.bytes.iter().skip(skipped).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Event, MAX_MESSAGE};

    #[test]
    fn the_newest_bytes_are_kept_and_memory_is_bounded() {
        let mut console = Console::new(false);
        for round in 0..3 * CAPACITY {
            console.push(if round + 5 < 3 * CAPACITY { b'.' } else { b'!' });
        }
        assert_eq!(console.bytes.len(), CAPACITY);
        assert!(console.tail().ends_with(".!!!!!"));
    }

    #[test]
    fn any_tail_fits_into_a_control_message() {
        for byte in [0, b'"', 0xff] {
            let mut console = Console::new(true);
            (0..CAPACITY).for_each(|_| console.push(byte));
            let event = Event::Console {
                question: u64::MAX,
                text: console.tail(),
            };
            let message = serde_json::to_vec(&event).unwrap();
            assert!(message.len() <= MAX_MESSAGE, "{byte}: {}", message.len());
        }
    }
}
