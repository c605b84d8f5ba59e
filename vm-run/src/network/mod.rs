//! The network of a pod: none, a namespace that somebody has wired, or one that is made
//! here and put on a CNI network. Either is then given to the guest by
//! [`nacre_pod::network`].

mod choice;
mod host;
mod leftover;
mod namespace;
mod own;
mod owner;
mod plugins;
mod publish;
mod resolv;
mod wired;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use nacre_cni::{Capabilities, Dns, IpNet, NetworkName, RequestedIp};
use nacre_pod::host::RuntimeNamespaces;
use nacre_pod::network::{self as wiring, Changes, Network, Nic};
use thiserror::Error;

use self::choice::CniRequest;
pub(crate) use self::choice::{Choice, ChoiceError};
pub(crate) use self::leftover::Leftover;
pub(crate) use self::own::enter as enter_own;
use self::owner::Owner;
use self::plugins::Plugins;
pub(crate) use self::publish::Published;

/// Why a pod has no network, or why something of it is left.
#[derive(Debug, Error)]
pub(crate) enum NetworkError {
    #[error(transparent)]
    Cni(#[from] nacre_cni::Error),
    #[error(transparent)]
    Wiring(#[from] wiring::NetworkError),
    #[error(
        "{option}: no plugin of the network \"{network}\" has the capability {capability}; one \
         that has it must declare it in the network's configuration"
    )]
    Undeclared {
        option: &'static str,
        capability: &'static str,
        network: NetworkName,
    },
    #[error("{option}: the network \"{network}\" gave another address than {wanted}")]
    NotGiven {
        option: &'static str,
        wanted: String,
        network: NetworkName,
    },
    #[error("{0}; `vm-run gc` tries again to remove what is left")]
    Left(Box<NetworkError>),
    #[error("cannot {what}: {source}")]
    System { what: String, source: io::Error },
}

fn system(what: impl FnOnce() -> String) -> impl FnOnce(io::Error) -> NetworkError {
    move |source| NetworkError::System {
        what: what(),
        source,
    }
}

/// The network of one pod. Dropping it takes it away.
#[derive(Debug)]
pub(crate) struct PodNetwork {
    wires: Option<Network>,
    /// Of a namespace that somebody else has wired.
    note: Option<Owner>,
    membership: Option<Membership>,
}

/// What a guest is told of its network.
#[derive(Debug, Default)]
pub(crate) struct GuestNetwork {
    pub(crate) nics: Vec<Nic>,
    /// What may change of them.
    pub(crate) changes: Option<Changes>,
    /// Empty when the network has no say in it.
    pub(crate) resolv_conf: String,
}

/// A pod's place on a CNI network.
#[derive(Debug)]
struct Membership {
    host: Arc<RuntimeNamespaces>,
    plugins: Plugins,
    owner: Owner,
}

impl PodNetwork {
    /// Makes and wires what was chosen for a pod of `vcpus`, with `servers` for the guest's resolver. What
    /// was left over on CNI networks is removed before another pod gets there.
    pub(crate) fn attach(
        choice: &Choice,
        servers: &[IpAddr],
        host: &Arc<RuntimeNamespaces>,
        vcpus: u8,
    ) -> Result<(Self, GuestNetwork), NetworkError> {
        match choice {
            Choice::None => Ok(Self::nothing()),
            Choice::Namespace(path) => Self::wired(path, servers, host, vcpus),
            Choice::Hooks(path) => match Self::wired(path, servers, host, vcpus) {
                Err(NetworkError::Wiring(wiring::NetworkError::NoInterface(_))) => {
                    Ok(Self::nothing())
                }
                wired => wired,
            },
            Choice::Cni(request) => Self::join(request, servers, host, vcpus),
        }
    }

    fn nothing() -> (Self, GuestNetwork) {
        let nothing = Self {
            wires: None,
            note: None,
            membership: None,
        };
        (nothing, GuestNetwork::default())
    }

    fn wired(
        path: &Path,
        servers: &[IpAddr],
        host: &RuntimeNamespaces,
        vcpus: u8,
    ) -> Result<(Self, GuestNetwork), NetworkError> {
        // This process may be in that namespace already.
        let (note, (wires, nics)) = host::enter(host, || {
            warn_of(wired::collect());
            let note = wired::note(path);
            match Network::attach(path, vcpus) {
                Ok(attached) => Ok((note, attached)),
                Err(error) => {
                    forget(note);
                    Err(error.into())
                }
            }
        })?;
        let guest = GuestNetwork {
            nics,
            changes: Some(wires.changes()),
            resolv_conf: resolv::conf(&Dns::default(), servers),
        };
        let network = Self {
            wires: Some(wires),
            note,
            membership: None,
        };
        Ok((network, guest))
    }

    fn join(
        request: &CniRequest,
        servers: &[IpAddr],
        host: &Arc<RuntimeNamespaces>,
        vcpus: u8,
    ) -> Result<(Self, GuestNetwork), NetworkError> {
        let plugins = Plugins::of_this_host()?;
        let added = host::enter(host, || {
            warn_of(plugins.collect());
            plugins.add(request)
        })?;
        // From here on, dropping it removes what was made.
        let mut network = Self {
            wires: None,
            note: None,
            membership: Some(Membership {
                host: host.clone(),
                plugins,
                owner: added.owner,
            }),
        };
        // The namespace's file need not be seen in this mount namespace.
        let (wires, nics) = host::enter(host, || Ok(Network::attach(&added.namespace, vcpus)?))?;
        let changes = Some(wires.changes());
        network.wires = Some(wires);
        refuse_not_given(&request.capabilities, &nics, &added.network)?;
        let guest = GuestNetwork {
            nics,
            changes,
            resolv_conf: resolv::conf(&added.result.dns, servers),
        };
        Ok((network, guest))
    }

    /// Unwires the guest, takes the pod off its network, and removes its namespace.
    ///
    /// # Errors
    /// What may have been left behind; everything is tried.
    pub(crate) fn close(mut self) -> Result<(), NetworkError> {
        self.remove()
    }

    fn remove(&mut self) -> Result<(), NetworkError> {
        let unwired = self.wires.take().map_or(Ok(()), Network::close);
        let note = self.note.take();
        // One that stays leads the next one to what is left.
        if unwired.is_ok() {
            forget(note);
        }
        let left = self.membership.take().map_or(Ok(()), Membership::end);
        unwired.map_err(NetworkError::from).and(left)
    }
}

impl Drop for PodNetwork {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            log::warn!("{error}");
        }
    }
}

impl Membership {
    fn end(self) -> Result<(), NetworkError> {
        let Self {
            host,
            plugins,
            owner,
        } = self;
        host::enter(&host, || plugins.remove(owner))
            .map(drop)
            .map_err(|error| NetworkError::Left(Box::new(error)))
    }
}

/// Removes what dead processes have left on CNI networks, and in namespaces of others.
pub(crate) fn collect() -> Result<Vec<Leftover>, NetworkError> {
    let mut leftovers = Plugins::of_this_host()?.collect()?;
    leftovers.extend(wired::collect()?);
    Ok(leftovers)
}

fn forget(note: Option<Owner>) {
    let Some(note) = note else { return };
    let id = note.id().clone();
    if let Err(error) = note.forget() {
        log::warn!("the file of {id} stays: {error}");
    }
}

/// Another pod's leftovers are no reason not to start this one.
fn warn_of(collected: Result<Vec<Leftover>, NetworkError>) {
    match collected {
        Err(error) => log::warn!("{error}"),
        Ok(leftovers) => {
            for Leftover { id, removed } in leftovers {
                match removed {
                    Ok(_) => log::debug!("removed what was left of {id}"),
                    Err(error) => log::warn!("what is left of {id} stays: {error}"),
                }
            }
        }
    }
}

/// Compares what was asked for with what is there: a plugin may take a capability and
/// do nothing about it.
fn refuse_not_given(
    wanted: &Capabilities,
    nics: &[Nic],
    network: &NetworkName,
) -> Result<(), NetworkError> {
    let refuse = |option, wanted: &dyn fmt::Display| {
        Err(NetworkError::NotGiven {
            option,
            wanted: wanted.to_string(),
            network: network.clone(),
        })
    };
    if let Some(mac) = &wanted.mac
        && !nics.iter().any(|nic| nic.config.mac == mac.bytes())
    {
        return refuse("--mac", mac);
    }
    let given: Vec<IpNet> = nics
        .iter()
        .flat_map(|nic| &nic.interface.addresses)
        .filter_map(|address| address.address.parse().ok())
        .collect();
    for wanted in &wanted.ips {
        let ip = match wanted {
            RequestedIp::Net(net) => net.addr(),
            RequestedIp::Address(ip) => *ip,
        };
        if !given.iter().any(|given| given.addr() == ip) {
            return refuse("--ip", &ip);
        }
    }
    Ok(())
}
