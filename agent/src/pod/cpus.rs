//! Which CPUs of the guest run.
//!
//! The kernel boots with one, because starting the others one after another
//! takes time that the first container does not have to wait for.

use std::fs;
use std::io;

use crate::error::{Doing, Error};

const CPUS: &str = "/sys/devices/system/cpu";

/// CPUs that are online.
pub(crate) fn online() -> Result<u32, Error> {
    Ok(u32::try_from(ids("online")?.len()).unwrap_or(u32::MAX))
}

/// Brings CPUs online until there are `wanted`.
pub(super) fn bring_online(wanted: u32) -> Result<(), Error> {
    let running = ids("online")?;
    let missing = (wanted as usize).saturating_sub(running.len());
    if missing == 0 {
        return Ok(());
    }
    let present = ids("present")?;
    if present.len() < wanted as usize {
        let message = format!("cpus: {wanted} asked for, the guest has {}", present.len());
        return Err(Error::FailedPrecondition(message));
    }
    let stopped = present.iter().filter(|id| !running.contains(id));
    for id in stopped.take(missing) {
        write_online(*id, "1").doing(&format!("cannot bring CPU {id} online"))?;
    }
    Ok(())
}

/// Brings CPUs online, or takes those of the highest numbers offline, until there are
/// `wanted`.
pub(super) fn set_online(wanted: u32) -> Result<(), Error> {
    if wanted == 0 {
        return Err(Error::InvalidArgument(
            "cpus: must be at least 1".to_owned(),
        ));
    }
    bring_online(wanted)?;
    let running = ids("online")?;
    // The boot CPU is the first, and stays.
    for id in running.iter().skip(wanted as usize).rev() {
        write_online(*id, "0").doing(&format!("cannot take CPU {id} offline"))?;
    }
    Ok(())
}

fn write_online(id: u32, value: &str) -> io::Result<()> {
    fs::write(format!("{CPUS}/cpu{id}/online"), value)
}

fn ids(list: &str) -> Result<Vec<u32>, Error> {
    let text = fs::read_to_string(format!("{CPUS}/{list}")).doing("cannot list the CPUs")?;
    parse_list(&text)
        .ok_or_else(|| Error::Internal(format!("the list of CPUs cannot be read: {text:?}")))
}

/// Highest CPU number of a list, above what any kernel counts.
const MAX_ID: u32 = 8192;

/// A list of the kernel's: `0`, `0-3`, `0,2-5`; `None` when it is none.
fn parse_list(text: &str) -> Option<Vec<u32>> {
    let mut ids = Vec::new();
    let text = text.trim();
    if text.is_empty() {
        return Some(ids);
    }
    for range in text.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last > MAX_ID {
            return None;
        }
        ids.extend(first..=last);
    }
    Some(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_the_kernel_are_read() {
        assert_eq!(parse_list("0\n"), Some(vec![0]));
        assert_eq!(parse_list("0-3"), Some(vec![0, 1, 2, 3]));
        assert_eq!(parse_list("0,2-3,7\n"), Some(vec![0, 2, 3, 7]));
        assert_eq!(parse_list("\n"), Some(vec![]));
    }

    #[test]
    fn what_is_no_list_is_refused_and_not_expanded() {
        for text in ["a", "3-1", "0-4294967295", "1,,2", "-1"] {
            assert_eq!(parse_list(text), None, "{text:?}");
        }
    }

    #[test]
    fn more_cpus_than_there_are_or_none_are_refused() {
        for bring in [bring_online, set_online] {
            let error = bring(MAX_ID).unwrap_err();
            assert!(matches!(error, Error::FailedPrecondition(_)), "{error}");
        }
        let error = set_online(0).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
    }

    #[test]
    fn as_many_cpus_as_are_online_is_nothing_to_do() {
        set_online(online().unwrap()).unwrap();
    }
}
