//! Which network a pod gets: what the command line and the bundle say together.

use std::path::{Path, PathBuf};

use nacre_cni::{Capabilities, NetworkName, RequestedDns};
use nacre_pod::spec::Bundle;
use thiserror::Error;

use crate::cli::{Net, NetworkArgs};

/// Why the command line and the bundle do not go together.
#[derive(Debug, Error, Eq, PartialEq)]
pub(crate) enum ChoiceError {
    #[error(
        "linux.namespaces: the bundle names the network namespace {}, --net={net} another network",
        bundle.display()
    )]
    Networks { bundle: PathBuf, net: Net },
    #[error(
        "linux.namespaces: the bundle names the network namespace {}, --net=none forbids it",
        .0.display()
    )]
    NoNetwork(PathBuf),
    #[error("{0} is for the plugins of a CNI network: give --net=cni, too")]
    NotCni(&'static str),
    #[error("--dns: a pod without a network reaches no name server")]
    NoNameServer,
    #[error("--publish: port {0} of the host is given twice")]
    Published(u16),
}

/// The network of a pod.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Choice {
    /// Only `lo`.
    None,
    /// A namespace that somebody has wired.
    Namespace(PathBuf),
    /// A namespace that hooks may have wired.
    Hooks(PathBuf),
    /// A namespace to be made and wired.
    Cni(Box<CniRequest>),
}

/// What is wanted of a CNI network.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct CniRequest {
    /// None: the first one.
    pub(crate) name: Option<NetworkName>,
    pub(crate) capabilities: Capabilities,
}

impl Choice {
    /// What the command line says, else what follows from the bundle.
    pub(crate) fn choose(args: &NetworkArgs, bundle: &Bundle) -> Result<Self, ChoiceError> {
        Self::of(args, bundle.network_namespace())
    }

    fn of(args: &NetworkArgs, bundle: Option<&Path>) -> Result<Self, ChoiceError> {
        let choice = match (&args.net, bundle) {
            (None, None) | (Some(Net::None), None) => Self::None,
            (None, Some(bundle)) => Self::Namespace(bundle.into()),
            (Some(Net::None), Some(bundle)) => return Err(ChoiceError::NoNetwork(bundle.into())),
            (Some(Net::Namespace(net)), None) => Self::Namespace(net.clone()),
            (Some(Net::Namespace(net)), Some(bundle)) if same_file(net, bundle) => {
                Self::Namespace(net.clone())
            }
            (Some(Net::Cni(name)), None) => Self::Cni(Box::new(CniRequest {
                name: name.clone(),
                capabilities: capabilities(args)?,
            })),
            (Some(net), Some(bundle)) => {
                return Err(ChoiceError::Networks {
                    bundle: bundle.into(),
                    net: net.clone(),
                });
            }
        };
        choice.refuse_what_has_no_effect(args)?;
        Ok(choice)
    }

    fn refuse_what_has_no_effect(&self, args: &NetworkArgs) -> Result<(), ChoiceError> {
        let for_plugins = [
            ("--publish", !args.publish.is_empty()),
            ("--ip", !args.ip.is_empty()),
            ("--mac", args.mac.is_some()),
        ];
        let given = for_plugins.iter().find(|(_, given)| *given);
        match (self, given) {
            (Self::None | Self::Hooks(_) | Self::Namespace(_), Some((option, _))) => {
                Err(ChoiceError::NotCni(option))
            }
            (Self::None, None) if !args.dns.is_empty() => Err(ChoiceError::NoNameServer),
            _ => Ok(()),
        }
    }
}

fn capabilities(args: &NetworkArgs) -> Result<Capabilities, ChoiceError> {
    for (position, published) in args.publish.iter().enumerate() {
        let earlier = &args.publish[..position];
        if earlier.iter().any(|earlier| published.collides(earlier)) {
            return Err(ChoiceError::Published(published.0.host_port));
        }
    }
    Ok(Capabilities {
        port_mappings: args.publish.iter().map(|one| one.0.clone()).collect(),
        ips: args.ip.clone(),
        mac: args.mac.clone(),
        dns: (!args.dns.is_empty()).then(|| RequestedDns {
            servers: args.dns.clone(),
            ..RequestedDns::default()
        }),
        ..Capabilities::default()
    })
}

/// Whether both paths name the same namespace; one that cannot be looked at is
/// no other's.
fn same_file(a: &Path, b: &Path) -> bool {
    let identity = |path| {
        let stat = rustix::fs::stat(path).ok()?;
        Some((stat.st_dev, stat.st_ino))
    };
    a == b || identity(a).is_some_and(|a| Some(a) == identity(b))
}

#[cfg(test)]
mod tests {
    use nacre_cni::RequestedIp;

    use super::*;

    fn choose(args: &NetworkArgs, bundle: Option<&str>) -> Result<Choice, ChoiceError> {
        Choice::of(args, bundle.map(Path::new))
    }

    fn net(text: &str) -> NetworkArgs {
        NetworkArgs {
            net: Some(text.parse().unwrap()),
            ..NetworkArgs::default()
        }
    }

    fn namespace(path: &str) -> Result<Choice, ChoiceError> {
        Ok(Choice::Namespace(path.into()))
    }

    #[test]
    fn the_network_of_bundle_and_command_line_must_agree() {
        let nothing = NetworkArgs::default();
        assert_eq!(choose(&nothing, None), Ok(Choice::None));
        assert_eq!(choose(&nothing, Some("/a")), namespace("/a"));
        assert_eq!(choose(&net("/a"), None), namespace("/a"));
        let proc = "/proc/self/ns/net";
        choose(&net("/proc/thread-self/ns/net"), Some(proc)).unwrap();
        for other in ["/dev/null", "cni", "cni:mynet"] {
            let result = choose(&net(other), Some(proc));
            assert!(
                matches!(result, Err(ChoiceError::Networks { .. })),
                "{other}"
            );
        }
        let none = choose(&net("none"), Some("/a"));
        assert_eq!(none, Err(ChoiceError::NoNetwork("/a".into())));
    }

    #[test]
    fn options_become_capabilities_of_a_cni_network() {
        let args = NetworkArgs {
            publish: vec!["8080:80".parse().unwrap()],
            ip: vec![RequestedIp::Address("10.0.0.7".parse().unwrap())],
            mac: Some("02:00:00:00:00:07".parse().unwrap()),
            dns: vec!["10.0.0.1".parse().unwrap()],
            ..net("cni:mynet")
        };
        let Ok(Choice::Cni(request)) = choose(&args, None) else {
            panic!("no CNI network");
        };
        assert_eq!(request.name, Some("mynet".parse().unwrap()));
        let capabilities = request.capabilities;
        assert_eq!(capabilities.port_mappings[0].host_port, 8080);
        assert_eq!(capabilities.ips, args.ip);
        assert_eq!(capabilities.mac, args.mac);
        assert_eq!(capabilities.dns.unwrap().servers, args.dns);
        let plain = choose(&net("cni"), None);
        assert_eq!(plain, Ok(Choice::Cni(Box::default())));
    }

    #[test]
    fn options_without_an_effect_are_refused() {
        let published = |network| NetworkArgs {
            publish: vec!["8080:80".parse().unwrap()],
            ..network
        };
        for network in [net("none"), net("/a"), NetworkArgs::default()] {
            let result = choose(&published(network), None);
            assert_eq!(result, Err(ChoiceError::NotCni("--publish")));
        }
        let dns = |network| NetworkArgs {
            dns: vec!["10.0.0.1".parse().unwrap()],
            ..network
        };
        assert_eq!(choose(&dns(net("/a")), None), namespace("/a"));
        let result = choose(&dns(net("none")), None);
        assert_eq!(result, Err(ChoiceError::NoNameServer));
        let mut twice = published(net("cni"));
        twice.publish.push("127.0.0.1:8080:81".parse().unwrap());
        assert_eq!(choose(&twice, None), Err(ChoiceError::Published(8080)));
    }
}
