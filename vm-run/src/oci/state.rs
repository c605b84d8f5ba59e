//! What is known of containers: a directory for each, below the root that `--root` names,
//! with `state.json` and the control socket of its keeper.
//!
//! The keeper writes the state; whether it lives decides what of it still holds. So
//! whoever reads is right also about a keeper that was killed.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nacre_pod::hooks::HostHooks;
use nacre_pod::spec::OCI_VERSION;
use oci_spec::runtime::Hooks;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, RenameFlags, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::error::OciError;
use super::life::Life;

const STATE: &str = "state.json";
const CONTROL: &str = "control";

/// A container's status (runtime-spec, "State"; `paused` as in runc).
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// `state.json`, as its keeper left it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Record {
    pub(crate) id: String,
    pub(crate) status: Status,
    /// The keeper.
    pub(crate) keeper: Life,
    pub(crate) bundle: PathBuf,
    #[serde(default)]
    pub(crate) rootfs: PathBuf,
    /// RFC 3339.
    pub(crate) created: String,
    #[serde(default)]
    pub(crate) annotations: BTreeMap<String, String>,
    /// `linux.cgroupsPath`, to be removed with the container.
    #[serde(default)]
    pub(crate) cgroup: Option<PathBuf>,
    #[serde(default)]
    pub(crate) hooks: Hooks,
}

impl Record {
    /// The status now: without its keeper, a container has stopped.
    pub(crate) fn status(&self) -> Status {
        if self.keeper.is_over() {
            Status::Stopped
        } else {
            self.status
        }
    }

    /// The hooks that run on the host.
    pub(crate) fn host_hooks(&self) -> HostHooks {
        HostHooks::new(
            self.hooks.clone(),
            &self.id,
            self.keeper.pid(),
            &self.bundle,
            self.annotations.clone(),
        )
    }

    /// The state as the specification has it, with runc's additions.
    pub(crate) fn report(&self, owner: &str) -> Report {
        let status = self.status();
        Report {
            oci_version: OCI_VERSION,
            id: self.id.clone(),
            pid: match status {
                Status::Stopped => 0,
                _ => self.keeper.pid(),
            },
            status,
            bundle: self.bundle.clone(),
            rootfs: self.rootfs.clone(),
            created: self.created.clone(),
            annotations: self.annotations.clone(),
            owner: owner.to_owned(),
        }
    }
}

/// What `state` prints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    oci_version: &'static str,
    pub(crate) id: String,
    pub(crate) pid: u32,
    pub(crate) status: Status,
    pub(crate) bundle: PathBuf,
    rootfs: PathBuf,
    pub(crate) created: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    pub(crate) owner: String,
}

/// The directory of all containers.
#[derive(Clone, Debug)]
pub(crate) struct Root(PathBuf);

/// The directory of one container, open.
#[derive(Debug)]
pub(crate) struct Home {
    root: File,
    dir: File,
    name: String,
}

impl Root {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Opens the directory of a container.
    pub(crate) fn open(&self, id: &str) -> Result<Home, OciError> {
        check_id(id)?;
        let opened = File::open(&self.0).and_then(|root| {
            let dir = open_dir(&root, id)?;
            Ok(Home {
                root,
                dir,
                name: id.to_owned(),
            })
        });
        opened.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => OciError::Missing,
            _ => self.failed(error),
        })
    }

    /// Makes the directory of a new container with its first state, both at once.
    pub(crate) fn reserve(&self, record: &Record) -> Result<Home, OciError> {
        check_id(&record.id)?;
        let reserved = self.try_reserve(record);
        reserved.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => OciError::Exists,
            _ => self.failed(error),
        })
    }

    fn try_reserve(&self, record: &Record) -> io::Result<Home> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(&self.0)?;
        let root = File::open(&self.0)?;
        // No identifier begins with a dot.
        let draft = format!(".{}-{}", std::process::id(), record.id);
        rustix::fs::mkdirat(&root, &draft, Mode::RWXU)?;
        let named = open_dir(&root, &draft).and_then(|dir| {
            let mut home = Home {
                root: root.try_clone()?,
                dir,
                name: draft.clone(),
            };
            home.write(record)?;
            rename(&root, &draft, &record.id)?;
            record.id.clone_into(&mut home.name);
            Ok(home)
        });
        if named.is_err() {
            // Whatever it was, nobody has seen this directory.
            let _ = fs::remove_dir_all(self.0.join(&draft));
        }
        named
    }

    /// The states of all containers, by their identifiers.
    pub(crate) fn records(&self) -> Result<Vec<Record>, OciError> {
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(self.failed(error)),
        };
        let mut ids: Vec<_> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| check_id(name).is_ok())
            .collect();
        ids.sort();
        let mut records = Vec::new();
        for id in ids {
            match self.open(&id).and_then(|home| home.record()) {
                Ok(record) => records.push(record),
                // Deleted meanwhile.
                Err(OciError::Missing) => {}
                Err(error) => log::error!("load container {id}: {error}"),
            }
        }
        Ok(records)
    }

    /// Whose directory it is, as a number.
    pub(crate) fn owner(&self) -> Option<u32> {
        Some(fs::metadata(&self.0).ok()?.uid())
    }

    fn failed(&self, source: io::Error) -> OciError {
        OciError::system(self.0.display().to_string())(source)
    }
}

impl Home {
    /// The state that was written last.
    pub(crate) fn record(&self) -> Result<Record, OciError> {
        let file = rustix::fs::openat(
            &self.dir,
            STATE,
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let file = file.map_err(|errno| match errno {
            // Deleted since it was opened.
            Errno::NOENT => OciError::Missing,
            errno => self.failed(errno),
        })?;
        let reader = io::BufReader::new(File::from(file));
        serde_json::from_reader(reader).map_err(|error| self.failed(io::Error::from(error)))
    }

    /// Replaces the state; whoever reads sees the old one or the new one.
    pub(crate) fn write(&self, record: &Record) -> io::Result<()> {
        const DRAFT: &str = ".state.json";
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.dir, DRAFT, flags, Mode::RUSR | Mode::WUSR)?;
        File::from(file).write_all(&serde_json::to_vec(record)?)?;
        rustix::fs::renameat(&self.dir, DRAFT, &self.dir, STATE)?;
        Ok(())
    }

    /// Listens on the control socket.
    pub(crate) fn listen(&self) -> io::Result<UnixListener> {
        UnixListener::bind(self.control())
    }

    /// Connects to the keeper.
    pub(crate) fn connect(&self) -> io::Result<UnixStream> {
        UnixStream::connect(self.control())
    }

    /// By descriptor: a path of any length fits into an address then.
    fn control(&self) -> PathBuf {
        format!("/proc/self/fd/{}/{CONTROL}", self.dir.as_raw_fd()).into()
    }

    /// Waits until nobody else deletes the container, and holds others off.
    pub(crate) fn lock(&self) -> Result<(), OciError> {
        rustix::io::retry_on_intr(|| flock(&self.dir, FlockOperation::LockExclusive))
            .map_err(|errno| self.failed(errno))?;
        let is_there = self.dir.metadata().is_ok_and(|stat| stat.nlink() > 0);
        is_there.then_some(()).ok_or(OciError::Missing)
    }

    /// Removes all that is known of the container.
    pub(crate) fn remove(&self) -> io::Result<()> {
        for file in [CONTROL, ".state.json", STATE] {
            ignore_missing(rustix::fs::unlinkat(&self.dir, file, AtFlags::empty()))?;
        }
        // The name may be another container's by now.
        let same = open_dir(&self.root, &self.name).and_then(|named| {
            let (named, ours) = (named.metadata()?, self.dir.metadata()?);
            Ok((named.dev(), named.ino()) == (ours.dev(), ours.ino()))
        });
        if !same.unwrap_or(false) {
            return Ok(());
        }
        let removed = rustix::fs::unlinkat(&self.root, self.name.as_str(), AtFlags::REMOVEDIR);
        ignore_missing(removed)
    }

    fn failed<E: Into<io::Error>>(&self, source: E) -> OciError {
        OciError::system(format!("state of container {}", self.name))(source)
    }
}

fn ignore_missing(result: Result<(), Errno>) -> io::Result<()> {
    match result {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn open_dir(root: &File, name: &str) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(root.as_fd(), name, flags, Mode::empty())?;
    Ok(dir.into())
}

fn rename(root: &File, from: &str, to: &str) -> io::Result<()> {
    let flags = RenameFlags::NOREPLACE;
    Ok(rustix::fs::renameat_with(root, from, root, to, flags)?)
}

/// Identifiers as the agent takes them; they become names of directories.
pub(crate) fn check_id(id: &str) -> Result<(), OciError> {
    crate::cli::container_id(id)
        .map(drop)
        .map_err(|_| OciError::Id)
}

/// Where containers are known from when nobody says otherwise.
pub(crate) fn default_root() -> &'static Path {
    Path::new("/run/vm-run")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str) -> Record {
        Record {
            id: id.to_owned(),
            status: Status::Created,
            keeper: Life::own().unwrap(),
            bundle: "/b".into(),
            rootfs: "/b/rootfs".into(),
            created: "2026-01-01T00:00:00.000000000Z".to_owned(),
            annotations: BTreeMap::new(),
            cgroup: None,
            hooks: Hooks::default(),
        }
    }

    fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path().join("a").join("b".repeat(150)));
        (dir, root)
    }

    #[test]
    fn an_identifier_is_given_once_until_it_is_deleted() {
        let (_dir, root) = root();
        assert!(matches!(root.open("x"), Err(OciError::Missing)));
        assert!(root.records().unwrap().is_empty());
        let home = root.reserve(&record("x")).unwrap();
        assert!(matches!(root.reserve(&record("x")), Err(OciError::Exists)));
        assert_eq!(root.records().unwrap().len(), 1);
        let names: Vec<_> = fs::read_dir(&root.0).unwrap().collect();
        assert_eq!(names.len(), 1, "{names:?}");
        home.remove().unwrap();
        home.remove().unwrap();
        assert!(matches!(home.record(), Err(OciError::Missing)));
        assert!(matches!(home.lock(), Err(OciError::Missing)));
        root.reserve(&record("x")).unwrap();
        // The one that was deleted is not the one that has its name now.
        home.remove().unwrap();
        root.open("x").unwrap().record().unwrap();
    }

    #[test]
    fn a_socket_is_reached_under_a_path_that_no_address_can_hold() {
        let (_dir, root) = root();
        let home = root.reserve(&record("x")).unwrap();
        let listener = home.listen().unwrap();
        let _connection = root.open("x").unwrap().connect().unwrap();
        listener.accept().unwrap();
    }

    #[test]
    fn a_container_without_its_keeper_has_stopped() {
        let mut alive = record("x");
        assert_eq!(alive.status(), Status::Created);
        assert_eq!(alive.report("").pid, std::process::id());
        alive.keeper = Life::of_dead();
        assert_eq!(alive.status(), Status::Stopped);
        assert_eq!(alive.report("").pid, 0);
    }

    #[test]
    fn the_state_is_written_as_engines_read_it() {
        let mut record = record("x");
        let text = serde_json::to_value(record.report("")).unwrap();
        let expected = serde_json::json!({
            "ociVersion": "1.2.0", "id": "x", "pid": std::process::id(), "status": "created",
            "bundle": "/b", "rootfs": "/b/rootfs",
            "created": "2026-01-01T00:00:00.000000000Z", "owner": ""
        });
        assert_eq!(text, expected);
        record.annotations.insert("a".into(), "b".into());
        let text = serde_json::to_value(record.report("")).unwrap();
        assert_eq!(text["annotations"]["a"], "b");
    }

    #[test]
    fn identifiers_are_names_of_directories() {
        for id in ["", ".", "..", ".x", "a/b", "a b", "ä", &"x".repeat(129)] {
            assert!(matches!(check_id(id), Err(OciError::Id)), "{id}");
        }
        check_id("a-b_C.9").unwrap();
    }
}
