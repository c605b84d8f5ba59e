//! The runtime side of the Container Network Interface.
//!
//! A container runtime makes a network namespace, reads the configuration of a network,
//! and executes the plugins it names, one after another, with the configuration on
//! their standard input. This library does all but the namespace, as the
//! [specification] 1.1.0 wants it; configurations and plugins of 0.3.1, 0.4.0 and 1.0.0
//! work as well.
//!
//! - [`discovery`] finds networks in a directory such as `/etc/cni/net.d`.
//! - [`Cni`] adds containers to networks and removes them, and remembers what it did in
//!   a result cache, so that another process can go on after a crash.
//! - [`AddResult`] is what the plugins have made.
//!
//! Nothing here is async, and no thread is started: a call blocks until the plugins have
//! answered, at most for the deadline of each of them. The plugins are executed in the
//! caller's network namespace, with nothing of the caller but its `PATH`.
//!
//! What a plugin writes is taken for hostile: it is bounded, parsed and checked before
//! anybody sees it, and has no control character left when it is part of an error. An
//! error is one line, which names the plugin and has its own words and code.
//!
//! # Example
//!
//! A network with one plugin, which is a shell script here:
//!
//! ```
//! # use std::{error::Error, fs, os::unix::fs::PermissionsExt};
//! use nacre_cni::{Attachment, AttachmentId, Cni, discovery};
//!
//! # fn main() -> Result<(), Box<dyn Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let dir = dir.path();
//! let plugin = dir.join("answer");
//! fs::write(&plugin, r#"#!/bin/sh
//! test "$CNI_COMMAND" = ADD || exit 0
//! echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.10.0.7/16"}]}'
//! "#)?;
//! fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755))?;
//! fs::write(dir.join("10-mynet.conflist"), r#"{
//!     "cniVersion": "1.1.0", "name": "mynet", "plugins": [{"type": "answer"}]
//! }"#)?;
//!
//! let cni = Cni::new(vec![dir.into()], dir.join("cache"))?;
//! let network = discovery::find(dir, &"mynet".parse()?)?;
//! let id = AttachmentId::new("my-container", "eth0")?;
//! let attachment = Attachment::new(id, Some("/run/netns/mine".into()));
//!
//! let result = cni.add(&network, &attachment)?;
//! assert_eq!(result.ips[0].address.to_string(), "10.10.0.7/16");
//! cni.del(&network, &attachment)?;
//! # Ok(())
//! # }
//! ```
//!
//! [specification]: https://github.com/containernetworking/cni/blob/spec-v1.1.0/SPEC.md

mod attachment;
mod cache;
mod capabilities;
mod config;
pub mod discovery;
mod error;
mod file;
mod hardware_address;
mod lock;
mod names;
mod plugin;
mod process;
mod request;
mod result;
mod runtime;
mod text;
mod version;

pub use ipnet::IpNet;

pub use self::attachment::{Args, Attachment, AttachmentId, InvalidArgument};
pub use self::cache::{CacheEntry, CachedAttachment};
pub use self::capabilities::{
    Bandwidth, Capabilities, IpRange, PortMapping, Protocol, RequestedDns, RequestedIp,
};
pub use self::config::{InvalidConfig, NetworkConfig, PluginConfig};
pub use self::error::Error;
pub use self::hardware_address::{HardwareAddress, InvalidHardwareAddress};
pub use self::names::{ContainerId, InterfaceName, InvalidName, NetworkName, PluginType};
pub use self::plugin::{Command, Failure, PluginError};
pub use self::result::{AddResult, Dns, Interface, InvalidResult, IpConfig, Route};
pub use self::runtime::{Cni, DEFAULT_DEADLINE, DEFAULT_PLUGIN_DIRS, plugin_dirs};
pub use self::version::{UnknownVersion, Version};
