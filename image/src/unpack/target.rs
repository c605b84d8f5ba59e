//! The directory that a layer is unpacked into, and what is done to names in it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, OFlags, Stat, Timestamps, UTIME_OMIT, XattrFlags, lsetxattr, statat,
    unlinkat, utimensat,
};
use rustix::io::Errno;

use super::UnpackError;
use super::attributes::Time;
use crate::root::{Root, path_of};

/// Where a layer is unpacked.
pub(crate) struct Target {
    /// What a container would see with this layer on top.
    pub(super) root: Root,
    /// Where `root` is, as the kernel says it of what is in there.
    place: PathBuf,
    /// The layer's own directory, if there are layers below.
    own: Option<Root>,
    /// Directories, below the layer's own, that hide those below them.
    opaque: Vec<PathBuf>,
    /// What the archive says of the times of directories, which change with what is put in.
    times: Vec<(PathBuf, Time)>,
}

/// A name in a directory that is open.
pub(super) struct Slot {
    pub(super) dir: OwnedFd,
    pub(super) name: OsString,
}

impl Slot {
    pub(super) fn stat(&self) -> Result<Option<Stat>, Errno> {
        match statat(&self.dir, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// For calls that take no descriptor; a symbolic link there is not followed by this.
    pub(super) fn path(&self) -> PathBuf {
        path_of(&self.dir, Some(&self.name))
    }

    /// Removes what is there, with all that is in it.
    pub(super) fn clear(&self) -> io::Result<()> {
        match unlinkat(&self.dir, &self.name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR) => fs::remove_dir_all(self.path()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Target {
    /// The lowest layer, in its own directory.
    pub(crate) fn lowest(dir: &Path) -> io::Result<Self> {
        Self::new(dir, None)
    }

    /// A layer above others: `merged` is an overlay in which `own` is the topmost directory.
    pub(crate) fn above(merged: &Path, own: &Path) -> io::Result<Self> {
        Self::new(merged, Some(Root::open(own)?))
    }

    fn new(root: &Path, own: Option<Root>) -> io::Result<Self> {
        let root = Root::open(root)?;
        Ok(Self {
            place: fs::read_link(path_of(&root, None))?,
            root,
            own,
            opaque: Vec::new(),
            times: Vec::new(),
        })
    }

    /// Whether there are layers below.
    pub(super) fn is_above(&self) -> bool {
        self.own.is_some()
    }

    /// The directory at `path`, made if missing.
    pub(super) fn directory(&self, path: &[OsString]) -> Result<OwnedFd, Errno> {
        self.root.make_dirs(&path.iter().collect::<PathBuf>())
    }

    /// The name that `path` stands for; what is missing of its parent is made.
    pub(super) fn slot(&self, path: &[OsString]) -> Result<Option<Slot>, Errno> {
        let Some((name, parent)) = path.split_last() else {
            return Ok(None);
        };
        Ok(Some(Slot {
            dir: self.directory(parent)?,
            name: name.clone(),
        }))
    }

    /// What the layer itself has in that place.
    pub(super) fn own(&self, slot: &Slot) -> io::Result<Option<Stat>> {
        let Some(own) = &self.own else {
            return Ok(None);
        };
        let parent = match own.open_at(&self.place_of(&slot.dir)?, OFlags::PATH) {
            Err(Errno::NOENT) => return Ok(None),
            parent => parent?,
        };
        let below = Slot {
            dir: parent,
            name: slot.name.clone(),
        };
        Ok(below.stat()?)
    }

    /// Makes the directory hide what is below it once all is unpacked.
    pub(super) fn hide_below(&mut self, dir: &OwnedFd) -> io::Result<()> {
        let place = self.place_of(dir)?;
        self.opaque.push(place);
        Ok(())
    }

    /// Where a directory is, without symbolic links on the way, below the root.
    fn place_of(&self, dir: &OwnedFd) -> io::Result<PathBuf> {
        let path = fs::read_link(path_of(dir, None))?;
        match path.strip_prefix(&self.place) {
            Ok(relative) => Ok(relative.to_owned()),
            Err(_) => Err(io::Error::other("its directory was removed")),
        }
    }

    pub(super) fn remember_time(&mut self, path: &[OsString], time: Time) {
        self.times.push((path.iter().collect(), time));
    }

    /// Sets what can only be set at the end.
    pub(super) fn finish(&mut self) -> Result<(), UnpackError> {
        for (path, time) in std::mem::take(&mut self.times) {
            self.set_time(&path, time)?;
        }
        let Some(own) = &self.own else {
            return Ok(());
        };
        for path in &self.opaque {
            let dir = match own.open_at(path, OFlags::PATH | OFlags::DIRECTORY) {
                // It was removed by a later entry, or became something else.
                Err(Errno::NOENT | Errno::NOTDIR) => continue,
                dir => dir.map_err(io::Error::from)?,
            };
            let path = path_of(&dir, Some(OsStr::new(".")));
            lsetxattr(path, "trusted.overlay.opaque", b"y", XattrFlags::empty())
                .map_err(io::Error::from)?;
        }
        Ok(())
    }

    fn set_time(&self, path: &Path, time: Time) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let fd = match self.root.open_at(path, flags) {
            // A later entry is in its place.
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            fd => fd?,
        };
        if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode).is_dir() {
            set_time(&fd, Path::new(""), time, AtFlags::EMPTY_PATH)?;
        }
        Ok(())
    }
}

/// Sets the time of the last change of content; that of access stays.
pub(super) fn set_time(
    dir: &OwnedFd,
    name: &Path,
    time: Time,
    flags: AtFlags,
) -> Result<(), Errno> {
    let mut last_access = time.timespec();
    last_access.tv_nsec = UTIME_OMIT;
    let times = Timestamps {
        last_access,
        last_modification: time.timespec(),
    };
    utimensat(dir, name, &times, flags)
}
