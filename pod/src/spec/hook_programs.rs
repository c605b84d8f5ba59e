//! Programs of `createContainer` hooks: files of the host that are executed inside the guest,
//! in the container's namespaces but before its root is entered (runtime-spec,
//! "CreateContainer Hooks"). Each goes into the share, alone.
//!
//! Nothing else of the host is there, no shell and no library. So it must be a program that
//! needs none.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use oci_spec::runtime::{Hook, Hooks, Spec};

use super::Refusal;
use crate::host::{Access, Source};

/// Number of the first one among all that is shared, beyond those of all mounts that fit into
/// a `config.json`.
pub(super) const FIRST: usize = 1 << 24;

/// Bytes of a file in which its program headers are looked for.
const HEAD: u64 = 64 << 10;

/// `PT_INTERP` of elf(5): names the loader of a program with shared libraries.
const PT_INTERP: u32 = 3;

/// Opens them, with their number in the share.
pub(super) fn open(spec: &Spec) -> Result<Vec<(usize, Source)>, Refusal> {
    let hooks = spec.hooks().as_ref().map(of).unwrap_or_default();
    let open = |(number, hook): (usize, &Hook)| {
        let field = format!("hooks.createContainer[{number}].path");
        let path = hook.path();
        let source = Source::open(path, false, Access::ReadOnly)
            .map_err(|error| Refusal::source(field.clone(), &error))?;
        let refuse = |reason: &str| {
            let reason = format!("{}: {reason}", path.display());
            Err(Refusal::new(field.clone(), reason))
        };
        if source.is_dir() {
            return refuse("is a directory");
        }
        match needs_another_file(path) {
            Ok(false) => Ok((FIRST + number, source)),
            Ok(true) => refuse(
                "runs in the guest, where neither the host's libraries nor its shell are: \
                 it must be a statically linked program",
            ),
            Err(error) => refuse(&error.to_string()),
        }
    };
    hooks.iter().enumerate().map(open).collect()
}

/// The hooks.
pub(super) fn of(hooks: &Hooks) -> &[Hook] {
    hooks.create_container().as_deref().unwrap_or_default()
}

fn needs_another_file(path: &Path) -> io::Result<bool> {
    let mut head = Vec::new();
    File::open(path)?.take(HEAD).read_to_end(&mut head)?;
    Ok(head.starts_with(b"#!") || has_loader(&head).unwrap_or(false))
}

/// Whether a 64-bit ELF file names a loader; none when it is something else.
fn has_loader(file: &[u8]) -> Option<bool> {
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let half = |at: usize| Some(u16::from_le_bytes(*file.get(at..)?.first_chunk()?).into());
    let headers = u64::from_le_bytes(*file.get(32..)?.first_chunk()?);
    let (headers, size, count): (_, usize, usize) =
        (usize::try_from(headers).ok()?, half(54)?, half(56)?);
    let found = (0..count).any(|number| {
        let kind = number
            .checked_mul(size)
            .and_then(|offset| headers.checked_add(offset))
            .and_then(|at| file.get(at..)?.first_chunk());
        kind.is_some_and(|kind| u32::from_le_bytes(*kind) == PT_INTERP)
    });
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_and_a_program_with_libraries_need_other_files() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("script");
        std::fs::write(&script, "#!/bin/sh\n").unwrap();
        assert!(needs_another_file(&script).unwrap());
        let shell = Path::new("/bin/sh");
        assert!(needs_another_file(shell).unwrap());
    }

    #[test]
    fn a_static_program_stands_alone() {
        let mut elf = b"\x7fELF\x02\x01".to_vec();
        elf.resize(64, 0);
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = 2;
        // PT_LOAD, then PT_TLS.
        for kind in [1_u32, 7] {
            elf.extend(kind.to_le_bytes());
            elf.extend([0; 52]);
        }
        assert_eq!(has_loader(&elf), Some(false));
        elf[64 + 56] = 3;
        assert_eq!(has_loader(&elf), Some(true));
        // Headers that are somewhere else are none.
        elf[39] = 0xff;
        assert_eq!(has_loader(&elf), Some(false));
        assert_eq!(has_loader(b"\x7fELF\x02\x01"), None);
        assert_eq!(has_loader(b"text"), None);
    }
}
