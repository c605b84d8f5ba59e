//! A containerd for tests, apart from any other: its own root, state, socket,
//! images, network and runtimes.

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::registry::Registry;
use crate::{Running, count, image, patience, running, sh};

/// Namespace in which the tests call containerd; pods are in [`PODS`].
pub const NAMESPACE: &str = "nacre-test";

/// Namespace of containerd's CRI service.
pub const PODS: &str = "k8s.io";

/// Which containerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// 1.7, of Debian trixie.
    One,
    /// 2.x, of Debian sid.
    Two,
}

impl Version {
    /// Where its programs are.
    fn programs(self) -> &'static Path {
        Path::new(match self {
            Self::One => "/usr/bin",
            Self::Two => "/opt/containerd-2/bin",
        })
    }

    fn number(self) -> u8 {
        match self {
            Self::One => 1,
            Self::Two => 2,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "containerd{}", self.number())
    }
}

/// What a test runs containers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// runc, which shows that a test asks for nothing but what is usual.
    Runc,
    /// Nacre; its pods have a pause container.
    Nacre,
    /// Nacre, with pods through the Sandbox API of its shim.
    NacreSandbox,
}

impl Runtime {
    /// What containerd calls its shim by.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Runc => "io.containerd.runc.v2",
            Self::Nacre | Self::NacreSandbox => "io.containerd.nacre.v2",
        }
    }

    /// Its program, in the directory of containerd's or in `PATH`.
    #[must_use]
    pub fn shim(self) -> &'static str {
        match self {
            Self::Runc => "containerd-shim-runc-v2",
            Self::Nacre | Self::NacreSandbox => "containerd-shim-nacre-v2",
        }
    }

    /// Its name in the configuration of CRI.
    #[must_use]
    pub fn handler(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Nacre => "nacre",
            Self::NacreSandbox => "nacre-sandbox",
        }
    }

    /// Whether each pod has a kernel of its own.
    #[must_use]
    pub fn is_nacre(self) -> bool {
        self != Self::Runc
    }
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.handler())
    }
}

/// The directory of the shim's configuration.
const SHIM_CONFIG: &str = "/etc/nacre";

/// A containerd that runs. It goes when it is dropped, with all that it keeps.
#[derive(Debug)]
pub struct Containerd {
    version: Version,
    dir: TempDir,
    daemon: Mutex<Option<Child>>,
}

impl Containerd {
    /// Starts one that has the images of [`image`].
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn start(version: Version) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("nacre-containerd-")
            .tempdir_in("/var/lib")
            .expect("a directory for containerd");
        let containerd = Self {
            version,
            dir,
            daemon: Mutex::default(),
        };
        containerd.write_configuration();
        containerd.add_directories();
        containerd.add_bridge();
        containerd.launch();
        let archive = image::archive(containerd.dir.path());
        for namespace in [NAMESPACE, PODS] {
            let mut import = containerd.ctr_in(namespace);
            import.args(["images", "import"]).arg(&archive);
            let _ = Running::to_the_end(import).expect_code(0);
        }
        fs::remove_file(archive).unwrap();
        containerd
    }

    /// Which one it is.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// A directory that goes with it, for what a test keeps on a disk.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Lets it pull all images from a registry, whatever registry their names say.
    ///
    /// # Panics
    /// When that fails.
    pub fn pull_from(&self, registry: &Registry) {
        let every = self.dir.path().join("certs.d/_default");
        fs::create_dir_all(&every).unwrap();
        let server = format!("server = \"http://{}\"\n", registry.address());
        fs::write(every.join("hosts.toml"), server).unwrap();
    }

    /// Its socket; `.ttrpc` added is the one for events.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// A program that came with it, with its directory first in `PATH`.
    #[must_use]
    pub fn program(&self, name: &str) -> Command {
        let programs = self.version.programs();
        let rest = std::env::var("PATH").unwrap_or_default();
        let own = programs.join(name);
        let mut command = Command::new(if own.exists() { own } else { name.into() });
        command.env("PATH", format!("{}:{rest}", programs.display()));
        command.stdin(Stdio::null());
        command
    }

    /// `ctr` in the tests' namespace, without input.
    #[must_use]
    pub fn ctr(&self, words: &[&str]) -> Command {
        let mut command = self.ctr_in(NAMESPACE);
        command.args(words);
        command
    }

    fn ctr_in(&self, namespace: &str) -> Command {
        let mut command = self.program("ctr");
        command.arg("--address").arg(self.socket());
        command.args(["--namespace", namespace]);
        command
    }

    /// What its log says, to explain a failure.
    #[must_use]
    pub fn log(&self) -> String {
        let log = fs::read(self.dir.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Kills it, does something without it, and starts it again. What it ran goes on.
    pub fn away_for(&self, act: impl FnOnce()) {
        self.stop(Signal::KILL);
        act();
        self.launch();
    }

    /// Directories and files that it keeps for as long as there are containers.
    #[must_use]
    pub fn kept(&self) -> Vec<PathBuf> {
        let dir = self.dir.path();
        let mut kept: Vec<_> = [
            "root/io.containerd.runtime.v2.task",
            "state/io.containerd.runtime.v2.task",
            "root/io.containerd.grpc.v1.cri",
            "state/io.containerd.grpc.v1.cri",
            "state/io.containerd.sandbox.controller.v1.shim",
            "cni",
        ]
        .map(|name| dir.join(name))
        .into();
        kept.extend(
            [
                "/run/containerd/s",
                "/run/containerd/fifo",
                "/run/containerd/runc",
            ]
            .map(Into::into),
        );
        kept.push("/var/lib/cni".into());
        kept
    }

    /// Ends and removes all pods, tasks and containers, for the next test's sake.
    pub fn remove_everything(&self) {
        let socket = self.socket().display().to_string();
        let ctr = self.version.programs().join("ctr").display().to_string();
        // Whatever a step does not get done, the next one tries.
        let script = r#"
            socket=$1 ctr="timeout 20 $2 --address $1"
            timeout 60 crictl --config /dev/null --runtime-endpoint "unix://$socket" rmp --force --all
            for namespace in $3 $4; do
                for id in $($ctr --namespace $namespace tasks ls -q); do
                    $ctr --namespace $namespace tasks kill --signal 9 $id
                    $ctr --namespace $namespace tasks rm --force $id
                done
                for id in $($ctr --namespace $namespace containers ls -q); do
                    $ctr --namespace $namespace containers rm $id
                done
            done"#;
        let _ = Command::new("sh")
            .args(["-c", script, "sh", &socket, &ctr, PODS, NAMESPACE])
            .stdin(Stdio::null())
            .output();
    }

    fn daemon(&self) -> MutexGuard<'_, Option<Child>> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn launch(&self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("log"))
            .unwrap();
        let mut command = self.program("containerd");
        command
            .arg("--config")
            .arg(self.dir.path().join("config.toml"))
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        *self.daemon() = Some(command.spawn().expect("containerd of the test host"));
        let start = Instant::now();
        loop {
            if Running::to_the_end(self.ctr(&["version"])).code() == 0 {
                return;
            }
            let ended = self
                .daemon()
                .as_mut()
                .and_then(|child| child.try_wait().unwrap());
            assert!(
                ended.is_none() && start.elapsed() < patience(),
                "containerd does not come up ({ended:?}): {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn stop(&self, signal: Signal) {
        if let Some(mut daemon) = self.daemon().take() {
            running::kill(daemon.id(), signal);
            daemon.wait().unwrap();
        }
    }

    fn bridge(&self) -> String {
        format!("nacre-cni{}", self.version.number())
    }

    /// What the first container or pod would make and leave: directories of
    /// namespaces, of CRI and of CNI.
    fn add_directories(&self) {
        let dir = self.dir.path();
        for namespace in [NAMESPACE, PODS] {
            for parent in [
                &dir.join("root/io.containerd.runtime.v2.task"),
                &dir.join("state/io.containerd.runtime.v2.task"),
                &dir.join("state/io.containerd.sandbox.controller.v1.shim"),
                Path::new("/run/containerd/runc"),
                Path::new("/sys/fs/cgroup"),
            ] {
                fs::create_dir_all(parent.join(namespace)).unwrap();
            }
        }
        for kind in ["containers", "sandboxes"] {
            for parent in ["root", "state"] {
                let parent = dir.join(parent).join("io.containerd.grpc.v1.cri");
                fs::create_dir_all(parent.join(kind)).unwrap();
            }
        }
        fs::create_dir_all("/var/lib/cni/results").unwrap();
        let addresses = dir.join("cni").join(self.bridge());
        fs::create_dir_all(&addresses).unwrap();
        for file in ["last_reserved_ip.0", "lock"] {
            fs::write(addresses.join(file), "").unwrap();
        }
    }

    /// The bridge of the pods, which the plugin would make for the first of them
    /// and leave.
    fn add_bridge(&self) {
        sh(&format!(
            "ip link add {0} type bridge; ip link set {0} up",
            self.bridge()
        ));
    }

    fn write_configuration(&self) {
        let dir = self.dir.path();
        let plugins = dir.join("cni.d");
        fs::create_dir(&plugins).unwrap();
        let network = network(&self.bridge(), self.version.number(), &dir.join("cni"));
        fs::write(plugins.join("10-pods.conflist"), network).unwrap();
        let text = match self.version {
            Version::One => configuration_1(dir),
            Version::Two => configuration_2(dir),
        };
        fs::write(dir.join("config.toml"), text).unwrap();
        // An emulated host has other ideas of a slow boot.
        let shim = Path::new(SHIM_CONFIG);
        fs::create_dir_all(shim).unwrap();
        let timeout = format!("boot_timeout_secs = {}\n", count(120, 1200));
        fs::write(shim.join("nacre.toml"), timeout).unwrap();
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.remove_everything();
        self.stop(Signal::TERM);
        sh(&format!(
            "ip link del {}; rm -r {SHIM_CONFIG}",
            self.bridge()
        ));
    }
}

/// Configuration of the pods' network: a bridge, with addresses from a file.
fn network(bridge: &str, number: u8, addresses: &Path) -> String {
    serde_json::json!({
        "cniVersion": "1.0.0",
        "name": bridge,
        "plugins": [
            {
                "type": "bridge", "bridge": bridge, "isGateway": true, "ipMasq": false,
                "ipam": {
                    "type": "host-local", "dataDir": addresses,
                    "ranges": [[{ "subnet": format!("10.88.{number}.0/24") }]],
                    "routes": [{ "dst": "0.0.0.0/0" }]
                }
            },
            { "type": "portmap", "capabilities": { "portMappings": true } }
        ]
    })
    .to_string()
}

fn common(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        r#"root = "{dir}/root"
state = "{dir}/state"
# Its directory would be outside of these.
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
address = "{dir}/socket"
[ttrpc]
address = "{dir}/socket.ttrpc"
[debug]
# With "debug" guests print every line of their boot, and now and then an emulated host loses one
# of those many exits.
level = "info"
# One socket for the whole host.
[plugins."io.containerd.nri.v1.nri"]
disable = true
"#
    )
}

fn configuration_1(dir: &Path) -> String {
    let (pause, common, dir) = (image::PAUSE, common(dir), dir.display());
    format!(
        r#"version = 2
{common}
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{dir}/certs.d"
[plugins."io.containerd.grpc.v1.cri".cni]
conf_dir = "{dir}/cni.d"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nacre]
runtime_type = "io.containerd.nacre.v2"
pod_annotations = ["io.nacre.*"]
"#
    )
}

fn configuration_2(dir: &Path) -> String {
    let (pause, common, dir) = (image::PAUSE, common(dir), dir.display());
    format!(
        r#"version = 3
{common}
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{pause}"
[plugins."io.containerd.cri.v1.images".registry]
config_path = "{dir}/certs.d"
[plugins."io.containerd.cri.v1.runtime".cni]
conf_dir = "{dir}/cni.d"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.nacre]
runtime_type = "io.containerd.nacre.v2"
pod_annotations = ["io.nacre.*"]
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.nacre-sandbox]
runtime_type = "io.containerd.nacre.v2"
sandboxer = "shim"
"#
    )
}
