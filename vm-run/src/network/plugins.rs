//! Pods on CNI networks: put there, and taken off again, also by another process.
//!
//! All that a pod has there is known by one [`Id`]: the file of its [`Owner`], the
//! entries of the result cache, the network namespace. They are made in this order and
//! removed in the opposite one, so that whatever is there leads to the rest. The state is
//! kept below `/var/lib` rather than `/run`: leases of addresses outlast the host's
//! restart, too, and need their `DEL`.

use std::env;
use std::path::{Path, PathBuf};

use nacre_cni::{
    AddResult, Attachment, AttachmentId, Cni, Error, NetworkConfig, NetworkName, discovery,
    plugin_dirs,
};

use super::choice::CniRequest;
use super::leftover::{self, Leftover, forget};
use super::namespace;
use super::owner::{Id, Owner, Owners};
use super::{NetworkError, system};

/// Where this program keeps what it must know after a crash.
const STATE_DIR: &str = "/var/lib/nacre/cni";

/// Names another directory of network configurations, as for `cnitool`.
const CONF_DIR_VARIABLE: &str = "NETCONFPATH";

/// The interface inside a pod.
const INTERFACE: &str = "eth0";

/// The options by which a capability is asked for.
const OPTIONS: &[(&str, &str)] = &[
    ("portMappings", "--publish"),
    ("ips", "--ip"),
    ("mac", "--mac"),
];

/// This host's CNI plugins and networks, and who is on them.
#[derive(Debug)]
pub(super) struct Plugins {
    cni: Cni,
    conf_dir: PathBuf,
    owners: Owners,
}

/// A pod on a network.
#[derive(Debug)]
pub(super) struct Added {
    pub(super) owner: Owner,
    pub(super) namespace: PathBuf,
    pub(super) network: NetworkName,
    pub(super) result: AddResult,
}

impl Plugins {
    /// As the environment says, else in their usual places.
    pub(super) fn of_this_host() -> Result<Self, NetworkError> {
        let conf_dir = env::var_os(CONF_DIR_VARIABLE).filter(|dir| !dir.is_empty());
        let conf_dir = conf_dir.map_or_else(|| discovery::DEFAULT_CONF_DIR.into(), PathBuf::from);
        let conf_dir = std::path::absolute(&conf_dir)
            .map_err(system(|| format!("use {CONF_DIR_VARIABLE}")))?;
        let state = Path::new(STATE_DIR);
        Ok(Self {
            cni: Cni::new(plugin_dirs(), state.join("results"))?,
            conf_dir,
            owners: Owners::new(state.join("owners")),
        })
    }

    /// Makes a network namespace and puts it on the network.
    pub(super) fn add(&self, request: &CniRequest) -> Result<Added, NetworkError> {
        let network = self.network(request)?;
        refuse_undeclared(request, &network)?;
        let owner = self.owners.create().map_err(system(|| {
            format!("make a file in {}", self.owners.dir().display())
        }))?;
        let made = self.add_new(owner.id(), request, &network);
        match made {
            Ok((namespace, result)) => Ok(Added {
                owner,
                namespace,
                network: network.name,
                result,
            }),
            Err(error) => {
                // The first error says more than one of the tidying would; what could
                // not be removed is still known to the next one.
                if let Err(left) = self.remove(owner) {
                    log::debug!("{left}");
                }
                Err(error)
            }
        }
    }

    fn add_new(
        &self,
        id: &Id,
        request: &CniRequest,
        network: &NetworkConfig,
    ) -> Result<(PathBuf, AddResult), NetworkError> {
        let namespace = namespace::make(id)
            .map_err(system(|| "make a network namespace in /run/netns".into()))?;
        let attachment = AttachmentId::new(id.as_str(), INTERFACE).map_err(Error::from)?;
        let mut attachment = Attachment::new(attachment, Some(namespace.clone()));
        attachment.capabilities = request.capabilities.clone();
        let result = self.cni.add(network, &attachment)?;
        Ok((namespace, result))
    }

    fn network(&self, request: &CniRequest) -> Result<NetworkConfig, NetworkError> {
        let network = match &request.name {
            Some(name) => discovery::find(&self.conf_dir, name)?,
            None => discovery::first(&self.conf_dir)?,
        };
        // With one version there is nothing to ask the plugins for.
        if network.versions.len() > 1 {
            return Ok(self.cni.negotiate(network)?);
        }
        Ok(network)
    }

    /// Takes a pod off its network, then removes its namespace and its file. Says
    /// whether there was something. What could not be removed is left over.
    pub(super) fn remove(&self, owner: Owner) -> Result<bool, NetworkError> {
        let id = owner.id().clone();
        let mut found = namespace::path(&id).exists();
        for known in self.cni.attachments()? {
            if known.id.container_id.as_str() != id.as_str() {
                continue;
            }
            found = true;
            match known.entry {
                Some(entry) => {
                    let tries = if entry.complete {
                        1
                    } else {
                        // A plugin may miss once what its cut-off ADD has not made.
                        entry.network.plugins.len() + 1
                    };
                    self.del(&entry.network, &entry.attachment, tries)?;
                }
                None => {
                    let network = discovery::find(&self.conf_dir, &known.network)?;
                    let namespace = Some(namespace::path(&id));
                    let tries = network.plugins.len() + 1;
                    self.del(&network, &Attachment::new(known.id, namespace), tries)?;
                }
            }
        }
        // After DEL: some plugins find what they have to remove by what is in there.
        namespace::remove(&id).map_err(system(|| format!("remove the namespace {id}")))?;
        forget(owner)?;
        Ok(found)
    }

    fn del(
        &self,
        network: &NetworkConfig,
        attachment: &Attachment,
        tries: usize,
    ) -> Result<(), Error> {
        let mut result = self.cni.del(network, attachment);
        for _ in 1..tries {
            if result.is_ok() {
                break;
            }
            result = self.cni.del(network, attachment);
        }
        result
    }

    /// Removes what dead processes have left; none of a pod that runs is touched. The
    /// command `GC` is not sent: it would take from other runtimes on the same networks
    /// what is theirs.
    pub(super) fn collect(&self) -> Result<Vec<Leftover>, NetworkError> {
        leftover::collect(&self.owners, self.known()?, |owner| self.remove(owner))
    }

    /// All pods that there is anything of, running or not.
    fn known(&self) -> Result<Vec<Id>, NetworkError> {
        let dir = self.owners.dir();
        let mut ids = self
            .owners
            .ids()
            .map_err(system(|| format!("read {}", dir.display())))?;
        let cached = self.cni.attachments()?;
        ids.extend(
            cached
                .iter()
                .filter_map(|known| Id::parse(known.id.container_id.as_str())),
        );
        ids.sort();
        ids.dedup();
        Ok(ids)
    }
}

/// Refuses what none of the plugins would do.
fn refuse_undeclared(request: &CniRequest, network: &NetworkConfig) -> Result<(), NetworkError> {
    let undeclared = request
        .capabilities
        .undeclared_by(network)
        .map_err(Error::from)?;
    // Name servers reach the guest also without a plugin; see `resolv`.
    let refused = OPTIONS
        .iter()
        .find(|(capability, _)| undeclared.iter().any(|key| key == capability));
    match refused {
        None => Ok(()),
        Some((capability, option)) => Err(NetworkError::Undeclared {
            option,
            capability,
            network: network.name.clone(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use nacre_cni::{Capabilities, RequestedDns};

    use super::*;

    fn network(capabilities: &str) -> NetworkConfig {
        let text = format!(
            r#"{{"cniVersion": "1.0.0", "name": "mynet", "type": "t",
                 "capabilities": {capabilities}}}"#
        );
        NetworkConfig::from_json(text.as_bytes()).unwrap()
    }

    #[test]
    fn what_no_plugin_would_do_is_refused_by_the_option_that_asks_for_it() {
        let request = CniRequest {
            name: None,
            capabilities: Capabilities {
                mac: Some("02:00:00:00:00:07".parse().unwrap()),
                ..Capabilities::default()
            },
        };
        refuse_undeclared(&request, &network(r#"{"mac": true}"#)).unwrap();
        let error = refuse_undeclared(&request, &network(r#"{"ips": true}"#)).unwrap_err();
        let message = error.to_string();
        assert!(message.starts_with("--mac: "), "{message}");
        assert!(message.contains("\"mynet\""), "{message}");
    }

    #[test]
    fn name_servers_need_no_plugin() {
        let request = CniRequest {
            name: None,
            capabilities: Capabilities {
                dns: Some(RequestedDns::default()),
                ..Capabilities::default()
            },
        };
        refuse_undeclared(&request, &network("{}")).unwrap();
    }
}
