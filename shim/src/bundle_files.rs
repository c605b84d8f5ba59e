//! Files that a shim keeps in a container's bundle for whoever comes after it.

use std::fs;
use std::io;
use std::path::Path;

/// The address of the pod's shim; containerd reads it, too.
pub(crate) const ADDRESS: &str = "address";

/// Process identifier of the shim, in the bundle that it was started for.
pub(crate) const PID: &str = "shim.pid";

/// Writes a file in one piece: nobody sees half of it.
pub(crate) fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let written = fs::write(&new, content).and_then(|()| fs::rename(&new, path));
    written.inspect_err(|_| {
        let _ = fs::remove_file(&new);
    })
}

/// The first line of a file, if there is such a file.
pub(crate) fn read(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(ADDRESS);
        assert_eq!(read(&path), None);
        write(&path, b"unix:///a\n").unwrap();
        write(&path, b"unix:///b\n").unwrap();
        assert_eq!(read(&path).as_deref(), Some("unix:///b"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
