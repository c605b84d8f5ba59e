//! The DaemonSet's script: it makes a node one that runs pods in Nacre, changes nothing when it
//! is run again, and takes all of it away.

use std::fs;
use std::path::{Path, PathBuf};

use nacre_tests::containerd::Version;
use nacre_tests::crictl::{Pids, Pod};
use nacre_tests::ctr::new_id;
use nacre_tests::{Containerd, Ended, Running, Runtime, image, sh};

use crate::setting::{NACRE, Setting, Test};

pub(crate) const TESTS: &[Test] = &[Test {
    name: "a_node_is_installed_by_its_daemon_set_and_cleared_again",
    places: NACRE,
    check: installed_node,
}];

/// A node without Nacre: a containerd whose configuration says nothing of it. It is as before
/// when this is dropped.
struct Node<'a> {
    containerd: &'a Containerd,
    /// What a test of another kind needs.
    before: String,
    /// The package's files, and the script.
    files: PathBuf,
}

impl<'a> Node<'a> {
    fn new(containerd: &'a Containerd) -> Self {
        let files = containerd.dir().join("node");
        fs::create_dir(&files).unwrap();
        // Tests run at the root of the repository.
        sh(&format!(
            "dpkg-deb --extract target/nacre_{}_amd64.deb {1}/package
             cp deploy/kubernetes/nacre-node {1}
             mkdir /opt/nacre",
            env!("CARGO_PKG_VERSION"),
            files.display()
        ));
        let node = Self {
            containerd,
            before: fs::read_to_string(configuration(containerd)).unwrap(),
            files,
        };
        let bare = without_runtimes(&node.before);
        containerd.away_for(|| fs::write(configuration(containerd), bare).unwrap());
        node
    }

    /// Runs the script as the DaemonSet does, but for the line that restarts containerd.
    fn run(&self, verb: &str) -> Ended {
        let words = ["run", "--rm", "--runtime", Runtime::Runc.name()];
        let mut command = self.containerd.ctr(&words);
        command.args(["--privileged", "--with-ns", "pid:/proc/1/ns/pid"]);
        command.args([
            "--env",
            &format!("RESTART=touch {}", self.restarted().display()),
        ]);
        let own = self.containerd.dir();
        for (source, destination) in [
            (self.files.join("package").as_path(), "/package"),
            (self.files.as_path(), "/script"),
            (Path::new("/opt/nacre"), "/host/opt/nacre"),
            (Path::new("/etc/nacre"), "/host/etc/nacre"),
            (own, "/host/etc/containerd"),
        ] {
            let source = source.display();
            command.arg("--mount").arg(format!(
                "type=bind,src={source},dst={destination},options=rbind:rw"
            ));
        }
        command.args([image::BUSYBOX, &new_id(), "/script/nacre-node", verb]);
        Running::to_the_end(command).expect_code(0)
    }

    fn restarted(&self) -> PathBuf {
        self.files.join("restarted")
    }

    /// Whether the script asked for containerd's restart, which then takes place.
    fn restarts(&self) -> bool {
        let asked = fs::remove_file(self.restarted()).is_ok();
        if asked {
            self.containerd.away_for(|| ());
        }
        asked
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        let path = configuration(self.containerd);
        self.containerd
            .away_for(|| fs::write(path, &self.before).unwrap());
        sh(&format!("rm -r {} /opt/nacre", self.files.display()));
    }
}

fn configuration(containerd: &Containerd) -> PathBuf {
    containerd.dir().join("config.toml")
}

/// A configuration without the tables of runtimes: runc is the one that there is then.
fn without_runtimes(text: &str) -> String {
    let mut ours = false;
    let kept = text.lines().filter(|line| {
        if line.starts_with('[') {
            ours = line.contains("containerd.runtimes.");
        }
        !ours
    });
    kept.map(|line| format!("{line}\n")).collect()
}

/// Whatever a second run could change.
fn state(containerd: &Containerd) -> String {
    sh(&format!(
        "find /opt/nacre /etc/nacre {} -printf '%p %i %T@ %s %m\\n' | sort",
        configuration(containerd).display()
    ))
}

fn installed_node(setting: &mut Setting) {
    let containerd = setting.containerd;
    let node = Node::new(containerd);
    let bare = fs::read_to_string(configuration(containerd)).unwrap();
    let own = fs::read_to_string("/etc/nacre/nacre.toml").unwrap();
    let said = node.run("install").text();
    assert!(node.restarts(), "{said}");
    let written = fs::read_to_string(configuration(containerd)).unwrap();
    let rest = written.strip_prefix(&bare).expect("what was there before");
    let is_sandboxed = rest.contains("sandboxer");
    assert_eq!(is_sandboxed, containerd.version() == Version::Two, "{rest}");
    let names_runc = rest.contains("runtimes.runc]");
    assert_eq!(names_runc, containerd.version() == Version::One, "{rest}");
    assert_eq!(fs::read_to_string("/etc/nacre/nacre.toml").unwrap(), own);

    let pod = Pod::run(containerd, Runtime::Nacre, Pids::Private);
    let container = pod.start("exec sleep 1000", Pids::Private);
    let release = container.sh("uname -r");
    assert!(release.ends_with("-nacre"), "{release}");
    let shim = nacre_tests::proc::named("containerd-shim");
    assert_eq!(shim.len(), 1, "{shim:?}");
    let program = fs::read_link(format!("/proc/{}/exe", shim[0])).unwrap();
    assert_eq!(
        program,
        Path::new("/opt/nacre/bin/containerd-shim-nacre-v2")
    );
    pod.remove();

    let before = state(containerd);
    let said = node.run("install").text();
    assert!(!node.restarts(), "{said}");
    assert_eq!(state(containerd), before);

    let said = node.run("remove").text();
    assert!(node.restarts(), "{said}");
    assert_eq!(fs::read_to_string(configuration(containerd)).unwrap(), bare);
    assert_eq!(sh("ls /opt/nacre"), "");
    assert_eq!(fs::read_to_string("/etc/nacre/nacre.toml").unwrap(), own);
}
