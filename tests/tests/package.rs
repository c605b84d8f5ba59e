//! The Debian package: that a machine which installs it can run pods, and is as before when it
//! has gone.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::Command;

use nacre_tests::containerd::Version;
use nacre_tests::{Clean, Containerd, Running, TestBundle, image, sh};

const CONFIGURATION: &str = "/etc/nacre/nacre.toml";

/// Installed, and purged when it is dropped.
struct Installed;

impl Installed {
    fn new() -> Self {
        // Tests run at the root of the repository.
        let package = format!("target/nacre_{}_amd64.deb", env!("CARGO_PKG_VERSION"));
        let installed = Self;
        // The test host leaves documentation out.
        sh(&format!(
            "dpkg --path-include '/usr/share/doc/*' --path-include '/usr/share/man/*' \
                 --install {package}"
        ));
        installed
    }

    /// A program of it, which finds its parts by itself.
    fn program(name: &str) -> Command {
        Command::new(Path::new("/usr/bin").join(name))
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        sh("dpkg --purge nacre");
    }
}

/// What has a name of Nacre's.
fn traces() -> String {
    sh("find /etc /opt /usr /var -xdev '(' -name '*nacre*' -o -name 'vm-run*' ')' | sort")
}

#[test]
fn an_installed_machine_runs_pods_and_a_purged_one_is_as_before() {
    let before = traces();
    let installed = Installed::new();
    assert_eq!(sh("dpkg --verify nacre"), "");

    let mut check = Installed::program("vm-run");
    check.args(["check", "--boot"]);
    let checked = Running::to_the_end(check).expect_code(0).text();
    assert!(
        checked.contains("/usr/bin/../lib/nacre/vmlinux") && checked.contains("boot: Linux 6."),
        "{checked}"
    );

    let bundle = TestBundle::sh("echo from the package");
    bundle.write();
    let clean = Clean::slate();
    let mut run = Installed::program("vm-run");
    run.arg("bundle").arg(bundle.path());
    let ended = Running::to_the_end(run).expect_code(0);
    assert_eq!(ended.text(), "from the package\n");

    drop(clean);

    runs_under_containerd();
    drop(installed);
    assert_eq!(traces(), before);
}

fn runs_under_containerd() {
    let containerd = Containerd::start(Version::One);
    let _clean = Clean::slate_and(containerd.kept());
    let shim = "/usr/bin/containerd-shim-nacre-v2";
    let words = ["run", "--rm", "--runtime", shim, image::BUSYBOX];
    let mut run = containerd.ctr(&words);
    run.args(["packaged", "uname", "-r"]);
    let release = Running::to_the_end(run).expect_code(0).text();
    assert!(release.trim_end().ends_with("-nacre"), "{release}");
}

#[test]
fn what_an_administrator_wrote_outlives_a_removal_and_not_a_purge() {
    let installed = Installed::new();
    fs::write(CONFIGURATION, "default_vcpus = 2\n").unwrap();
    sh("dpkg --remove nacre");
    let kept = fs::read_to_string(CONFIGURATION).unwrap();
    assert_eq!(kept, "default_vcpus = 2\n");
    assert!(!Path::new("/usr/bin/vm-run").exists());
    drop(installed);
    assert!(!Path::new(CONFIGURATION).exists());
}

#[test]
fn every_program_and_verb_has_its_manual_page() {
    let installed = Installed::new();
    let pages = sh("dpkg --listfiles nacre | sed -n 's,/usr/share/man/.*/\\(.*\\)\\.gz$,\\1,p'");
    let help = Running::to_the_end({
        let mut help = Installed::program("vm-run");
        help.arg("--help");
        help
    });
    let mut wanted = vec![
        "containerd-shim-nacre-v2.8".to_owned(),
        "nacre.toml.5".to_owned(),
        "vm-run.1".to_owned(),
    ];
    let text = help.text();
    // "Commands:", and a verb a line with what it does.
    let verbs = text.lines().skip_while(|line| *line != "Commands:").skip(1);
    let verbs = verbs.take_while(|line| !line.is_empty());
    wanted.extend(
        verbs
            .filter_map(|line| line.split_whitespace().next())
            .filter(|verb| *verb != "help")
            .map(|verb| format!("vm-run-{verb}.1")),
    );
    assert!(wanted.len() > 10, "{text}");
    for page in wanted {
        assert!(pages.lines().any(|other| other == page), "{page}: {pages}");
    }
    drop(installed);
}
