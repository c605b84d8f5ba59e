//! CNI networks for tests, of the plugins that the distribution has.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::netns::Namespace;
use crate::{Ended, Running, TestBundle, VmRun, sh};

/// Plugins of the distribution.
const PLUGINS: &str = "/usr/lib/cni";

/// Address of the host towards [`Outside`].
pub const HOST: &str = "192.0.2.1";

/// Address of [`Outside`].
pub const OUTSIDE: &str = "192.0.2.2";

/// The bridge of [`slide`].
const BRIDGE: &str = "mynet0";

/// A directory of network configurations, which goes with it.
#[derive(Debug)]
pub struct Networks {
    dir: TempDir,
}

impl Default for Networks {
    fn default() -> Self {
        Self::new()
    }
}

impl Networks {
    /// Makes one without networks.
    ///
    /// # Panics
    /// When the plugins are not installed.
    #[must_use]
    pub fn new() -> Self {
        assert!(Path::new(PLUGINS).is_dir(), "the test host has them");
        let dir = tempfile::Builder::new().prefix("nacre-test-").tempdir();
        let dir = dir.expect("a directory for networks");
        fs::create_dir(dir.path().join("bin")).unwrap();
        Self { dir }
    }

    /// Adds a network with one plugin or with several; they come in the order of their names.
    #[must_use]
    pub fn with(self, config: &Value) -> Self {
        let name = config["name"].as_str().expect("a name");
        let kind = if config["plugins"].is_array() {
            "conflist"
        } else {
            "conf"
        };
        let text = serde_json::to_string_pretty(config).unwrap();
        fs::write(self.path(&format!("{name}.{kind}")), text).unwrap();
        self
    }

    /// Adds a plugin that is a shell script.
    #[must_use]
    pub fn with_plugin(self, name: &str, script: &str) -> Self {
        let path = self.path("bin").join(name);
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    /// A path in the directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The command line of `vm-run bundle` on these networks.
    #[must_use]
    pub fn command(&self, bundle: &TestBundle, options: &[&str]) -> Command {
        bundle.write();
        let mut command = VmRun::command(bundle.path(), options);
        self.tell(&mut command);
        command
    }

    /// Starts a bundle whose input stays open until the test ends it.
    #[must_use]
    pub fn start(&self, bundle: &TestBundle, options: &[&str]) -> VmRun {
        let mut command = self.command(bundle, options);
        command.stdin(Stdio::piped());
        VmRun::start_command(command)
    }

    /// Runs a bundle without input until it has ended.
    #[must_use]
    pub fn run(&self, bundle: &TestBundle, options: &[&str]) -> Ended {
        Running::to_the_end(self.command(bundle, options))
    }

    /// Runs `vm-run gc`.
    #[must_use]
    pub fn collect(&self) -> Ended {
        let mut command = Command::new("vm-run");
        command.arg("gc");
        self.tell(&mut command);
        Running::to_the_end(command)
    }

    fn tell(&self, command: &mut Command) {
        let own = self.path("bin");
        command
            .env("NETCONFPATH", self.dir.path())
            .env("CNI_PATH", format!("{}:{PLUGINS}", own.display()));
    }
}

/// The network that every introduction to CNI begins with.
#[must_use]
pub fn slide() -> Value {
    json!({
        "cniVersion": "0.3.1",
        "name": "mynet",
        "type": "bridge",
        "bridge": BRIDGE,
        "isDefaultGateway": true,
        "ipMasq": true,
        "hairpinMode": true,
        "ipam": { "type": "host-local", "subnet": "10.10.0.0/16" }
    })
}

/// The same as a list: with addresses to be wished for, published ports and a firewall.
#[must_use]
pub fn slide_and_more() -> Value {
    let mut bridge = slide();
    let plugin = bridge.as_object_mut().unwrap();
    plugin.remove("cniVersion");
    plugin.remove("name");
    plugin.insert("capabilities".into(), json!({ "ips": true, "mac": true }));
    json!({
        "cniVersion": "1.0.0",
        "name": "mynet",
        "plugins": [
            bridge,
            { "type": "portmap", "capabilities": { "portMappings": true }, "snat": true },
            { "type": "firewall" }
        ]
    })
}

/// A namespace beyond the host, at [`OUTSIDE`], which knows no way to any pod: only what
/// the host sends in its own name is answered.
#[derive(Debug)]
pub struct Outside {
    namespace: Namespace,
    _server: Running,
}

impl Default for Outside {
    fn default() -> Self {
        Self::new()
    }
}

impl Outside {
    /// Makes it, with a server on port 9000 that says who asks.
    #[must_use]
    pub fn new() -> Self {
        let namespace = Namespace::new();
        sh(&format!(
            "ip link add nacre-out0 type veth peer name out netns {}
             ip address add {HOST}/24 dev nacre-out0; ip link set nacre-out0 up",
            namespace.name()
        ));
        namespace.sh(&format!(
            "ip link set lo up; ip address add {OUTSIDE}/24 dev out; ip link set out up"
        ));
        let mut server = Command::new("ip");
        server.args(["netns", "exec", namespace.name(), "socat"]);
        server.args([
            "TCP-LISTEN:9000,fork,reuseaddr",
            "SYSTEM:echo asked by $SOCAT_PEERADDR",
        ]);
        server.stdin(Stdio::null());
        Self {
            _server: Running::start(server),
            namespace,
        }
    }

    /// What a server at this port of the host says.
    #[must_use]
    pub fn ask(&self, port: u16) -> String {
        self.namespace.sh(&ask(HOST, port))
    }

    /// Its namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }
}

/// A script that prints what a server says, at last when it serves.
#[must_use]
pub fn ask(address: &str, port: u16) -> String {
    format!(
        "for i in 1 2 3 4 5 6 7 8 9 10; do
           said=$(busybox timeout 30 busybox nc {address} {port} </dev/null 2>/dev/null) || true
           [ -z \"$said\" ] || break
           sleep 0.3
         done
         echo \"$said\""
    )
}

/// All of the host that plugins change and that is of a pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct State(BTreeSet<String>);

impl State {
    /// Links, namespaces, leases, rules of the packet filter, routes, and what `vm-run`
    /// keeps. Take it after the first pod on a network: bridges and empty chains stay.
    #[must_use]
    pub fn now() -> Self {
        let text = sh(
            "for dir in /sys/class/net /run/netns; do find $dir -mindepth 1; done
             find /var/lib/cni /var/lib/nacre/cni -type f ! -name 'last_reserved_ip*' || true
             for table in nat filter mangle; do
               for program in iptables ip6tables; do
                 $program -w -t $table -S 2>/dev/null | sed \"s/^/$program $table /\" || true
               done
             done
             ip route show table all | sed 's/ linkdown//; /dev eth0/d'; ip rule",
        );
        Self(text.lines().map(Into::into).collect())
    }

    /// What has come and what has gone since `before`, a line each.
    #[must_use]
    pub fn since(&self, before: &Self) -> Vec<String> {
        let come = self.0.difference(&before.0).map(|line| format!("+ {line}"));
        let gone = before.0.difference(&self.0).map(|line| format!("- {line}"));
        come.chain(gone).collect()
    }
}

/// Fails unless all is as it was, or soon is: links go a moment after their namespace.
///
/// # Panics
/// When it stays different.
pub fn assert_as_before(before: &State) {
    let start = Instant::now();
    loop {
        let difference = State::now().since(before);
        if difference.is_empty() {
            return;
        }
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "not as before: {difference:#?}"
        );
        thread::sleep(Duration::from_millis(100));
    }
}

/// Removes the bridge and what stays of [`slide`] when it is dropped.
#[derive(Debug)]
pub struct Bridge(());

impl Bridge {
    /// There is none yet.
    ///
    /// # Panics
    /// When there is one.
    #[must_use]
    pub fn none_yet() -> Self {
        let link = Path::new("/sys/class/net").join(BRIDGE);
        assert!(!link.exists(), "left by another test");
        Self(())
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        sh(&format!("ip link del {BRIDGE} 2>/dev/null || true"));
    }
}
