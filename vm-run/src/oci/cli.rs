//! The command line of an OCI runtime: the verbs and options that engines know from runc.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::state;

/// Options before the verb.
#[derive(Args, Clone, Debug)]
pub(crate) struct GlobalArgs {
    /// Say in detail what is done
    #[arg(long)]
    pub(crate) debug: bool,

    /// Write messages to this file, too
    #[arg(long, value_name = "FILE")]
    pub(crate) log: Option<PathBuf>,

    /// Form of the messages
    #[arg(long, value_name = "text|json", default_value = "text")]
    pub(crate) log_format: LogFormat,

    /// Directory for the state of containers; best on a tmpfs
    #[arg(long, value_name = "DIR", default_value_os_t = state::default_root().to_owned())]
    pub(crate) root: PathBuf,

    /// linux.cgroupsPath is of the form slice:prefix:name
    #[arg(long)]
    pub(crate) systemd_cgroup: bool,

    /// Only for the sake of callers of runc: root is needed
    #[arg(long, hide = true, value_name = "WHEN")]
    pub(crate) rootless: Option<String>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

impl GlobalArgs {
    /// The same for another process, whose working directory may be another.
    pub(crate) fn to_args(&self) -> Vec<OsString> {
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        let mut args: Vec<OsString> = vec!["--root".into(), absolute(&self.root).into()];
        if let Some(log) = &self.log {
            args.extend(["--log".into(), absolute(log).into()]);
        }
        if self.log_format == LogFormat::Json {
            args.push("--log-format=json".into());
        }
        if self.debug {
            args.push("--debug".into());
        }
        args
    }
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Create a container: all of it, up to its program being started
    Create(CreateArgs),
    /// Start the program of a created container
    Start(ContainerArgs),
    /// Create a container and start it
    Run(RunArgs),
    /// Print the state of a container
    State(ContainerArgs),
    /// Send a signal to the first process of a container
    Kill(KillArgs),
    /// Remove what is left of a container that has stopped
    Delete(DeleteArgs),
    /// Execute a further process in a container
    Exec(Box<ExecArgs>),
    /// List containers
    List(ListArgs),
    /// List the processes of a container as ps(1) does, by their numbers in its guest
    ///
    /// Where there is no such container, ID may also be a pod that containerd has started: the
    /// beginning of its identifier, or NAMESPACE/NAME in Kubernetes. The list then says of each
    /// process to which of the pod's containers it belongs.
    Ps(PsArgs),
    /// Freeze the processes of a container
    Pause(ContainerArgs),
    /// Let the processes of a paused container go on
    Resume(ContainerArgs),
    /// Change the limits of a container
    Update(UpdateArgs),
    /// Print what a container uses, and when processes of it were killed for want of memory
    Events(EventsArgs),
    /// Write a config.json to begin with
    Spec(SpecArgs),
    /// Print what a bundle may ask for
    Features,
    #[command(hide = true)]
    Keep(ContainerArgs),
    #[command(hide = true)]
    Attend(ContainerArgs),
}

#[derive(Args, Debug)]
pub(crate) struct ContainerArgs {
    /// The container
    #[arg(value_name = "ID")]
    pub(crate) id: String,
}

#[derive(Args, Debug)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    pub(crate) container: ContainerArgs,

    /// The bundle: a directory with config.json [default: the working directory]
    #[arg(long, short, value_name = "DIR")]
    pub(crate) bundle: Option<PathBuf>,

    /// Unix socket that gets the outer side of the container's terminal
    #[arg(long, value_name = "SOCKET")]
    pub(crate) console_socket: Option<PathBuf>,

    /// Write the container's process identifier to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,

    /// Pass on those of N further descriptors that are open; there must be none, since they do
    /// not cross into a guest
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) preserve_fds: u32,

    /// Without effect: the guest's root is made for the container
    #[arg(long, hide = true)]
    pub(crate) no_pivot: bool,

    /// Without effect: the guest's keyrings are its own
    #[arg(long, hide = true)]
    pub(crate) no_new_keyring: bool,
}

#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) create: CreateArgs,

    /// Return when the container has been started
    #[arg(long, short)]
    pub(crate) detach: bool,

    /// Keep the state of the container when it has ended
    #[arg(long)]
    pub(crate) keep: bool,

    /// Without effect
    #[arg(long, hide = true)]
    pub(crate) no_subreaper: bool,
}

#[derive(Args, Debug)]
pub(crate) struct KillArgs {
    #[command(flatten)]
    pub(crate) container: ContainerArgs,

    /// Name or number
    #[arg(value_name = "SIGNAL", default_value = "SIGTERM")]
    pub(crate) signal: String,

    /// To all processes of the container
    #[arg(long, short)]
    pub(crate) all: bool,
}

#[derive(Args, Debug)]
pub(crate) struct DeleteArgs {
    #[command(flatten)]
    pub(crate) container: ContainerArgs,

    /// Kill it first if it runs; one that does not exist is no error
    #[arg(long, short)]
    pub(crate) force: bool,
}

#[derive(Args, Debug)]
pub(crate) struct ExecArgs {
    /// The container
    #[arg(value_name = "ID")]
    pub(crate) id: String,

    /// The program and its arguments
    #[arg(
        value_name = "COMMAND",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub(crate) args: Vec<String>,

    /// File with the specification's `process`
    #[arg(long, short, value_name = "FILE")]
    pub(crate) process: Option<PathBuf>,

    /// Working directory
    #[arg(long, value_name = "DIR")]
    pub(crate) cwd: Option<String>,

    /// Further variable of the environment; may be repeated
    #[arg(long, short, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,

    /// With a terminal
    #[arg(long, short)]
    pub(crate) tty: bool,

    /// User and group, by numbers; without the latter, the group is the container's
    #[arg(long, short, value_name = "UID[:GID]")]
    pub(crate) user: Option<String>,

    /// Further group; may be repeated
    #[arg(long, short = 'g', value_name = "GID")]
    pub(crate) additional_gids: Vec<u32>,

    /// Return when the process has been started
    #[arg(long, short)]
    pub(crate) detach: bool,

    /// Write the identifier of a process that lives as long to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,

    /// Unix socket that gets the outer side of the terminal
    #[arg(long, value_name = "SOCKET")]
    pub(crate) console_socket: Option<PathBuf>,

    /// Further capability; may be repeated
    #[arg(long, short, value_name = "CAP_NAME")]
    pub(crate) cap: Vec<String>,

    /// Set no_new_privs
    #[arg(long)]
    pub(crate) no_new_privs: bool,

    /// AppArmor profile
    #[arg(long, value_name = "PROFILE")]
    pub(crate) apparmor: Option<String>,

    /// SELinux label
    #[arg(long, value_name = "LABEL")]
    pub(crate) process_label: Option<String>,

    /// Pass on those of N further descriptors that are open; there must be none, since they do
    /// not cross into a guest
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) preserve_fds: u32,

    /// Also in a container that is paused
    #[arg(long)]
    pub(crate) ignore_paused: bool,

    /// The container's cgroup to run in; must be /, its topmost
    #[arg(long, value_name = "PATH")]
    pub(crate) cgroup: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    /// Form of the list
    #[arg(long, short, value_name = "table|json", default_value = "table")]
    pub(crate) format: ListFormat,

    /// Only the identifiers
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

#[derive(Args, Debug)]
pub(crate) struct PsArgs {
    #[command(flatten)]
    pub(crate) container: ContainerArgs,

    /// Form of the list
    #[arg(long, short, value_name = "table|json", default_value = "table")]
    pub(crate) format: ListFormat,

    /// Options of ps(1): -e, -f, and -o with a list of columns
    #[arg(
        value_name = "OPTION",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub(crate) options: Vec<String>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum ListFormat {
    Table,
    Json,
}

#[derive(Args, Debug)]
pub(crate) struct UpdateArgs {
    /// The container
    #[arg(value_name = "ID")]
    pub(crate) id: String,

    /// File with the specification's linux.resources, or `-` for standard input; all other
    /// options are then without effect
    #[arg(long, short, value_name = "FILE")]
    pub(crate) resources: Option<PathBuf>,

    /// Microseconds of CPU time in a period
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub(crate) cpu_quota: Option<i64>,

    /// Length of a period, microseconds
    #[arg(long, value_name = "N")]
    pub(crate) cpu_period: Option<u64>,

    /// Microseconds that may be saved up
    #[arg(long, value_name = "N")]
    pub(crate) cpu_burst: Option<u64>,

    /// Share of CPU time among containers
    #[arg(long, value_name = "N")]
    pub(crate) cpu_share: Option<u64>,

    /// 1: only CPU time that nothing else in the guest wants; 0: a share of it again
    #[arg(long, value_name = "0|1", allow_hyphen_values = true)]
    pub(crate) cpu_idle: Option<i64>,

    /// CPUs of the host to run on, such as 0-2,5
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_cpus: Option<String>,

    /// Must be empty: memory nodes are the host's
    #[arg(long, value_name = "LIST", hide = true)]
    pub(crate) cpuset_mems: Option<String>,

    /// Share of the guest's disks among containers, from 10 to 1000
    #[arg(long, value_name = "N")]
    pub(crate) blkio_weight: Option<u16>,

    /// Memory limit in bytes, or with a unit; -1 is none
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) memory: Option<String>,

    /// Memory that is left to the container when memory is short
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) memory_reservation: Option<String>,

    /// Limit of memory and swap space together; -1 is none
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub(crate) memory_swap: Option<String>,

    /// Most processes; -1 is no limit
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub(crate) pids_limit: Option<i64>,
}

#[derive(Args, Debug)]
pub(crate) struct EventsArgs {
    /// The container
    #[arg(value_name = "ID")]
    pub(crate) id: String,

    /// Once, then end
    #[arg(long)]
    pub(crate) stats: bool,

    /// Time between two events
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) interval: u64,
}

#[derive(Args, Debug)]
pub(crate) struct SpecArgs {
    /// The bundle's directory [default: the working directory]
    #[arg(long, short, value_name = "DIR")]
    pub(crate) bundle: Option<PathBuf>,

    /// For a caller that is not root, which a container cannot do without
    #[arg(long, hide = true)]
    pub(crate) rootless: bool,
}
