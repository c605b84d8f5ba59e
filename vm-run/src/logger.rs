//! Lines for the person at the terminal, on standard error, and for the engine that has
//! named a file for them.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use log::{Level, LevelFilter, Log, Metadata, Record};

/// The terminal is in raw mode: a line feed alone does not begin a line.
static RAW: AtomicBool = AtomicBool::new(false);

/// Where an engine wants to read what happens.
static ENGINE: OnceLock<Engine> = OnceLock::new();

struct Logger;

/// How an engine is told what happens, as by runc.
#[derive(Debug)]
struct Engine {
    /// None: standard error.
    file: Option<File>,
    json: bool,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Other libraries' details help nobody here.
        metadata.target().starts_with("nacre") || metadata.target().starts_with("vm_run")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let message = record.args().to_string();
            match ENGINE.get() {
                Some(engine) => engine.tell(record.level(), &message),
                None => say(&message),
            }
        }
    }

    fn flush(&self) {}
}

impl Engine {
    fn tell(&self, level: Level, message: &str) {
        let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let line = self.line(&time, level, message);
        match &self.file {
            // Nobody is left to be told when it cannot be written.
            Some(file) => drop((&*file).write_all(line.as_bytes())),
            None => print(&line),
        }
    }

    fn line(&self, time: &str, level: Level, message: &str) -> String {
        let level = match level {
            Level::Error => "error",
            Level::Warn => "warning",
            Level::Info => "info",
            Level::Debug | Level::Trace => "debug",
        };
        let quoted = serde_json::Value::from(message);
        if self.json {
            format!("{{\"level\":\"{level}\",\"msg\":{quoted},\"time\":\"{time}\"}}\n")
        } else {
            format!("time=\"{time}\" level={level} msg={quoted}\n")
        }
    }
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

/// As [`start`], in the forms that engines know: a line of `text` or JSON in the file that
/// they have named, else on standard error.
pub(crate) fn start_runtime(file: Option<&Path>, json: bool, debug: bool) -> Result<(), String> {
    let open = |path: &Path| {
        let opened = File::options().append(true).create(true).open(path);
        opened.map_err(|error| format!("--log: {}: {error}", path.display()))
    };
    let file = file.map(open).transpose()?;
    // It is set once, here.
    let _ = ENGINE.set(Engine { file, json });
    start(debug);
    Ok(())
}

/// As [`start_runtime`] was told, but no warnings on standard error, which is somebody else's
/// from now on.
pub(crate) fn keep_off_stderr() {
    let is_quiet = log::max_level() < LevelFilter::Debug;
    if is_quiet && ENGINE.get().is_some_and(|engine| engine.file.is_none()) {
        log::set_max_level(LevelFilter::Off);
    }
}

/// Says why the whole cannot be done: in the engine's file, if there is one, and on
/// standard error.
pub(crate) fn fatal(message: &str) {
    if let Some(engine) = ENGINE.get() {
        engine.tell(Level::Error, message);
        if engine.file.is_some() {
            print(&format!("{message}\n"));
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_read_lines_as_those_of_runc() {
        let line = |json| {
            let engine = Engine { file: None, json };
            engine.line("2026-01-01T00:00:00Z", Level::Error, "a \"b\"\nc")
        };
        let text = "time=\"2026-01-01T00:00:00Z\" level=error msg=\"a \\\"b\\\"\\nc\"\n";
        assert_eq!(line(false), text);
        let value: serde_json::Value = serde_json::from_str(&line(true)).unwrap();
        let expected = serde_json::json!({
            "level": "error", "msg": "a \"b\"\nc", "time": "2026-01-01T00:00:00Z"
        });
        assert_eq!(value, expected);
    }
}
