//! What an operator may know of the pods of a host while they run.
//!
//! Each pod has an [entry](Entry) below [`PODS`]: who it is, and a socket that answers a few
//! questions by HTTP, for root alone. Nothing that can be asked changes the pod, and a pod that
//! is never asked spends no more on it than the socket. A guest is woken once for an answer, has
//! seconds for its part, and all of it is bounded.
//!
//! | path | answers |
//! | --- | --- |
//! | [`METRICS`] | the [exposition] of this pod, for Prometheus |
//! | [`REPORT`] | the same as a [`Report`], in JSON |
//! | [`PROCESSES`] | the [processes](ProcessReport) of its containers, in JSON |
//! | [`CONSOLE`] | the newest part of the guest's console: hostile words, control characters escaped |
//! | [`LOG`] | the newest lines of the shim's log, and of the monitor's |

mod client;
mod entry;
mod exposition;
mod report;
mod server;
mod trace_parent;

pub use self::client::{AskError, ask};
pub use self::entry::{Entry, Identity, Known, PODS, entries, remove};
pub use self::exposition::{CONTENT_TYPE, exposition};
pub use self::report::{
    CREATED, ContainerReport, HostProcess, InterfaceReport, PAUSED, PhaseReport, ProcessReport,
    RUNNING, Report, STOPPED, State, Usage,
};
pub use self::server::{Answer, serve};
pub use self::trace_parent::{NotATraceParent, TraceParent};

/// Path of the metrics.
pub const METRICS: &str = "/metrics";
/// Path of the report.
pub const REPORT: &str = "/pod";
/// Path of the list of processes.
pub const PROCESSES: &str = "/processes";
/// Path of the console.
pub const CONSOLE: &str = "/console";
/// Path of the log.
pub const LOG: &str = "/log";
