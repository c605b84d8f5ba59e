//! The command line.

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use nacre_pod::assets::{Choices, Given};

use crate::size::Mebibytes;

/// Runs OCI bundles in micro-VMs of their own.
#[derive(Debug, Parser)]
#[command(name = "vm-run", version, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the bundle in DIR and exit with the status of its process
    Bundle(BundleArgs),
    /// Say whether this machine can run pods, and what to do where it cannot
    Check(CheckArgs),
}

#[derive(Args, Debug)]
pub(crate) struct BundleArgs {
    /// The bundle: a directory with config.json and the container's root
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,

    /// Memory of the guest: a number of MiB, or with a unit such as 512M or 1G
    /// [default: 512M, or the container's limit and 128M for the guest itself]
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<Mebibytes>,

    /// Number of the guest's CPUs [default: what the container's quota amounts to, or 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=i64::from(nacre_pod::boot::MAX_VCPUS)))]
    pub(crate) cpus: Option<u8>,

    /// Network: `none`, or a network namespace such as /run/netns/NAME whose
    /// interfaces the guest takes over [default: the namespace that the bundle
    /// names, or none]
    #[arg(long, value_name = "none|PATH")]
    pub(crate) net: Option<Net>,

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
    /// A network namespace.
    Namespace(PathBuf),
}

impl std::str::FromStr for Net {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let path = text.strip_prefix("netns:").unwrap_or(text);
        match path {
            "none" if path == text => Ok(Self::None),
            _ if path.contains('/') => Ok(Self::Namespace(path.into())),
            _ => Err("give `none` or the path of a network namespace, such as /run/netns/NAME"),
        }
    }
}

/// Identifiers as the agent takes them; they become names of directories.
fn container_id(text: &str) -> Result<String, &'static str> {
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
            "--net=/run/netns/x",
            "--kernel=k",
            "--initramfs=i",
            "--id=web-1",
            "--boot-timeout=5",
            "--timing",
            "--debug",
            "dir",
        ])
        .unwrap();
        assert_eq!(args.memory.unwrap().0, 1024);
        assert_eq!(args.net, Some(Net::Namespace("/run/netns/x".into())));
        assert_eq!((args.cpus, args.boot_timeout), (Some(2), 5));
    }

    #[test]
    fn networks_are_none_or_a_path() {
        assert_eq!("none".parse(), Ok(Net::None));
        assert_eq!("netns:/a".parse(), Ok(Net::Namespace("/a".into())));
        assert_eq!("./none".parse(), Ok(Net::Namespace("./none".into())));
        for text in ["", "host", "bridge", "netns:none"] {
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
            &[],
        ] {
            assert!(parse(args).is_err(), "{args:?}");
        }
    }
}
