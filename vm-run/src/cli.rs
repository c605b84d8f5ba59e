//! The command line.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Args, Parser, Subcommand};
use nacre_cni::{HardwareAddress, NetworkName, RequestedIp};
use nacre_pod::assets::{Choices, Given};

use crate::image::ImageArgs;
use crate::network::Published;
use crate::oci::cli::{GlobalArgs, Verb};
use crate::pods::cli::PodVerb;
use crate::size::Mebibytes;

/// Runs OCI bundles in micro-VMs of their own.
#[derive(Debug, Parser)]
#[command(name = "vm-run", version, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) globals: GlobalArgs,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the bundle in DIR and exit with the status of its process
    Bundle(BundleArgs),
    /// Run a container of an image and exit with the status of its process
    Image(Box<ImageArgs>),
    /// Say whether this machine can run pods, and what to do where it cannot
    Check(CheckArgs),
    /// Remove what is left of the CNI networks of pods whose `vm-run` was killed
    Gc,
    /// Write the manual pages into DIR, which must be there
    #[command(hide = true)]
    Manual(ManualArgs),
    #[command(flatten)]
    Pods(PodVerb),
    #[command(flatten)]
    Oci(Verb),
}

#[derive(Args, Debug)]
pub(crate) struct ManualArgs {
    /// Where to write to
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
}

#[derive(Args, Debug)]
pub(crate) struct BundleArgs {
    /// The bundle: a directory with config.json and the container's root
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,

    #[command(flatten)]
    pub(crate) pod: PodArgs,
}

/// What a pod is to be like, whatever runs in it.
#[derive(Args, Debug)]
pub(crate) struct PodArgs {
    /// Memory of the guest: a number of MiB, or with a unit such as 512M or 1G
    /// [default: 512M, or the container's limit and 128M for the guest itself]
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<Mebibytes>,

    /// Number of the guest's CPUs [default: what the container's quota amounts to, or 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=i64::from(nacre_pod::boot::MAX_VCPUS)))]
    pub(crate) cpus: Option<u8>,

    #[command(flatten)]
    pub(crate) network: NetworkArgs,

    /// Guest kernel: an uncompressed vmlinux
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,

    /// Initramfs with the agent
    #[arg(long, value_name = "FILE")]
    pub(crate) initramfs: Option<PathBuf>,

    /// Name of the container [default: made up]
    #[arg(long, value_name = "ID", value_parser = container_id)]
    pub(crate) id: Option<String>,

    /// How long the guest may take to boot
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub(crate) boot_timeout: u32,

    /// Print when each phase was reached, and what it cost, when all is over
    #[arg(long)]
    pub(crate) timing: bool,

    /// Print what the front door and the monitor do, and the guest's boot messages
    #[arg(long)]
    pub(crate) debug: bool,
}

#[derive(Args, Debug, Default)]
pub(crate) struct NetworkArgs {
    /// Network: `none`; `cni`, the first one in /etc/cni/net.d, or `cni:NAME`;
    /// or the path of a network namespace such as /run/netns/NAME whose interfaces
    /// the guest takes over [default: the namespace that the bundle names, or none]
    #[arg(long, value_name = "none|cni[:NAME]|[netns:]PATH")]
    pub(crate) net: Option<Net>,

    /// Let a port of the host lead to one of the container; may be repeated.
    /// Needs --net=cni and a network with the plugin portmap
    #[arg(long, short, value_name = "[IP:]HOST:GUEST[/tcp|udp]")]
    pub(crate) publish: Vec<Published>,

    /// Address that the CNI network is to give; may be repeated
    #[arg(long, value_name = "IP[/PREFIX]", value_parser = wanted_ip)]
    pub(crate) ip: Vec<RequestedIp>,

    /// MAC address that the CNI network is to give
    #[arg(long, value_name = "MAC", value_parser = ethernet_address)]
    pub(crate) mac: Option<HardwareAddress>,

    /// Name server for the container's /etc/resolv.conf, in place of the network's;
    /// may be repeated
    #[arg(long, value_name = "IP")]
    pub(crate) dns: Vec<IpAddr>,
}

#[derive(Args, Debug)]
pub(crate) struct CheckArgs {
    /// Boot a pod, too
    #[arg(long)]
    pub(crate) boot: bool,

    /// Guest kernel: an uncompressed vmlinux
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,

    /// Initramfs with the agent
    #[arg(long, value_name = "FILE")]
    pub(crate) initramfs: Option<PathBuf>,
}

/// The network of a pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Net {
    /// Only `lo`.
    None,
    /// The CNI network of this name, or the first one.
    Cni(Option<NetworkName>),
    /// A network namespace.
    Namespace(PathBuf),
}

impl FromStr for Net {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            None if text == "none" => Ok(Self::None),
            None if text == "cni" => Ok(Self::Cni(None)),
            Some(("cni", name)) => match name.parse() {
                Ok(name) => Ok(Self::Cni(Some(name))),
                Err(error) => Err(error.to_string()),
            },
            Some(("netns", path)) if path.contains('/') => Ok(Self::Namespace(path.into())),
            _ if text.contains('/') => Ok(Self::Namespace(text.into())),
            _ => Err(
                "give `none`, `cni`, `cni:NAME`, or the path of a network namespace, such \
                      as /run/netns/NAME"
                    .into(),
            ),
        }
    }
}

/// For [`Net`] on the command line.
impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Cni(None) => f.write_str("cni"),
            Self::Cni(Some(name)) => write!(f, "cni:{name}"),
            Self::Namespace(path) => path.display().fmt(f),
        }
    }
}

fn wanted_ip(text: &str) -> Result<RequestedIp, &'static str> {
    let wrong = "give an address such as 10.10.0.7 or 10.10.0.7/16";
    if text.contains('/') {
        text.parse().map(RequestedIp::Net).map_err(|_| wrong)
    } else {
        text.parse().map(RequestedIp::Address).map_err(|_| wrong)
    }
}

fn ethernet_address(text: &str) -> Result<HardwareAddress, String> {
    let address: HardwareAddress = text.parse().map_err(|error| format!("{error}"))?;
    match address.ethernet() {
        Some([first, ..]) if first & 1 == 0 => Ok(address),
        _ => Err("must be six bytes, and no multicast address".into()),
    }
}

/// Identifiers as the agent takes them; they become names of directories.
pub(crate) fn container_id(text: &str) -> Result<String, &'static str> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if text.is_empty() || text.len() > 128 || text.starts_with('.') || !text.chars().all(is_allowed)
    {
        return Err("must be 1 to 128 of A-Z, a-z, 0-9, `_`, `.`, `-`, not starting with a dot");
    }
    Ok(text.to_owned())
}

/// The files that a pod needs, as far as the command line names them.
pub(crate) fn files<'a>(kernel: Option<&'a Path>, initramfs: Option<&'a Path>) -> Choices<'a> {
    Choices {
        monitor: Given::default(),
        kernel: Given {
            path: kernel,
            by: Some("--kernel"),
        },
        initramfs: Given {
            path: initramfs,
            by: Some("--initramfs"),
        },
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(args: &[&str]) -> Result<BundleArgs, clap::Error> {
        let args = ["vm-run", "bundle"].iter().chain(args);
        match Cli::try_parse_from(args)?.command {
            Command::Bundle(args) => Ok(args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_option_is_understood() {
        let args = parse(&[
            "--memory=1G",
            "--cpus=2",
            "--net=cni:mynet",
            "-p=8080:80",
            "--publish=[::1]:53:53/udp",
            "--ip=10.10.0.7",
            "--ip=fd00::7/64",
            "--mac=02:00:00:00:00:07",
            "--dns=10.10.0.1",
            "--kernel=k",
            "--initramfs=i",
            "--id=web-1",
            "--boot-timeout=5",
            "--timing",
            "--debug",
            "dir",
        ])
        .unwrap()
        .pod;
        assert_eq!(args.memory.unwrap().0, 1024);
        let network = &args.network;
        assert_eq!(network.net, Some(Net::Cni(Some("mynet".parse().unwrap()))));
        assert_eq!((network.publish.len(), network.ip.len()), (2, 2));
        assert_eq!(network.dns, ["10.10.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!((args.cpus, args.boot_timeout), (Some(2), 5));
    }

    #[test]
    fn networks_are_none_or_of_cni_or_a_path() {
        let namespace = |path: &str| Ok(Net::Namespace(path.into()));
        assert_eq!("none".parse(), Ok(Net::None));
        assert_eq!("cni".parse(), Ok(Net::Cni(None)));
        let named = Net::Cni(Some("a.b".parse().unwrap()));
        assert_eq!("cni:a.b".parse(), Ok(named.clone()));
        assert_eq!(named.to_string(), "cni:a.b");
        assert_eq!("netns:/a".parse(), namespace("/a"));
        assert_eq!("/run/a:b".parse(), namespace("/run/a:b"));
        assert_eq!("./none".parse(), namespace("./none"));
        for text in [
            "",
            "host",
            "bridge",
            "netns:none",
            "cni:",
            "cni:/a",
            "cni:.a",
        ] {
            assert!(text.parse::<Net>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for args in [
            &["--cpus=0", "d"][..],
            &["--cpus=200", "d"],
            &["--memory=lots", "d"],
            &["--id=../x", "d"],
            &["--id=.x", "d"],
            &["--boot-timeout=0", "d"],
            &["--ip=10.0.0.256", "d"],
            &["--mac=03:00:00:00:00:07", "d"],
            &["--mac=02:00:00:00:00:00:00:07", "d"],
            &["--dns=example.org", "d"],
            &["-p=80", "d"],
            &[],
        ] {
            assert!(parse(args).is_err(), "{args:?}");
        }
    }
}
