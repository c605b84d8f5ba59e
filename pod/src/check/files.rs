//! The files that every pod is made of.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{Access, access};

use super::Finding;
use crate::boot::not_a_kernel;

const BUILD: &str = "build Nacre with `make build`, or name the file";

/// Enough for the signatures of an ELF file, a bzImage and a cpio archive.
const HEAD_LEN: u64 = 0x206;

/// Of the "newc" format (the kernel's early-userspace/buffer-format).
const CPIO_MAGIC: &[u8] = b"070701";

/// The `nacre-vmm` binary.
#[must_use]
pub fn monitor(path: &Path) -> Finding {
    const WHAT: &str = "monitor";
    let place = path.display();
    match access(path, Access::EXEC_OK) {
        Ok(()) if path.is_file() => Finding::ok(WHAT, place.to_string()),
        Ok(()) => Finding::fail(WHAT, format!("{place} is no file"), BUILD),
        Err(error) => Finding::fail(WHAT, format!("{place}: {}", io::Error::from(error)), BUILD),
    }
}

/// The guest kernel.
#[must_use]
pub fn kernel(path: &Path) -> Finding {
    const WHAT: &str = "guest kernel";
    match head(path) {
        Ok(head) => match not_a_kernel(&head) {
            None => Finding::ok(WHAT, path.display().to_string()),
            Some(why) => {
                let detail = format!("{} is no guest kernel: {why}", path.display());
                Finding::fail(WHAT, detail, BUILD)
            }
        },
        Err(error) => Finding::fail(WHAT, format!("{}: {error}", path.display()), BUILD),
    }
}

/// The initramfs.
#[must_use]
pub fn initramfs(path: &Path) -> Finding {
    const WHAT: &str = "initramfs";
    match head(path) {
        Ok(head) if head.starts_with(CPIO_MAGIC) => Finding::ok(WHAT, path.display().to_string()),
        Ok(_) => {
            let detail = format!("{} is no uncompressed cpio archive", path.display());
            Finding::fail(WHAT, detail, BUILD)
        }
        Err(error) => Finding::fail(WHAT, format!("{}: {error}", path.display()), BUILD),
    }
}

/// As much of a file's beginning as tells what it is.
fn head(path: &Path) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    File::open(path)?.take(HEAD_LEN).read_to_end(&mut head)?;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn verdict_on(check: impl Fn(&Path) -> Finding, content: &[u8]) -> (Verdict, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, content).unwrap();
        let finding = check(&path);
        (finding.verdict, finding.detail)
    }

    #[test]
    fn a_kernel_is_known_by_its_head() {
        let mut elf = [0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18] = 62;
        assert_eq!(verdict_on(kernel, &elf).0, Verdict::Ok);
        let (verdict, detail) = verdict_on(kernel, b"#!/bin/sh\n");
        assert_eq!(verdict, Verdict::Fail);
        assert!(detail.contains("not an ELF file"), "{detail}");
    }

    #[test]
    fn an_initramfs_is_known_by_its_head() {
        assert_eq!(verdict_on(initramfs, b"070701000002D1").0, Verdict::Ok);
        assert_eq!(verdict_on(initramfs, b"").0, Verdict::Fail);
        assert_eq!(verdict_on(initramfs, b"\x1f\x8b\x08").0, Verdict::Fail);
    }

    #[test]
    fn a_monitor_must_be_executable() {
        assert_eq!(monitor(Path::new("/proc/self/exe")).verdict, Verdict::Ok);
        let (verdict, detail) = verdict_on(monitor, b"");
        assert_eq!(verdict, Verdict::Fail);
        assert!(detail.contains("Permission denied"), "{detail}");
        assert_eq!(monitor(Path::new("/")).verdict, Verdict::Fail);
    }

    #[test]
    fn a_missing_file_is_named() {
        for check in [monitor, kernel, initramfs] {
            let finding = check(Path::new("/no/such/file"));
            assert_eq!(finding.verdict, Verdict::Fail);
            assert!(
                finding.detail.starts_with("/no/such/file: No such file"),
                "{finding}"
            );
        }
    }
}
