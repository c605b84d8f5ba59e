//! The host side of a pod's network interfaces.
//!
//! Somebody else, a CNI plugin or a person with `ip`, has wired a network
//! namespace. [`Network::attach`] gives each of its interfaces a tap and
//! redirects all that arrives at the one out of the other, both ways, in tc's
//! ingress hook. The guest takes over address, MAC, MTU, routes and neighbours
//! of the interface, so that its peers notice no difference; the interface
//! itself keeps its addresses, but the namespace's own stack gets no packet any
//! more. Nothing of this touches the host's namespace.
//!
//! An interface that is a tap already is the guest's as it is: whoever made it has wired
//! it, too.
//!
//! A tap lives as long as somebody holds its descriptor, so that it is gone
//! with the monitor, however that ends. The filter of the interface is taken
//! away by [`Network::close`]; when the front door was killed it stays, and
//! drops what arrives, until the namespace goes or the next pod replaces it.

mod addresses;
mod describe;
mod ipv6;
mod namespace;
mod netlink;
mod packet_filter;
mod redirect;
mod routes;
mod rules;
mod tap;

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nacre_protocol::agent::{Interface, PolicyRule};
use nacre_vmm::client::NetworkFds;
use nacre_vmm::config::NetworkConfig;
use rtnetlink::Handle;
use thiserror::Error;

use self::describe::Link;
use self::namespace::Namespace;
use self::redirect::Redirect;

const VHOST_NET: &str = "/dev/vhost-net";

/// Why a network namespace cannot be given to a pod.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// There is nothing to open at the path.
    #[error(
        "cannot open the network namespace {}: {source} (`ip netns add NAME` makes \
         /run/netns/NAME)", path.display()
    )]
    Open {
        /// As it was given.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Something else is there.
    #[error("{} is not a network namespace (`ip netns add NAME` makes /run/netns/NAME)", .0.display())]
    NotANamespace(PathBuf),
    /// The pod would take over the host's own interfaces.
    #[error(
        "{} is the host's own network namespace: a pod needs one for itself (`ip netns add NAME` \
         makes /run/netns/NAME)", .0.display()
    )]
    HostNamespace(PathBuf),
    /// The kernel does not let this process in.
    #[error("cannot enter the network namespace {}: {source} (it takes root)", path.display())]
    Enter {
        /// As it was given.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// There is nothing to attach to.
    #[error(
        "no network interface in {}: an Ethernet interface besides lo is needed there, and it must \
         be up", .0.display()
    )]
    NoInterface(PathBuf),
    /// Another pod has it.
    #[error("network interface {0} already belongs to a running pod")]
    InUse(String),
    /// A guest would get it with another meaning.
    #[error("this network cannot be given to a guest: {0}")]
    Unsupported(String),
    /// No taps on this host.
    #[error("cannot open /dev/net/tun: {0} (if it is missing, load it with `modprobe tun`)")]
    Tun(io::Error),
    /// The kernel refused a step.
    #[error("cannot {what}: {source}")]
    Kernel {
        /// The step.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
}

impl NetworkError {
    fn kernel<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |source| Self::Kernel {
            what: what.into(),
            source: source.into(),
        }
    }
}

/// One interface of a pod: the device for its monitor, the description for its agent.
#[derive(Debug)]
pub struct Nic {
    /// The virtio-net device.
    pub config: NetworkConfig,
    /// The device's descriptors, which its monitor takes over. The tap does not block.
    pub fds: NetworkFds,
    /// What the guest makes of the device.
    pub interface: Interface,
    /// The rules by which the namespace chooses among tables of routes. They are told
    /// once, with its first interface.
    pub policy_rules: Vec<PolicyRule>,
}

/// The network namespace of a pod, wired to its taps. Dropping it unwires it.
#[derive(Debug)]
pub struct Network {
    namespace: Namespace,
    wires: Vec<Wire>,
}

/// What must be undone for one interface.
#[derive(Debug)]
struct Wire {
    tap: u32,
    redirect: Option<Redirect>,
}

impl Network {
    /// Wires every interface of the network namespace `path` that is up, besides
    /// `lo`, to a tap of its own. The list is in the order of `ip link`.
    ///
    /// Takes some milliseconds and blocks.
    ///
    /// # Errors
    /// [`NetworkError`]; the namespace is then as before.
    pub fn attach(path: &Path) -> Result<(Self, Vec<Nic>), NetworkError> {
        let mut network = Self {
            namespace: Namespace::open(path)?,
            wires: Vec::new(),
        };
        let wires = &mut network.wires;
        // On an error, dropping `network` undoes what `wires` tells.
        let nics = network.namespace.enter(async |netlink| {
            packet_filter::refuse_rules()?;
            let links = describe::links(&netlink).await?;
            if links.is_empty() {
                return Err(NetworkError::NoInterface(path.into()));
            }
            let names: Vec<_> = links
                .iter()
                .map(|link| link.interface.name.clone())
                .collect();
            let rules = rules::of(&netlink, &names).await?;
            let mut nics = Vec::new();
            for link in links {
                nics.push(attach(&netlink, link, wires).await?);
            }
            if let Some(first) = nics.first_mut() {
                first.policy_rules = rules;
            }
            Ok(nics)
        })?;
        Ok((network, nics))
    }

    /// Takes away the taps and all that leads to them. Harmless when the
    /// interfaces or the taps are gone already.
    ///
    /// # Errors
    /// [`NetworkError::Kernel`] with what may have been left behind.
    pub fn close(mut self) -> Result<(), NetworkError> {
        self.unwire()
    }

    fn unwire(&mut self) -> Result<(), NetworkError> {
        let wires = std::mem::take(&mut self.wires);
        if wires.is_empty() {
            return Ok(());
        }
        self.namespace.enter(async |netlink| {
            let mut result = Ok(());
            for wire in wires {
                // The other wires are undone even if one cannot be.
                result = result.and(detach(&netlink, wire).await);
            }
            result
        })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Err(error) = self.unwire() {
            log::warn!("{error}");
        }
    }
}

async fn attach(netlink: &Handle, link: Link, wires: &mut Vec<Wire>) -> Result<Nic, NetworkError> {
    let tap = if link.is_tap {
        tap::take_over(&link.interface.name)?
    } else {
        wire(netlink, &link, wires).await?
    };
    let vhost = vhost_net();
    Ok(Nic {
        config: NetworkConfig {
            mac: link.mac,
            mtu: link.mtu,
            vhost: vhost.is_some(),
        },
        fds: NetworkFds { tap, vhost },
        interface: link.interface,
        policy_rules: Vec::new(),
    })
}

/// Makes a tap beside the interface, and redirects all between the two.
async fn wire(
    netlink: &Handle,
    link: &Link,
    wires: &mut Vec<Wire>,
) -> Result<OwnedFd, NetworkError> {
    let name = &link.interface.name;
    let tap = tap::create(link.index, name)?;
    let tap_index = tap::configure(netlink, &tap, link.mtu).await?;
    wires.push(Wire {
        tap: tap_index,
        redirect: None,
    });
    // The tap's filter comes before the tap is up, so that the namespace's own
    // stack sees none of the guest's packets. It goes with the tap.
    Redirect::new(netlink, (tap_index, &tap.name), (link.index, name)).await?;
    tap::bring_up(netlink, tap_index, &tap.name).await?;
    let redirect = Redirect::new(netlink, (link.index, name), (tap_index, &tap.name)).await?;
    if let Some(wire) = wires.last_mut() {
        wire.redirect = Some(redirect);
    }
    Ok(tap.fd)
}

async fn detach(netlink: &Handle, wire: Wire) -> Result<(), NetworkError> {
    let filter = match wire.redirect {
        Some(redirect) => redirect.remove(netlink).await,
        None => Ok(()),
    };
    filter.and(tap::delete(netlink, wire.tap).await)
}

/// `/dev/vhost-net`, if this host has it; without it the monitor moves the
/// packets itself.
fn vhost_net() -> Option<OwnedFd> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(VHOST_NET);
    match device {
        Ok(device) => Some(device.into()),
        Err(error) => {
            log::debug!("{VHOST_NET}: {error}; packets go through the monitor");
            None
        }
    }
}
