//! Log lines on standard error: bounded in length and number, and never
//! waiting for a reader, since a guest can cause them.

use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};

use log::{Level, LevelFilter, Log, Metadata, Record};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Longest line: a pipe takes it whole or not at all (PIPE_BUF is 4096).
const MAX_LINE: usize = 2048;
/// Most lines in the life of a monitor, the guest's console aside.
const MAX_LINES: u32 = 1000;

struct Logger {
    lines: AtomicU32,
}

static LOGGER: Logger = Logger {
    lines: AtomicU32::new(0),
};

/// Installs the logger, once.
pub fn install() {
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // What libraries tell beside that is of no use to who runs a pod.
        let target = metadata.target();
        metadata.level() <= Level::Warn
            || target.starts_with("nacre")
            || target == crate::console::LOG_TARGET
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let is_console = record.target() == crate::console::LOG_TARGET;
        if !is_console && self.lines.fetch_add(1, Ordering::Relaxed) >= MAX_LINES {
            return;
        }
        let level = record.level().as_str().to_lowercase();
        let mut line = format!("nacre-vmm: {level}: {}", record.args());
        if line.len() > MAX_LINE {
            line.truncate(line.floor_char_boundary(MAX_LINE));
        }
        line.push('\n');
        let stderr = std::io::stderr();
        let mut polled = [PollFd::new(&stderr, PollFlags::OUT)];
        if matches!(
            poll(
                &mut polled,
                Some(&Timespec {
                    tv_sec: 0,
                    tv_nsec: 0
                })
            ),
            Ok(1)
        ) {
            // Where the log cannot be written, nobody can be told.
            let _ = stderr.lock().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}
