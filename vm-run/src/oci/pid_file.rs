//! Files that tell a process identifier.

use std::fs;
use std::io;
use std::path::Path;

use super::error::OciError;

/// Writes the file in one piece: who sees it sees all of the number.
pub(crate) fn write(path: &Path, pid: u32) -> Result<(), OciError> {
    let write = || -> io::Result<()> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let mut draft = std::ffi::OsString::from(".");
        draft.push(name);
        let draft = path.with_file_name(draft);
        fs::write(&draft, pid.to_string())?;
        fs::rename(&draft, path)
    };
    write().map_err(OciError::system(format!("pid file {}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_stands_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        write(&path, 4711).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "4711");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let error = write(&dir.path().join("none/pid"), 1).unwrap_err();
        assert!(error.to_string().contains("none/pid"), "{error}");
    }
}
