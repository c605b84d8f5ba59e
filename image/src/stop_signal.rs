//! The signal by which an image wants to be stopped.

use std::str::FromStr;

use nix::libc;
use nix::sys::signal::Signal;
use oci_spec::image::ImageConfiguration;

use crate::error::ImageError;

/// The number of the image's StopSignal, if it has one.
///
/// # Errors
/// When there is no such signal.
pub fn stop_signal(config: &ImageConfiguration) -> Result<Option<i32>, ImageError> {
    let name = config
        .config()
        .as_ref()
        .and_then(|c| c.stop_signal().as_ref());
    let Some(name) = name.filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    let refused = || ImageError::invalid("the image's StopSignal", format!("no signal {name:?}"));
    number(name).map(Some).ok_or_else(refused)
}

/// A signal by its number or its name, with or without `SIG`.
fn number(text: &str) -> Option<i32> {
    let last = libc::SIGRTMAX();
    if let Ok(number) = text.parse() {
        return (1..=last).contains(&number).then_some(number);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        return real_time(libc::SIGRTMIN(), offset, '+');
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        return real_time(last, offset, '-');
    }
    let signal = Signal::from_str(&format!("SIG{name}")).ok()?;
    Some(signal as i32)
}

/// A real-time signal so far from `base`.
fn real_time(base: i32, offset: &str, sign: char) -> Option<i32> {
    let offset: i32 = match offset.strip_prefix(sign) {
        None if offset.is_empty() => 0,
        None => return None,
        Some(digits) => digits.parse().ok().filter(|offset| *offset >= 0)?,
    };
    let number = if sign == '+' {
        base.checked_add(offset)?
    } else {
        base.checked_sub(offset)?
    };
    (libc::SIGRTMIN()..=libc::SIGRTMAX())
        .contains(&number)
        .then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, expected) in [
            ("SIGQUIT", libc::SIGQUIT),
            ("quit", libc::SIGQUIT),
            ("3", 3),
            ("SIGRTMIN+3", libc::SIGRTMIN() + 3),
            ("RTMAX-1", libc::SIGRTMAX() - 1),
        ] {
            assert_eq!(number(text), Some(expected), "{text}");
        }
        for text in [
            "", "SIG", "0", "-9", "65", "SIGSOON", "RTMIN-1", "RTMIN+99", "RTMIN+-1",
        ] {
            assert_eq!(number(text), None, "{text}");
        }
    }
}
