//! The agent's own log: the kernel's message buffer.
//!
//! PID 1 of the guest has no other place to write to. A record is one bounded
//! line with a kernel log level, so that errors reach the console (which the
//! monitor keeps) even when the kernel boots `quiet`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};

use log::{Level, LevelFilter, Log, Metadata, Record};

/// Bytes of one record; the kernel cuts what is longer than about 1000.
const MAX_RECORD: usize = 900;

/// Kernel log level of a message after which the guest cannot go on.
const EMERGENCY: u8 = 0;

struct KernelLog {
    device: File,
}

/// Sends the `log` crate's records to `/dev/kmsg`.
///
/// # Errors
/// When the device cannot be opened; nothing is logged then.
pub fn to_kernel() -> io::Result<()> {
    let device = OpenOptions::new().write(true).open("/dev/kmsg")?;
    install(Box::new(KernelLog { device }));
    Ok(())
}

fn install(logger: Box<dyn Log>) {
    if log::set_boxed_logger(logger).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// Writes the last words of an agent that has to give up.
pub fn fatal(message: &str) {
    let record = format_record(EMERGENCY, message);
    if let Ok(mut device) = OpenOptions::new().write(true).open("/dev/kmsg") {
        // There is nobody left to tell about a failure here.
        let _ = device.write_all(&record);
    }
}

impl Log for KernelLog {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let level = kernel_level(record.level(), record.target());
        let record = format_record(level, &record.args().to_string());
        // The kernel limits the rate of records; a lost one is no failure.
        let _ = (&self.device).write_all(&record);
    }

    fn flush(&self) {}
}

/// Kernel log level: below 4 shows on a console that is `quiet`.
fn kernel_level(level: Level, target: &str) -> u8 {
    // The RPC library calls every refused request an error.
    if target.starts_with("ttrpc") {
        return 7;
    }
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// One record of `/dev/kmsg`: prefix, one line, bounded, no control characters.
fn format_record(level: u8, message: &str) -> Vec<u8> {
    let mut record = format!("<{level}>nacre-agent: ").into_bytes();
    for character in message.chars() {
        let printable = if character.is_control() {
            ' '
        } else {
            character
        };
        let mut buffer = [0; 4];
        let encoded = printable.encode_utf8(&mut buffer).as_bytes();
        if record.len() + encoded.len() >= MAX_RECORD {
            break;
        }
        record.extend_from_slice(encoded);
    }
    record.push(b'\n');
    record
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_carries_its_level_and_stays_on_one_line() {
        assert_eq!(
            format_record(3, "one\ntwo\x1b[31m"),
            b"<3>nacre-agent: one two [31m\n"
        );
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let record = format_record(0, &"é".repeat(5000));
        assert!(record.len() <= MAX_RECORD);
        String::from_utf8(record).unwrap();
    }

    #[test]
    fn errors_show_on_a_quiet_console_and_the_library_does_not() {
        assert!(kernel_level(Level::Error, "nacre_agent") < 4);
        assert!(kernel_level(Level::Error, "ttrpc::asynchronous") >= 4);
    }
}
