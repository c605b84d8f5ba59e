use std::collections::VecDeque;
use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tempfile::TempDir;

use super::*;

/// A volume as the kubelet makes it, and the copy.
struct Scene {
    dir: TempDir,
}

impl Scene {
    fn new() -> Self {
        let scene = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        fs::create_dir(scene.volume()).unwrap();
        fs::create_dir(scene.copy()).unwrap();
        scene
    }

    fn volume(&self) -> PathBuf {
        self.dir.path().join("volume")
    }

    fn copy(&self) -> PathBuf {
        self.dir.path().join("copy")
    }

    /// The kubelet's steps.
    fn write(&self, generation: &str, files: &[(&str, &str)]) {
        let volume = self.volume();
        let before = fs::read_link(volume.join(DATA)).ok();
        fs::create_dir(volume.join(generation)).unwrap();
        for (name, text) in files {
            let path = volume.join(generation).join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        symlink(generation, volume.join(NEW_DATA)).unwrap();
        fs::rename(volume.join(NEW_DATA), volume.join(DATA)).unwrap();
        let tops: Vec<&str> = files
            .iter()
            .filter_map(|(name, _)| name.split('/').next())
            .collect();
        for top in &tops {
            if volume.join(top).symlink_metadata().is_err() {
                symlink(format!("{DATA}/{top}"), volume.join(top)).unwrap();
            }
        }
        for name in names_of(&volume).unwrap() {
            if !is_hidden(&name) && !tops.iter().any(|top| name == *top) {
                fs::remove_file(volume.join(name)).unwrap();
            }
        }
        if let Some(before) = before {
            fs::remove_dir_all(volume.join(before)).unwrap();
        }
    }

    fn renew_to(&self, current: Option<&str>) -> Result<(), RenewError> {
        let source = File::open(self.volume()).unwrap();
        renew(&source, &self.copy(), current.map(OsStr::new))
    }

    fn renew(&self) -> Result<(), RenewError> {
        self.renew_to(None)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.copy().join(name)).unwrap()
    }
}

/// All below a directory, with type, mode, owner and content.
fn listing(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut dirs = VecDeque::from([dir.to_owned()]);
    while let Some(next) = dirs.pop_front() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let meta = path.symlink_metadata().unwrap();
            let content = if meta.is_dir() {
                dirs.push_back(path.clone());
                Vec::new()
            } else if meta.is_symlink() {
                fs::read_link(&path).unwrap().into_os_string().into_vec()
            } else if meta.is_file() {
                fs::read(&path).unwrap()
            } else {
                Vec::new()
            };
            let name = path.strip_prefix(dir).unwrap();
            let (mode, owner) = (meta.mode(), (meta.uid(), meta.gid()));
            lines.push(format!("{name:?} {mode:o} {owner:?} {content:?}"));
        }
    }
    lines.sort();
    lines
}

fn watch(dir: &Path) -> OwnedFd {
    let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).unwrap();
    let events = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVE;
    inotify::add_watch(&watch, dir, events).unwrap();
    watch
}

fn events(watch: &OwnedFd) -> Vec<String> {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(watch, &mut buffer);
    let mut events = Vec::new();
    while let Ok(event) = reader.next() {
        let name = event.file_name().map(CStr::to_string_lossy);
        let flags: Vec<_> = event.events().iter_names().map(|(name, _)| name).collect();
        assert_ne!(event.events(), ReadFlags::QUEUE_OVERFLOW);
        events.push(format!("{} {}", flags.join("|"), name.unwrap_or_default()));
    }
    events
}

#[test]
fn a_copy_is_the_volume() {
    let scene = Scene::new();
    scene.write("..1", &[("key", "text"), ("deep/er/leaf", "leaf")]);
    let secret = scene.volume().join("..1/key");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o440)).unwrap();
    let setgid = fs::Permissions::from_mode(0o2775);
    fs::set_permissions(scene.volume().join("..1"), setgid.clone()).unwrap();
    fs::set_permissions(scene.volume(), setgid).unwrap();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&secret, Some(0), Some(2000)).unwrap();
        std::os::unix::fs::lchown(scene.volume().join(DATA), Some(7), Some(2000)).unwrap();
        std::os::unix::fs::chown(scene.volume(), Some(0), Some(2000)).unwrap();
        fs::set_permissions(scene.volume(), fs::Permissions::from_mode(0o2775)).unwrap();
    }
    scene.renew().unwrap();
    assert_eq!(listing(&scene.copy()), listing(&scene.volume()));
    assert_eq!(scene.text("key"), "text");
    assert_eq!(scene.text("deep/er/leaf"), "leaf");
    let (top, copied) = (fs::metadata(scene.volume()), fs::metadata(scene.copy()));
    let (top, copied) = (top.unwrap(), copied.unwrap());
    assert_eq!(
        (copied.mode(), copied.uid(), copied.gid()),
        (top.mode(), top.uid(), top.gid())
    );
}

#[test]
fn inotify_tells_of_the_kubelets_steps() {
    let scene = Scene::new();
    scene.write("..1", &[("stays", "old"), ("goes", "old")]);
    scene.renew().unwrap();
    let (volume, copy) = (watch(&scene.volume()), watch(&scene.copy()));
    scene.write("..2", &[("stays", "new"), ("comes", "new")]);
    scene.renew_to(Some("..2")).unwrap();
    let copied = events(&copy);
    assert_eq!(copied, events(&volume));
    let steps = [
        "CREATE|ISDIR ..2",
        "CREATE ..data_tmp",
        "MOVED_FROM ..data_tmp",
        "MOVED_TO ..data",
        "CREATE comes",
        "DELETE goes",
        "DELETE|ISDIR ..1",
    ];
    assert_eq!(copied, steps);
    assert_eq!(listing(&scene.copy()), listing(&scene.volume()));

    scene.renew().unwrap();
    assert_eq!(events(&copy), Vec::<String>::new(), "nothing has changed");
}

#[test]
fn a_copy_catches_up_with_updates_that_it_has_missed() {
    let scene = Scene::new();
    for number in 0..20 {
        scene.write(&format!("..{number}"), &[("key", &number.to_string())]);
        if number % 7 == 0 {
            scene.renew().unwrap();
        }
    }
    scene.renew().unwrap();
    assert_eq!(scene.text("key"), "19");
    assert_eq!(listing(&scene.copy()), listing(&scene.volume()));
}

#[test]
fn what_the_kubelet_has_already_removed_leaves_the_copy_as_it_is() {
    let scene = Scene::new();
    scene.write("..1", &[("key", "old")]);
    scene.renew().unwrap();
    let before = listing(&scene.copy());
    scene.write("..3", &[("key", "new")]);
    let error = scene.renew_to(Some("..2")).unwrap_err();
    let error = error.of(Path::new("/x"));
    assert!(matches!(error, Error::FailedPrecondition(_)), "{error}");
    assert_eq!(listing(&scene.copy()), before);
    scene.renew_to(Some("..3")).unwrap();
    assert_eq!(scene.text("key"), "new");
}

#[test]
fn a_copy_that_cannot_be_finished_leaves_nothing() {
    let scene = Scene::new();
    scene.write("..1", &[("key", "old")]);
    scene.renew().unwrap();
    let before = listing(&scene.copy());
    let deep = "d/".repeat(MAX_DEPTH + 1) + "leaf";
    scene.write("..2", &[("key", "new"), (&deep, "leaf")]);
    let error = scene.renew().unwrap_err();
    assert!(error.to_string().starts_with("..2: d: "), "{error}");
    assert_eq!(listing(&scene.copy()), before);
}

#[test]
fn directories_that_lead_elsewhere_are_refused() {
    for current in ["..", ".", "key", "../x", "/etc", "..1/sub", "..data", ""] {
        let scene = Scene::new();
        scene.write("..1", &[("key", "text"), ("sub/key", "text")]);
        let error = scene.renew_to(Some(current)).unwrap_err();
        assert!(matches!(error, RenewError::Layout(_)), "{current}: {error}");
        assert_eq!(listing(&scene.copy()), Vec::<String>::new());
    }
    let scene = Scene::new();
    scene.write("..1", &[("key", "text")]);
    symlink("/etc", scene.volume().join("..2")).unwrap();
    scene.renew_to(Some("..2")).unwrap();
    // A link stays one: it leads to the container's own files.
    let copied = scene.copy().join("..2").symlink_metadata().unwrap();
    assert!(copied.is_symlink());
}

#[test]
fn files_at_the_top_are_not_the_kubelets() {
    let scene = Scene::new();
    scene.write("..1", &[("key", "text")]);
    fs::write(scene.volume().join("file"), "").unwrap();
    let error = scene.renew().unwrap_err();
    assert!(matches!(error, RenewError::Layout(_)), "{error}");
    let error = error.of(Path::new("/x"));
    assert!(matches!(error, Error::FailedPrecondition(_)), "{error}");
}

#[test]
fn odd_content_is_copied_and_not_followed() {
    let scene = Scene::new();
    let odd = OsStr::from_bytes(b"odd \xff\n");
    scene.write("..1", &[("key", "text")]);
    let content = scene.volume().join("..1");
    symlink("/etc/shadow", content.join("out")).unwrap();
    symlink("../../../..", content.join("up")).unwrap();
    fs::write(content.join(odd), "odd").unwrap();
    symlink(Path::new(DATA).join(odd), scene.volume().join(odd)).unwrap();
    let mode = Mode::from_raw_mode(0o600);
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, content.join("fifo"), fifo, mode, 0).unwrap();
    scene.renew().unwrap();
    assert_eq!(listing(&scene.copy()), listing(&scene.volume()));
    assert_eq!(fs::read(scene.copy().join(odd)).unwrap(), b"odd");
}

#[test]
fn links_that_a_container_has_planted_in_the_copy_lead_nowhere() {
    let scene = Scene::new();
    scene.write("..1", &[("key", "old")]);
    scene.renew().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    fs::write(elsewhere.path().join("file"), "mine").unwrap();
    for name in ["..2", NEW_DATA, "..old"] {
        symlink(elsewhere.path(), scene.copy().join(name)).unwrap();
    }
    fs::create_dir(scene.copy().join("comes")).unwrap();
    fs::write(scene.copy().join("comes/file"), "planted").unwrap();
    scene.write("..2", &[("key", "new"), ("comes", "new")]);
    scene.renew().unwrap();
    assert_eq!(listing(&scene.copy()), listing(&scene.volume()));
    assert_eq!(listing(elsewhere.path()).len(), 1);
    assert_eq!(
        fs::read_to_string(elsewhere.path().join("file")).unwrap(),
        "mine"
    );
}
