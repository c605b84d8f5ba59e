//! `--preserve-fds`: descriptors of the host cannot be handed to a guest. A caller that names
//! more than are open, to be on the safe side, is served.

use std::fs;

use super::error::OciError;

/// The first of `number` descriptors after the standard ones that is open.
pub(super) fn first_handed(number: u32) -> Option<u32> {
    if number == 0 {
        return None;
    }
    let handed = 3..number.saturating_add(3);
    let open = fs::read_dir("/proc/self/fd").ok()?;
    // All of them first: the directory's own is closed by then.
    let open: Vec<u32> = open
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    open.into_iter()
        .filter(|fd| handed.contains(fd) && fs::read_link(format!("/proc/self/fd/{fd}")).is_ok())
        .min()
}

/// Refuses to hand one over.
pub(super) fn refuse(handed: Option<u32>) -> Result<(), OciError> {
    match handed {
        None => Ok(()),
        Some(fd) => Err(OciError::Other(format!(
            "--preserve-fds: descriptor {fd} is open, and descriptors of the host cannot be \
             handed to a guest"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn only_what_is_open_is_handed_over() {
        assert_eq!(first_handed(0), None);
        let file = fs::File::open("/dev/null").unwrap();
        let fd = u32::try_from(file.as_raw_fd()).unwrap();
        let first = first_handed(u32::MAX).unwrap();
        assert!((3..=fd).contains(&first), "{first}");
        let message = refuse(Some(first)).unwrap_err().to_string();
        assert!(message.contains(&format!("descriptor {first} is open")));
    }
}
