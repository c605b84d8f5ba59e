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

#[test]
fn the_share_is_empty_read_only_and_seen_by_nobody_else() {
    in_private_mounts(|mounts, _| {
        let share = mount_at(mounts.share_path());
        assert!(share.starts_with("ro,nosuid,nodev,noexec"), "{share}");
        assert!(share.contains("shared:"), "{share}");
        assert_eq!(fs::read_dir(mounts.share_path()).unwrap().count(), 0);
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
        let root = Source::open(&path("root"), true, false).unwrap();
        let data = Source::open(&path("data"), false, true).unwrap();
        let file = Source::open(&path("data/file"), false, false).unwrap();
        mounts
            .share()
            .add("web", &root, [(2, &data), (5, &file)])
            .unwrap();

        let share = mounts.share_path().join("web");
        fs::write(share.join("rootfs/etc/motd"), "hello").unwrap();
        assert_eq!(fs::read_to_string(path("root/etc/motd")).unwrap(), "hello");
        assert_eq!(
            fs::read_to_string(share.join("mounts/2/secret")).unwrap(),
            "beside it"
        );
        assert!(
            fs::write(share.join("mounts/2/secret"), "x").is_err(),
            "read-only"
        );
        assert!(mount_at(&share.join("mounts/2")).starts_with("ro,nosuid,nodev,noexec"));
        assert!(mount_at(&share.join("rootfs")).starts_with("rw,nosuid,nodev,noexec"));
        fs::write(share.join("mounts/5"), "written").unwrap();
        assert_eq!(fs::read_to_string(path("data/file")).unwrap(), "written");
        let names: Vec<_> = fs::read_dir(share.join("mounts"))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(names.len(), 2, "{names:?}");

        mounts.share().remove("web");
        assert_eq!(fs::read_dir(mounts.share_path()).unwrap().count(), 0);
        assert!(!table().contains("/web/"));
        assert!(path("data/secret").exists());
    });
}

#[test]
fn a_container_whose_name_is_taken_changes_nothing() {
    in_private_mounts(|mounts, dir| {
        let root = Source::open(dir.path(), false, false).unwrap();
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
        let opened = Source::open(&source, true, true).unwrap();
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
        let root = Source::open(dir.path(), false, true).unwrap();
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
