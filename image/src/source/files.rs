//! The files of a layout: in a directory, or in an archive that is not unpacked for it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::OFlags;
use tar::{Archive, EntryType};

use crate::error::ImageError;
use crate::gate::{Gate, Gated};
use crate::root::{Root, relative};

/// Entries that the archive of an image may have. Its layers are one each.
const MAX_ENTRIES: usize = 20_000;

/// Links that are followed from one name of an archive.
const MAX_LINKS: usize = 8;

/// Files by their names.
pub(crate) struct Files {
    path: PathBuf,
    form: Form,
}

enum Form {
    Directory(Root),
    Archive {
        file: Rc<File>,
        index: HashMap<PathBuf, Place>,
    },
}

/// Where a file of an archive is.
enum Place {
    /// Its content, in bytes from the archive's start.
    Content { start: u64, len: u64 },
    /// At another name.
    Link(PathBuf),
}

impl Files {
    pub(crate) fn open(path: &Path) -> Result<Self, ImageError> {
        let failed = || ImageError::system(path.display());
        let form = if path.metadata().map_err(failed())?.is_dir() {
            Form::Directory(Root::open(&path.canonicalize().map_err(failed())?).map_err(failed())?)
        } else {
            let file = File::open(path).map_err(failed())?;
            let index = index(&file).map_err(|error| {
                let compressed = "is no tar archive; one that is compressed must be \
                                  decompressed first";
                ImageError::invalid(path.display(), format!("{compressed} ({error})"))
            })?;
            Form::Archive {
                file: Rc::new(file),
                index,
            }
        };
        Ok(Self {
            path: path.to_owned(),
            form,
        })
    }

    /// For messages.
    pub(crate) fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// Whether there is a file of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.read(name).is_ok()
    }

    /// Opens the file of this name, which must be a regular one.
    pub(crate) fn read(&self, name: &str) -> Result<Box<dyn Read>, ImageError> {
        let failed = || ImageError::system::<io::Error>(format!("{}: {name}", self.path.display()));
        match &self.form {
            Form::Directory(root) => {
                // A FIFO would keep us waiting for somebody to write it.
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
                let file = root.open_at(Path::new(name), flags);
                let file = file.map_err(io::Error::from).map_err(failed())?;
                let file = File::from(file);
                if !file.metadata().map_err(failed())?.is_file() {
                    return Err(failed()(io::Error::other("is not a regular file")));
                }
                Ok(Box::new(file))
            }
            Form::Archive { file, index } => {
                let (start, len) = find(index, name)
                    .ok_or_else(|| failed()(io::Error::from(io::ErrorKind::NotFound)))?;
                Ok(Box::new(Section {
                    file: Rc::clone(file),
                    at: start,
                    left: len,
                }))
            }
        }
    }
}

/// Notes where each file of an archive is.
fn index(file: &File) -> io::Result<HashMap<PathBuf, Place>> {
    let gate = Gate::default();
    let mut archive = Archive::new(Gated::new(file, gate.clone()));
    let mut index = HashMap::new();
    let mut entries = archive.entries_with_seek()?;
    loop {
        gate.close();
        let Some(entry) = entries.next() else { break };
        let entry = entry?;
        let Ok(name) = relative(&entry.path_bytes()) else {
            continue;
        };
        let name: PathBuf = name.iter().collect();
        let place = match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => Place::Content {
                start: entry.raw_file_position(),
                len: entry.size(),
            },
            // Archives of Docker's have them for layers that are there twice.
            EntryType::Symlink => match link(&name, entry.link_name_bytes().as_deref()) {
                Some(target) => Place::Link(target),
                None => continue,
            },
            EntryType::Link => match entry.link_name_bytes().map(|to| relative(&to)) {
                Some(Ok(target)) => Place::Link(target.iter().collect()),
                _ => continue,
            },
            _ => continue,
        };
        index.insert(name, place);
        if index.len() > MAX_ENTRIES {
            return Err(io::Error::other("it has too many files for an image"));
        }
    }
    Ok(index)
}

/// What a symbolic link at `name` leads to, by names alone.
fn link(name: &Path, to: Option<&[u8]>) -> Option<PathBuf> {
    let mut target = name.parent()?.to_owned();
    for part in Path::new(std::str::from_utf8(to?).ok()?) {
        if part == ".." {
            target.pop();
        } else if part != "." && part != "/" {
            target.push(part);
        }
    }
    Some(target)
}

fn find(index: &HashMap<PathBuf, Place>, name: &str) -> Option<(u64, u64)> {
    let name: PathBuf = relative(name.as_bytes()).ok()?.iter().collect();
    let mut place = index.get(&name)?;
    for _ in 0..MAX_LINKS {
        match place {
            Place::Content { start, len } => return Some((*start, *len)),
            Place::Link(target) => place = index.get(target)?,
        }
    }
    None
}

/// A part of a file.
struct Section {
    file: Rc<File>,
    at: u64,
    left: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let max = usize::try_from(self.left).unwrap_or(usize::MAX);
        let max = max.min(buffer.len());
        let n = self.file.read_at(&mut buffer[..max], self.at)?;
        self.at += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}
