//! The command line for pods that containerd has started.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::oci::cli::ListFormat;

/// The verbs, all of which only look.
#[derive(Debug, Subcommand)]
pub(crate) enum PodVerb {
    /// List the pods on this host that containerd has started
    Pods(PodsArgs),
    /// Print what pods that containerd has started use, as metrics for Prometheus
    ///
    /// Each pod is asked at the same time as the others. One that does not answer in time is
    /// in the list with `nacre_pod_up` 0, and the exit status is still 0.
    Metrics(MetricsArgs),
    /// Print how the starts of pods that containerd has started went, as traces of OpenTelemetry
    ///
    /// Prints one line of OTLP's JSON, which a collector takes by HTTP at `/v1/traces` and reads
    /// from files. A start belongs to the trace of containerd's call, if containerd keeps one,
    /// and to one of its own if not.
    Trace(TraceArgs),
    /// Print the newest part of what the guest's kernel has written to its console
    ///
    /// A guest whose kernel is well writes nothing. What it writes is not to be trusted:
    /// control characters are escaped.
    Console(ConsoleArgs),
    /// Print the newest lines of the log of a pod's shim and of its monitor
    ///
    /// The shim's lines are also in containerd's log, and stay there when the pod is gone.
    /// What containers print is kept by containerd: `crictl logs` or `kubectl logs`.
    Logs(LogsArgs),
}

#[derive(Args, Debug)]
pub(crate) struct PodsArgs {
    /// Form of the list
    #[arg(long, short, value_name = "table|json", default_value = "table")]
    pub(crate) format: ListFormat,

    #[command(flatten)]
    pub(crate) patience: Patience,
}

#[derive(Args, Debug)]
pub(crate) struct MetricsArgs {
    /// Only this pod: the beginning of its identifier, or NAMESPACE/NAME in Kubernetes
    #[arg(value_name = "POD")]
    pub(crate) pod: Option<String>,

    /// Write to this file, in one piece, for node_exporter's textfile collector
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) patience: Patience,
}

#[derive(Args, Debug)]
pub(crate) struct TraceArgs {
    /// Only this pod: the beginning of its identifier, or NAMESPACE/NAME in Kubernetes
    #[arg(value_name = "POD")]
    pub(crate) pod: Option<String>,

    #[command(flatten)]
    pub(crate) patience: Patience,
}

#[derive(Args, Debug)]
pub(crate) struct ConsoleArgs {
    /// The beginning of the pod's identifier, or NAMESPACE/NAME in Kubernetes
    #[arg(value_name = "POD")]
    pub(crate) pod: String,

    /// Go on with what is written later, until the pod is gone
    #[arg(long, short)]
    pub(crate) follow: bool,

    #[command(flatten)]
    pub(crate) patience: Patience,
}

#[derive(Args, Debug)]
pub(crate) struct LogsArgs {
    /// The beginning of the pod's identifier, or NAMESPACE/NAME in Kubernetes
    #[arg(value_name = "POD")]
    pub(crate) pod: String,

    #[command(flatten)]
    pub(crate) patience: Patience,
}

/// How long a pod may take to answer.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// How long a pod may take to answer
    #[arg(long, value_name = "SECONDS", default_value_t = Self::DEFAULT, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub(crate) timeout: u64,
}

impl Patience {
    /// Longer than a pod takes whose guest hangs, shorter than Prometheus waits for a scrape.
    const DEFAULT: u64 = 6;

    pub(crate) fn limit(self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            timeout: Self::DEFAULT,
        }
    }
}
