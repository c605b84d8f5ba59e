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
//! What changes in the namespace while the pod runs is for the guest, too: [`Changes`].
//!
//! A tap lives as long as somebody holds its descriptor, so that it is gone
//! with the monitor, however that ends. The filter of the interface is taken
//! away by [`Network::close`]; when the front door was killed it stays, and
//! drops what arrives, until the namespace goes or the next pod replaces it.

mod addresses;
mod counters;
mod describe;
mod follow;
mod ipv6;
mod localhost;
mod namespace;
mod netlink;
mod packet_filter;
mod redirect;
mod routes;
mod rules;
mod steer;
mod tap;

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nacre_protocol::agent::{Interface, PolicyRule};
use nacre_vmm::client::QueuePairFds;
use nacre_vmm::config::{MAX_QUEUE_PAIRS, NetworkConfig};
use rtnetlink::Handle;
use thiserror::Error;

pub(crate) use self::counters::Counters;
use self::describe::Link;
use self::follow::Attached;
pub use self::follow::Changes;
pub(crate) use self::follow::GuestView;
pub use self::localhost::Localhost;
use self::namespace::Namespace;
use self::redirect::Redirect;
use self::tap::Tap;

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
    /// The descriptors of the device's pairs of queues, which its monitor takes over. The tap
    /// does not block.
    pub fds: Vec<QueuePairFds>,
    /// What the guest makes of the device.
    pub interface: Interface,
    /// The rules by which the namespace chooses among tables of routes. They are told
    /// once, with its first interface.
    pub policy_rules: Vec<PolicyRule>,
}

/// The network namespace of a pod, wired to its taps. Dropping it unwires it.
#[derive(Debug)]
pub struct Network {
    namespace: Arc<Namespace>,
    wires: Vec<Wire>,
    attached: Vec<Attached>,
    rules: Vec<PolicyRule>,
}

/// What must be undone for one interface.
#[derive(Debug)]
struct Wire {
    tap: u32,
    redirect: Option<Redirect>,
}

impl Network {
    /// Wires every interface of the network namespace `path` that is up, besides
    /// `lo`, to a tap of its own, with a pair of queues for each of `vcpus`, as far as there
    /// can be. The list is in the order of `ip link`.
    ///
    /// Takes some milliseconds and blocks.
    ///
    /// # Errors
    /// [`NetworkError`]; the namespace is then as before.
    pub fn attach(path: &Path, vcpus: u8) -> Result<(Self, Vec<Nic>), NetworkError> {
        let pairs = vcpus.clamp(1, MAX_QUEUE_PAIRS);
        let mut network = Self {
            namespace: Arc::new(Namespace::open(path)?),
            wires: Vec::new(),
            attached: Vec::new(),
            rules: Vec::new(),
        };
        let (wires, attached) = (&mut network.wires, &mut network.attached);
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
                let (index, is_tap) = (link.index, link.is_tap);
                let nic = attach(&netlink, link, pairs, wires).await?;
                let tap = wires.last().filter(|_| !is_tap).map(|wire| wire.tap);
                attached.push(Attached {
                    index,
                    tap,
                    interface: nic.interface.clone(),
                });
                nics.push(nic);
            }
            if let Some(first) = nics.first_mut() {
                first.policy_rules = rules;
            }
            Ok(nics)
        })?;
        if let Some(first) = nics.first() {
            network.rules.clone_from(&first.policy_rules);
        }
        Ok((network, nics))
    }

    /// Removes from the network namespace `path` what a front door that was killed has left there,
    /// and says whether there was something. What belongs to a pod that runs stays.
    ///
    /// # Errors
    /// [`NetworkError`]; a namespace that is gone is none.
    pub fn clear(path: &Path) -> Result<bool, NetworkError> {
        let namespace = match Namespace::open(path) {
            Err(NetworkError::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(false);
            }
            namespace => namespace?,
        };
        namespace.enter(async |netlink| {
            let mut found = false;
            let (_, interfaces) = describe::again(&netlink, &[]).await?;
            for (index, name) in interfaces {
                found |= redirect::remove_stale(&netlink, (index, &name)).await?;
            }
            Ok(found)
        })
    }

    /// What may change from now on, for the pod that has the interfaces.
    #[must_use]
    pub fn changes(&self) -> Changes {
        Changes {
            namespace: Arc::clone(&self.namespace),
            attached: self.attached.clone(),
            rules: self.rules.clone(),
        }
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

async fn attach(
    netlink: &Handle,
    link: Link,
    pairs: u8,
    wires: &mut Vec<Wire>,
) -> Result<Nic, NetworkError> {
    let tap = if link.is_tap {
        tap::take_over(&link.interface.name, pairs)?
    } else {
        wire(netlink, &link, pairs, wires).await?
    };
    let fds = queue_pairs(tap.queues);
    Ok(Nic {
        config: NetworkConfig {
            mac: link.mac,
            queue_pairs: u8::try_from(fds.len()).unwrap_or(MAX_QUEUE_PAIRS),
            vhost: fds.iter().all(|pair| pair.vhost.is_some()),
        },
        fds,
        interface: link.interface,
        policy_rules: Vec::new(),
    })
}

/// Makes a tap beside the interface, and redirects all between the two.
async fn wire(
    netlink: &Handle,
    link: &Link,
    pairs: u8,
    wires: &mut Vec<Wire>,
) -> Result<Tap, NetworkError> {
    let name = &link.interface.name;
    let tap = tap::create(link.index, name, pairs)?;
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
    redirect.copy_dhcp(netlink, tap_index).await;
    if let Some(wire) = wires.last_mut() {
        wire.redirect = Some(redirect);
    }
    Ok(tap)
}

async fn detach(netlink: &Handle, wire: Wire) -> Result<(), NetworkError> {
    let filter = match wire.redirect {
        Some(redirect) => redirect.remove(netlink).await,
        None => Ok(()),
    };
    filter.and(tap::delete(netlink, wire.tap).await)
}

/// Joins each queue of a tap with an instance of vhost-net; all of them or none.
fn queue_pairs(taps: Vec<OwnedFd>) -> Vec<QueuePairFds> {
    let instances: Option<Vec<_>> = taps.iter().map(|_| vhost_net()).collect();
    let mut instances = instances.into_iter().flatten();
    taps.into_iter()
        .map(|tap| QueuePairFds {
            tap,
            vhost: instances.next(),
        })
        .collect()
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
