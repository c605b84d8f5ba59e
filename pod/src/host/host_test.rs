//! These tests need root, as the front door does: each makes its mounts on a
//! thread of its own, in a mount namespace that ends with it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::thread;

use rustix::process::geteuid;
use tempfile::TempDir;

use super::*;

/// Runs `test` in private mounts below a directory of its own; without root
/// there is nothing to test but the refusal.
fn in_private_mounts(test: impl FnOnce(&PrivateMounts, &TempDir) + Send + 'static) {
    let dir = tempfile::tempdir().unwrap();
    if !geteuid().is_root() {
        let run_dir = dir.path().join("run");
        let refused = thread::spawn(move || enter_below(&run_dir).map(drop))
            .join()
            .unwrap();
        assert!(matches!(refused, Err(HostError::Kernel { .. })));
        return;
    }
    let run_dir = dir.path().join("run");
    let result = thread::spawn(move || {
        let mounts = enter_below(&run_dir).unwrap();
        test(&mounts, &dir);
        // The mounts end with the thread; only then can the directory be removed.
        dir
    });
    let dir = result.join().unwrap();
    let outside = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(
        !outside.contains(dir.path().to_str().unwrap()),
        "a mount was left behind"
    );
    dir.close().unwrap();
}

fn table() -> String {
    fs::read_to_string("/proc/thread-self/mountinfo").unwrap()
}

/// Options and tags of the mount at `path`.
fn mount_at(path: &Path) -> String {
    let table = table();
    let path = path.to_str().unwrap();
    let line = table
        .lines()
        .rfind(|line| line.split(' ').nth(4) == Some(path));
    let line = line.unwrap_or_else(|| panic!("{path} is no mount"));
    line.split(' ').skip(5).collect::<Vec<_>>().join(" ")
}

fn names_in(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn the_share_is_empty_read_only_and_seen_by_nobody_else() {
    in_private_mounts(|mounts, _| {
        let share = mount_at(mounts.share_path());
        assert!(share.starts_with("ro,nosuid,nodev,noexec"), "{share}");
        assert!(share.contains("shared:"), "{share}");
        assert_eq!(names_in(mounts.share_path()), [".volumes"]);
        assert_eq!(names_in(&mounts.share_path().join(".volumes")), [""; 0]);
        assert_eq!(fs::read_dir(mounts.jail_path()).unwrap().count(), 0);
        assert!(fs::create_dir(mounts.share_path().join("x")).is_err());
        let run_dir = mounts.share_path().parent().unwrap();
        let outside = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!outside.contains(run_dir.to_str().unwrap()));
        assert_eq!(
            run_dir.metadata().unwrap().permissions().mode() & 0o777,
            0o700
        );
    });
}

#[test]
fn a_container_has_its_root_and_exactly_what_it_mounts() {
    in_private_mounts(|mounts, dir| {
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("root/etc")).unwrap();
        fs::create_dir(path("data")).unwrap();
        fs::write(path("data/secret"), "beside it").unwrap();
        fs::write(path("data/file"), "shared").unwrap();
        let root = Source::open(&path("root"), true, Access::ReadWrite).unwrap();
        let data = Source::open(&path("data"), false, Access::ReadOnly).unwrap();
        let file = Source::open(&path("data/file"), false, Access::ReadWrite).unwrap();
        mounts
            .share()
            .add("web", &root, [(2, &data), (5, &file)])
            .unwrap();

        let share = mounts.share_path().join("web");
        let volumes = mounts.share_path().join(".volumes");
        fs::write(share.join("rootfs/etc/motd"), "hello").unwrap();
        assert_eq!(fs::read_to_string(path("root/etc/motd")).unwrap(), "hello");
        assert_eq!(
            fs::read_to_string(volumes.join("0/secret")).unwrap(),
            "beside it"
        );
        assert!(
            fs::write(volumes.join("0/secret"), "x").is_err(),
            "read-only"
        );
        assert!(mount_at(&volumes.join("0")).starts_with("ro,nosuid,nodev,noexec"));
        assert!(mount_at(&share.join("rootfs")).starts_with("rw,nosuid,nodev,noexec"));
        fs::write(volumes.join("1"), "written").unwrap();
        assert_eq!(fs::read_to_string(path("data/file")).unwrap(), "written");
        assert_eq!(names_in(&volumes), ["0", "1"]);
        let place = Path::new(nacre_protocol::GUEST_SHARE).join(".volumes/1");
        assert_eq!(file.guest_path(), place);

        mounts.share().remove("web");
        assert_eq!(names_in(mounts.share_path()), [".volumes"]);
        assert_eq!(names_in(&volumes), [""; 0]);
        assert!(!table().contains("/web/"));
        assert!(!table().contains("/.volumes/"));
        assert!(path("data/secret").exists());
    });
}

/// Adds a container with `rootfs` and one mount; returns where that is, below the share.
fn add(mounts: &PrivateMounts, name: &str, rootfs: &Path, source: &Source) -> String {
    let root = Source::open(rootfs, true, Access::ReadWrite).unwrap();
    mounts.share().add(name, &root, [(0, source)]).unwrap();
    let path = source.guest_path();
    let below = path.strip_prefix(nacre_protocol::GUEST_SHARE).unwrap();
    below.to_str().unwrap().to_owned()
}

#[test]
fn containers_have_one_mount_of_a_source_until_the_last_goes() {
    in_private_mounts(|mounts, dir| {
        let (data, link) = (dir.path().join("data"), dir.path().join("link"));
        let (root, other) = (dir.path().join("root"), dir.path().join("other"));
        for dir in [&data, &root, &other] {
            fs::create_dir(dir).unwrap();
        }
        std::os::unix::fs::symlink("data", &link).unwrap();
        let open = |path: &Path, recursive, access| Source::open(path, recursive, access).unwrap();
        let place = |name: &str, source: Source| add(mounts, name, &root, &source);
        let write = Access::ReadWrite;
        assert_eq!(place("one", open(&data, true, write)), ".volumes/0");
        assert_eq!(place("two", open(&link, false, write)), ".volumes/0");
        // Who may not write is kept from it by the guest's kernel.
        assert_eq!(
            place("three", open(&data, true, Access::Below)),
            ".volumes/0"
        );
        assert_eq!(place("four", open(&other, true, write)), ".volumes/1");
        for gone in ["one", "two"] {
            mounts.share().remove(gone);
            assert!(mount_at(&mounts.share_path().join(".volumes/0")).starts_with("rw,"));
        }
        mounts.share().remove("three");
        assert_eq!(names_in(&mounts.share_path().join(".volumes")), ["1"]);
        // The guest may still remember the name.
        assert_eq!(place("five", open(&data, true, write)), ".volumes/2");
    });
}

#[test]
fn a_source_that_nobody_writes_is_read_only_for_the_monitor() {
    in_private_mounts(|mounts, dir| {
        let data = dir.path().join("data");
        fs::create_dir(&data).unwrap();
        let place = |name: &str, access| {
            let source = Source::open(&data, true, access).unwrap();
            let place = add(mounts, name, dir.path(), &source);
            let options = mount_at(&mounts.share_path().join(&place));
            (place, options[..3].to_owned())
        };
        let is = |number: u32, mode: &str| (format!(".volumes/{number}"), mode.to_owned());
        assert_eq!(place("one", Access::Below), is(0, "ro,"));
        assert_eq!(place("two", Access::Below), is(0, "ro,"));
        assert_eq!(place("writer", Access::ReadWrite), is(1, "rw,"));
        assert_eq!(place("late", Access::Below), is(1, "rw,"));
    });
}

fn mount_tmpfs(place: &Path, flags: rustix::mount::MountFlags) {
    fs::create_dir_all(place).unwrap();
    rustix::mount::mount("x", place, "tmpfs", flags, None).unwrap();
}

#[test]
fn what_is_mounted_below_comes_along_with_its_own_access() {
    in_private_mounts(|mounts, dir| {
        let data = dir.path().join("data");
        mount_tmpfs(&data.join("sub dir"), rustix::mount::MountFlags::NOEXEC);
        let mut places = Vec::new();
        for (name, recursive, access) in [
            ("below", true, Access::Below),
            ("none", true, Access::ReadOnly),
            ("top", false, Access::ReadWrite),
        ] {
            let source = Source::open(&data, recursive, access).unwrap();
            let place = mounts
                .share_path()
                .join(add(mounts, name, dir.path(), &source));
            let below = source.in_guest().below;
            if recursive {
                assert_eq!(below[0].path, b"sub dir");
                assert_eq!(below[0].options, ["noexec"]);
            } else {
                assert!(below.is_empty());
                assert_eq!(names_in(&place.join("sub dir")), [""; 0]);
            }
            places.push(place);
        }
        // The second may write less than the first, the third sees something else.
        assert_eq!(places[0], places[1]);
        assert_ne!(places[0], places[2]);
        fs::write(places[0].join("sub dir/file"), "").unwrap();
        assert!(fs::write(places[0].join("file"), "").is_err());

        let source = Source::open(&data, true, Access::ReadOnly).unwrap();
        for name in ["below", "none", "top"] {
            mounts.share().remove(name);
        }
        let place = mounts
            .share_path()
            .join(add(mounts, "again", dir.path(), &source));
        assert!(fs::write(place.join("sub dir/other"), "").is_err());
        mount_tmpfs(&data.join("another"), rustix::mount::MountFlags::empty());
        let source = Source::open(&data, true, Access::ReadOnly).unwrap();
        let other = mounts
            .share_path()
            .join(add(mounts, "late", dir.path(), &source));
        assert_ne!(place, other, "more is mounted below");
    });
}

#[test]
fn a_container_whose_name_is_taken_changes_nothing() {
    in_private_mounts(|mounts, dir| {
        let root = Source::open(dir.path(), false, Access::ReadWrite).unwrap();
        mounts.share().add("web", &root, []).unwrap();
        assert!(mounts.share().add("web", &root, []).is_err());
        assert!(
            mounts.share_path().join("web/rootfs").join("run").exists(),
            "the first one stays"
        );
    });
}

#[test]
fn mounts_made_later_at_the_source_do_not_follow() {
    in_private_mounts(|mounts, dir| {
        let source = dir.path().join("data");
        fs::create_dir_all(source.join("later")).unwrap();
        let opened = Source::open(&source, true, Access::ReadOnly).unwrap();
        mounts.share().add("web", &opened, []).unwrap();
        rustix::mount::mount(
            "x",
            source.join("later"),
            "tmpfs",
            rustix::mount::MountFlags::empty(),
            None,
        )
        .unwrap();
        assert!(!table().contains("/web/rootfs/later"));
    });
}

#[test]
fn a_monitor_sees_what_is_shared_after_its_start() {
    in_private_mounts(|mounts, dir| {
        fs::write(dir.path().join("file"), "seen").unwrap();
        let share_path = mounts.share_path().to_owned();
        let (started, wait_started) = std::sync::mpsc::channel();
        let (go_on, wait_go_on) = std::sync::mpsc::channel::<()>();
        // As the monitor's: a copy of the namespace whose mounts are downstream.
        let monitor = thread::spawn(move || {
            // SAFETY: a new mount namespace changes no descriptor and no memory.
            unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
            mount_change(
                "/",
                MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
            )
            .unwrap();
            started.send(()).unwrap();
            wait_go_on.recv().unwrap();
            fs::read_to_string(share_path.join("web/rootfs/file"))
        });
        wait_started.recv().unwrap();
        let root = Source::open(dir.path(), false, Access::ReadOnly).unwrap();
        mounts.share().add("web", &root, []).unwrap();
        go_on.send(()).unwrap();
        assert_eq!(monitor.join().unwrap().unwrap(), "seen");
    });
}

#[test]
fn a_run_directory_that_others_could_have_prepared_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run");
    std::os::unix::fs::symlink("/tmp", &path).unwrap();
    assert!(
        open_run_dir(&path)
            .unwrap_err()
            .to_string()
            .contains("is not a directory")
    );
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(
        open_run_dir(&path)
            .unwrap_err()
            .to_string()
            .contains("writable by others")
    );
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    open_run_dir(&path).unwrap();
}
