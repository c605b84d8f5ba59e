//! The files that every pod is made of.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{Access, access};

use super::Finding;
use crate::boot::not_a_kernel;

const BUILD: &str = "build it (scripts/build) or install Nacre";

pub(super) fn monitor(path: &Path) -> Finding {
    const WHAT: &str = "monitor";
    let place = path.display();
    match access(path, Access::EXEC_OK) {
        Ok(()) if path.is_file() => Finding::ok(WHAT, place.to_string()),
        Ok(()) => Finding::fail(WHAT, format!("{place} is no file"), BUILD),
        Err(error) => Finding::fail(WHAT, format!("{place}: {}", io::Error::from(error)), BUILD),
    }
}

pub(super) fn kernel(path: &Path) -> Finding {
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

pub(super) fn initramfs(path: &Path) -> Finding {
    const WHAT: &str = "initramfs";
    match head(path) {
        Ok(head) if head.is_empty() => {
            Finding::fail(WHAT, format!("{} is empty", path.display()), BUILD)
        }
        Ok(_) => Finding::ok(WHAT, path.display().to_string()),
        Err(error) => Finding::fail(WHAT, format!("{}: {error}", path.display()), BUILD),
    }
}
