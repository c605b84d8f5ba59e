//! The guest of a test: the agent's service where its PID 1 would run it.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nacre_agent::transport::Listener;
use nacre_agent::{Serve, loopback_up, serve};
use nacre_protocol::GUEST_SHARE;
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{
    MountFlags, MountPropagationFlags, mount, mount_bind, mount_change, mount_remount, unmount,
};

/// First argument of the test program when it is to be a guest.
pub(crate) const ROLE: &str = "be-a-guest";

const CGROUPS: &str = "/sys/fs/cgroup";

/// Starts this program as a guest in `directory`, which holds the share.
pub(crate) fn command(directory: &Path) -> Command {
    let mut command = Command::new("unshare");
    command
        .args([
            "--pid",
            "--fork",
            "--kill-child",
            "--mount",
            "--net",
            "--uts",
            "--ipc",
        ])
        .arg(std::env::current_exe().expect("this program"))
        .arg(ROLE)
        .arg(directory);
    command
}

/// Serves as the guest until the host shuts it down.
pub(crate) fn run(directory: &OsStr) {
    let directory = PathBuf::from(directory);
    prepare(&directory);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        loopback_up().await.expect("lo");
        let listen = |name: &str| {
            let listener = tokio::net::UnixListener::bind(directory.join(name)).expect("a socket");
            Listener::Unix(listener)
        };
        let service = serve(Serve {
            streams: listen("streams.sock"),
            control: listen("control.sock"),
            binary: agent(),
        });
        let service = service.await.expect("the service");
        fs::write(directory.join("ready"), "").expect("the ready file");
        service.shut_down().await;
    });
}

/// The agent's program: `NACRE_AGENT` where the tests are not run where they
/// were built.
fn agent() -> PathBuf {
    let built = || PathBuf::from(env!("CARGO_BIN_EXE_nacre-agent"));
    std::env::var_os("NACRE_AGENT").map_or_else(built, PathBuf::from)
}

/// What the agent's boot does in a guest, as far as namespaces allow.
fn prepare(directory: &Path) {
    let everything = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", everything).expect("private mounts");
    mount("proc", "/proc", "proc", MountFlags::empty(), c"").expect("proc");
    mount("tmpfs", "/run", "tmpfs", MountFlags::empty(), c"").expect("run");
    mount("tmpfs", "/dev/shm", "tmpfs", MountFlags::empty(), c"").expect("shm");
    fs::create_dir_all(GUEST_SHARE).expect("the share");
    mount_bind(directory.join("share"), GUEST_SHARE).expect("the share");
    enter_cgroup(&directory.file_name().expect("a name").to_string_lossy());
}

/// Makes the cgroup of this guest the root of the hierarchy that it sees.
fn enter_cgroup(name: &str) {
    if !Path::new(CGROUPS).join("cgroup.procs").exists() {
        mount("cgroup2", CGROUPS, "cgroup2", MountFlags::empty(), c"").expect("cgroup v2");
    }
    allow_moves();
    enable_controllers(Path::new(CGROUPS));
    let root = Path::new(CGROUPS).join(name);
    fs::create_dir(&root).expect("a cgroup");
    fs::write(root.join("cgroup.procs"), "0").expect("to enter the cgroup");
    unshare(CloneFlags::CLONE_NEWCGROUP).expect("a cgroup namespace");
    unmount(CGROUPS, rustix::mount::UnmountFlags::DETACH).expect("to unmount cgroups");
    mount("cgroup2", CGROUPS, "cgroup2", MountFlags::empty(), c"").expect("cgroup v2");
    let root = Path::new(CGROUPS);
    for child in ["agent", "nacre"] {
        fs::create_dir(root.join(child)).expect("a cgroup");
    }
    // A cgroup with processes of its own cannot give controllers to others.
    fs::write(root.join("agent/cgroup.procs"), "0").expect("to enter the cgroup");
    enable_controllers(root);
    enable_controllers(&root.join("nacre"));
}

/// Takes the option away that a guest does not mount its hierarchy with: it keeps
/// a process of one cgroup namespace from making one in a cgroup of another.
fn allow_moves() {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    let options = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields[1] == CGROUPS && fields[2] == "cgroup2")
        .expect("cgroup v2")[3];
    if !options.contains("nsdelegate") {
        return;
    }
    let own = ["nsdelegate", "rw", "nosuid", "nodev", "noexec", "relatime"];
    let kept: Vec<_> = options.split(',').filter(|o| !own.contains(o)).collect();
    let kept = std::ffi::CString::new(kept.join(",")).expect("options");
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_remount(CGROUPS, flags, &kept).expect("to remount cgroups");
}

fn enable_controllers(cgroup: &Path) {
    let available = fs::read_to_string(cgroup.join("cgroup.controllers")).expect("controllers");
    for controller in available.split_whitespace() {
        // Some cannot be had on every host; the tests say which they need.
        let _ = fs::write(
            cgroup.join("cgroup.subtree_control"),
            format!("+{controller}"),
        );
    }
}
