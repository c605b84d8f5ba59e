//! A container's way onto a network and off it again, with two plugins that are shell
//! scripts: run it with `cargo run -p nacre-cni --example attach`, as anybody.
//!
//! With real plugins and a real network namespace, the same calls need root:
//!
//! ```text
//! ip netns add blue
//! cargo run -p nacre-cni --example attach -- /etc/cni/net.d mynet /run/netns/blue
//! ```

use std::env;
use std::error::Error;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nacre_cni::{Attachment, AttachmentId, Cni, discovery, plugin_dirs};

/// Gives the container an address. A real one would make an interface, too.
const ADDRESS: &str = r#"#!/bin/sh
echo "address: $CNI_COMMAND $CNI_IFNAME of $CNI_CONTAINERID in $CNI_NETNS" >>LOG
case $CNI_COMMAND in
VERSION) echo '{"cniVersion": "1.1.0", "supportedVersions": ["1.0.0", "1.1.0"]}' ;;
ADD) cat <<END ;;
{"cniVersion": "1.1.0",
 "interfaces": [{"name": "$CNI_IFNAME", "mac": "c2:11:22:33:44:55", "sandbox": "$CNI_NETNS"}],
 "ips": [{"address": "10.10.0.7/16", "gateway": "10.10.0.1", "interface": 0}],
 "routes": [{"dst": "0.0.0.0/0"}]}
END
esac
"#;

/// A chained plugin: changes nothing, and passes the result on that it was given.
const PASS_ON: &str = r#"#!/bin/sh
request=$(cat)
echo "pass-on: $CNI_COMMAND" >>LOG
case $CNI_COMMAND in
VERSION) echo '{"cniVersion": "1.1.0", "supportedVersions": ["1.0.0", "1.1.0"]}' ;;
ADD) printf '%s' "$request" | sed 's/.*"prevResult":\(.*\),"type":.*/\1/' ;;
esac
"#;

const NETWORK: &str = r#"{
    "cniVersion": "1.1.0",
    "name": "mynet",
    "plugins": [{"type": "address"}, {"type": "pass-on"}]
}"#;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("attach: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let cache = tempfile::tempdir()?;
    if let [conf_dir, name, netns] = arguments.as_slice() {
        return attach(
            &plugin_dirs(),
            Path::new(conf_dir),
            name,
            netns,
            cache.path(),
        );
    }
    let dir = tempfile::tempdir()?;
    let log = dir.path().join("log");
    for (name, script) in [("address", ADDRESS), ("pass-on", PASS_ON)] {
        let path = dir.path().join(name);
        fs::write(&path, script.replace("LOG", &log.display().to_string()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    fs::write(dir.path().join("10-mynet.conflist"), NETWORK)?;
    attach(
        &[dir.path().into()],
        dir.path(),
        "mynet",
        "/proc/self/ns/net",
        cache.path(),
    )?;
    print!("what the plugins were asked:\n{}", fs::read_to_string(log)?);
    Ok(())
}

fn attach(
    plugin_dirs: &[PathBuf],
    conf_dir: &Path,
    network: &str,
    netns: &str,
    cache: &Path,
) -> Result<(), Box<dyn Error>> {
    let cni = Cni::new(plugin_dirs.to_vec(), cache)?;
    let network = cni.negotiate(discovery::find(conf_dir, &network.parse()?)?)?;
    let id = AttachmentId::new("my-container", "eth0")?;
    let attachment = Attachment::new(id, Some(netns.into()));

    let result = cni.add(&network, &attachment)?;
    println!("added, in CNI {}:", network.version);
    println!("{}", serde_json::to_string_pretty(&result)?);
    if let Err(error) = cni.check(&network, &attachment.id) {
        println!("check: {error}");
    }
    cni.del(&network, &attachment)?;
    println!("deleted; {} attachments left", cni.attachments()?.len());
    Ok(())
}
