//! A directory with plugins, a cache, and a log of what the plugins were asked.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nacre_cni::{AddResult, Attachment, AttachmentId, Cni, Error, NetworkConfig};
use serde_json::{Value, json};

/// A namespace that is there as long as the test is.
pub(crate) const NETNS: &str = "/proc/self/ns/net";

/// Long enough for any plugin that does not hang.
const DEADLINE: Duration = Duration::from_secs(30);

/// What a plugin was asked.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) plugin: String,
    pub(crate) command: String,
    pub(crate) environment: String,
    pub(crate) request: Value,
}

pub(crate) struct World {
    dir: tempfile::TempDir,
    pub(crate) cni: Cni,
}

impl World {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let plugins = dir.path().join("plugins");
        fs::create_dir(&plugins).unwrap();
        fs::create_dir(dir.path().join("calls")).unwrap();
        let cni = Cni::new(vec![plugins], dir.path().join("cache")).unwrap();
        Self {
            dir,
            cni: cni.with_deadline(DEADLINE),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The cache's file of the attachment that [`attachment`] makes.
    pub(crate) fn cache_file(&self, container: &str) -> PathBuf {
        self.path("cache").join(format!("net:{container}:eth0"))
    }

    /// A plugin that notes what it is asked, then runs `script` with the request in
    /// `$request`.
    pub(crate) fn plugin(&self, name: &str, script: &str) {
        let calls = self.path("calls");
        let calls = calls.display();
        self.raw_plugin(
            name,
            &format!(
                "#!/bin/sh\nrequest=$(cat)\n\
                 call={calls}/$(date +%s%N)-{name}-$CNI_COMMAND\n\
                 printf '%s' \"$request\" >$call.request\nenv >$call.env\n{script}\n"
            ),
        );
    }

    /// A plugin that succeeds, and answers `ADD` with `result`.
    pub(crate) fn answering(&self, name: &str, result: &Value) {
        self.plugin(
            name,
            &format!("if test $CNI_COMMAND = ADD; then cat <<'END'\n{result}\nEND\nfi"),
        );
    }

    pub(crate) fn raw_plugin(&self, name: &str, text: &str) {
        let path = self.path("plugins").join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// All that plugins were asked, in order.
    pub(crate) fn calls(&self) -> Vec<Call> {
        let mut names: Vec<String> = fs::read_dir(self.path("calls"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter_map(|name| name.strip_suffix(".request").map(str::to_owned))
            .collect();
        names.sort_unstable();
        names.iter().map(|name| self.call(name)).collect()
    }

    fn call(&self, name: &str) -> Call {
        let read = |suffix: &str| {
            fs::read_to_string(self.path("calls").join(format!("{name}.{suffix}"))).unwrap()
        };
        let mut parts = name.split('-').skip(1).map(str::to_owned);
        Call {
            plugin: parts.next().unwrap(),
            command: parts.next().unwrap(),
            environment: read("env"),
            request: serde_json::from_str(&read("request")).unwrap(),
        }
    }

    /// The calls as `plugin COMMAND`.
    pub(crate) fn log(&self) -> Vec<String> {
        let calls = self.calls();
        calls
            .iter()
            .map(|call| format!("{} {}", call.plugin, call.command))
            .collect()
    }

    pub(crate) fn add(&self, network: &NetworkConfig) -> Result<AddResult, Error> {
        self.cni.add(network, &attachment("c1"))
    }

    /// The message of an `ADD` that must fail, which must be one clean line.
    pub(crate) fn add_error(&self, network: &NetworkConfig) -> String {
        clean(&self.add(network).unwrap_err())
    }
}

impl Call {
    /// A variable's value.
    pub(crate) fn variable(&self, name: &str) -> Option<&str> {
        self.environment
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
    }
}

/// An error's text, without anything that a terminal would obey, and of bounded length.
pub(crate) fn clean(error: &Error) -> String {
    let text = error.to_string();
    assert!(!text.contains(char::is_control), "{text:?}");
    assert!(text.len() < 2000, "{text}");
    text
}

pub(crate) fn network(version: &str, plugins: &Value) -> NetworkConfig {
    configured(&json!({"cniVersion": version, "name": "net", "plugins": plugins}))
}

/// A network of plugins that need no configuration.
pub(crate) fn chain(version: &str, types: &[&str]) -> NetworkConfig {
    let plugins: Vec<_> = types.iter().map(|name| json!({"type": name})).collect();
    network(version, &json!(plugins))
}

pub(crate) fn configured(config: &Value) -> NetworkConfig {
    NetworkConfig::from_json(config.to_string().as_bytes()).unwrap()
}

pub(crate) fn id(container: &str) -> AttachmentId {
    AttachmentId::new(container, "eth0").unwrap()
}

pub(crate) fn attachment(container: &str) -> Attachment {
    Attachment::new(id(container), Some(NETNS.into()))
}

/// A result with one address.
pub(crate) fn result(version: &str, address: &str) -> Value {
    json!({
        "cniVersion": version,
        "interfaces": [{"name": "eth0", "sandbox": NETNS}],
        "ips": [{"address": address, "interface": 0}],
    })
}

/// Names of the files in a directory.
pub(crate) fn files(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort_unstable();
    names
}

/// Waits for what must come soon.
pub(crate) fn wait_for(what: &str, mut come: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !come() {
        assert!(Instant::now() < until, "{what} has not come");
        thread::sleep(Duration::from_millis(5));
    }
}
