//! Log lines for containerd, on standard error: the bundle's fifo `log`, of which
//! containerd copies every line into its own log.
//!
//! A line is dropped when containerd does not read: nothing of a pod may wait
//! for its log. The newest lines are kept here, too, for whoever asks the shim itself.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use log::{Level, LevelFilter, Log, Metadata, Record};

/// Bytes of lines that are kept.
const KEPT: usize = 32 << 10;

struct Logger {
    /// Fields of every line: the pod and its namespace.
    fields: String,
    recent: Mutex<Recent>,
}

/// The newest lines.
#[derive(Default)]
struct Recent {
    lines: VecDeque<String>,
    bytes: usize,
}

impl Recent {
    fn push(&mut self, line: String) {
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.bytes > KEPT
            && let Some(oldest) = self.lines.pop_front()
        {
            self.bytes -= oldest.len();
        }
    }
}

static LOGGER: OnceLock<Logger> = OnceLock::new();

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let ours = ["nacre", "containerd_shim_nacre"];
        let target = metadata.target();
        // Of libraries, only what went wrong.
        metadata.level() <= Level::Warn || ours.iter().any(|name| target.starts_with(name))
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = line(
            SystemTime::now(),
            record.level(),
            &record.args().to_string(),
            &self.fields,
        );
        // Nobody is left to be told when it cannot be written.
        let _ = std::io::stderr().write_all(line.as_bytes());
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.push(line);
    }

    fn flush(&self) {}
}

/// Shows what is worth knowing, and with `debug` everything, for `pod`.
pub(crate) fn start(debug: bool, namespace: &str, pod: &str) {
    let fields = format!("namespace={namespace} pod={pod} runtime=io.containerd.nacre.v2");
    let recent = Mutex::default();
    let logger = LOGGER.get_or_init(|| Logger { fields, recent });
    // It is set once, here.
    let _ = log::set_logger(logger);
    log::set_max_level(if debug {
        LevelFilter::Debug
    } else {
        LevelFilter::Info
    });
}

/// The newest lines that were logged.
pub(crate) fn recent() -> String {
    let Some(logger) = LOGGER.get() else {
        return String::new();
    };
    let recent = logger.recent.lock().unwrap_or_else(PoisonError::into_inner);
    recent.lines.iter().map(String::as_str).collect()
}

/// A line as containerd writes its own: logrus' text format.
fn line(time: SystemTime, level: Level, message: &str, fields: &str) -> String {
    let level = match level {
        Level::Error => "error",
        Level::Warn => "warning",
        Level::Info => "info",
        Level::Debug | Level::Trace => "debug",
    };
    let time = humantime::format_rfc3339_nanos(time);
    let mut line = format!("time=\"{time}\" level={level} msg=\"");
    for c in message.chars() {
        match c {
            '"' | '\\' => line.extend(['\\', c]),
            '\n' => line.push_str("\\n"),
            c if c.is_control() => {
                // Writing to a string cannot fail.
                let _ = write!(line, "\\x{:02x}", u32::from(c));
            }
            c => line.push(c),
        }
    }
    line.push_str("\" ");
    line.push_str(fields);
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_lines_are_kept() {
        let mut recent = Recent::default();
        for number in 0..10_000 {
            recent.push(format!("{number}\n"));
        }
        recent.push("y".repeat(KEPT - 5));
        assert_eq!(recent.lines.len(), 2);
        assert_eq!(recent.lines[0], "9999\n");
        recent.push("x".repeat(2 * KEPT));
        assert_eq!((recent.lines.len(), recent.bytes), (0, 0));
    }

    #[test]
    fn a_line_is_one_of_containerds() {
        let line = line(
            SystemTime::UNIX_EPOCH,
            Level::Warn,
            "a \"b\"\nc\u{1b}",
            "pod=x",
        );
        assert_eq!(
            line,
            "time=\"1970-01-01T00:00:00.000000000Z\" level=warning \
             msg=\"a \\\"b\\\"\\nc\\x1b\" pod=x\n"
        );
    }
}
