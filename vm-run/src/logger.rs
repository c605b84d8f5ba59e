//! Lines for the person at the terminal, on standard error.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use log::{LevelFilter, Log, Metadata, Record};

/// The terminal is in raw mode: a line feed alone does not begin a line.
static RAW: AtomicBool = AtomicBool::new(false);

struct Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Other libraries' details help nobody here.
        metadata.target().starts_with("nacre") || metadata.target().starts_with("vm_run")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            say(&record.args().to_string());
        }
    }

    fn flush(&self) {}
}

/// Shows warnings, and with `debug` everything.
pub(crate) fn start(debug: bool) {
    let level = if debug {
        LevelFilter::Debug
    } else {
        LevelFilter::Warn
    };
    // It is set once, here.
    let _ = log::set_logger(&Logger);
    log::set_max_level(level);
}

/// Tells whether the terminal is in raw mode from now on.
pub(crate) fn set_raw(raw: bool) {
    RAW.store(raw, Ordering::Relaxed);
}

/// Prints a message of `vm-run`'s own.
pub(crate) fn say(message: &str) {
    print(&format!("vm-run: {message}\n"));
}

/// Prints lines to standard error in one piece.
pub(crate) fn print(lines: &str) {
    let raw = RAW.load(Ordering::Relaxed);
    let text = if raw {
        lines.replace('\n', "\r\n")
    } else {
        lines.to_owned()
    };
    // Nobody is left to be told when standard error is closed.
    let _ = std::io::stderr().write_all(text.as_bytes());
}
