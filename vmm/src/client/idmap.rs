//! The identity maps of a monitor's user namespace.
//!
//! Every identity keeps its number: the files of the share belong to whom they
//! belong, and the monitor's capabilities hold over them but over nothing
//! outside of its namespaces.

use std::fs;
use std::io;

use rustix::process::Pid;

/// Writes the maps of the child `pid`.
pub(super) fn write(pid: Pid) -> io::Result<()> {
    let pid = pid.as_raw_nonzero();
    for map in ["uid_map", "gid_map"] {
        let own = fs::read_to_string(format!("/proc/self/{map}"))?;
        fs::write(format!("/proc/{pid}/{map}"), identity(&own)?)?;
    }
    Ok(())
}

/// The map that gives a child exactly the identities that exist in a namespace
/// with the map `own` (see user_namespaces(7)).
fn identity(own: &str) -> io::Result<String> {
    let line = |line: &str| {
        let mut fields = line.split_whitespace();
        let (first, count) = (fields.next()?, fields.nth(1)?);
        Some(format!("{first} {first} {count}\n"))
    };
    own.lines()
        .map(line)
        .collect::<Option<String>>()
        .filter(|map| !map.is_empty())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unreadable identity map"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_identities_of_the_host_are_kept() {
        let map = identity("         0          0 4294967295\n").unwrap();
        assert_eq!(map, "0 0 4294967295\n");
    }

    #[test]
    fn a_nested_namespace_gets_what_its_parent_has() {
        let map = identity("0 100000 65536\n65536 1000 1\n").unwrap();
        assert_eq!(map, "0 0 65536\n65536 65536 1\n");
    }

    #[test]
    fn a_map_that_cannot_be_read_is_an_error() {
        assert_eq!(
            identity("0 1").unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        assert_eq!(identity("").unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
