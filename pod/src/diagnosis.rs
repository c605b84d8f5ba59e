//! Why a pod did not come up, or went down: one message for each cause.
//!
//! What the monitor said and what the guest wrote to its console are put beside
//! it, escaped and bounded: both may be hostile.

use std::fmt;
use std::time::Duration;

use nacre_vmm::client::ProcessEnd;
use nacre_vmm::control::ExitReason;
use thiserror::Error;

use crate::text;

/// Lines of a console or log that are shown.
const SHOWN_LINES: usize = 12;

/// How the guest's kernel begins its last words.
const PANIC: &str = "Kernel panic - not syncing: ";

/// What of a kernel's last words means that there was too little memory.
const OUT_OF_MEMORY: &[&str] = &[
    "System is deadlocked on memory",
    "Out of memory",
    "out of memory",
    "Initramfs unpacking failed: write error",
    "Failed to allocate",
    "failed to allocate",
];

/// Why there is no guest (any more).
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum Cause {
    /// The monitor said why it could not go on.
    #[error("the monitor could not run the virtual machine: {0}")]
    Monitor(String),
    /// The monitor ended by itself before the kernel ran.
    #[error("the monitor {0} before it started the guest kernel")]
    MonitorEndedEarly(String),
    /// The monitor ended by itself while the guest ran.
    #[error("the monitor {0} while the guest was running")]
    MonitorEnded(String),
    /// The guest's kernel gave up.
    #[error("the guest kernel panicked: {0}")]
    Panic(String),
    /// It gave up for want of memory.
    #[error("the guest has too little memory to boot (give it more): {0}")]
    TooLittleMemory(String),
    /// A vCPU shut down.
    #[error(
        "the guest kernel crashed without a word (triple fault): is it built for this machine?"
    )]
    TripleFault,
    /// The guest ended before its agent served.
    #[error("the guest powered off or reset before its agent was ready")]
    ResetEarly,
    /// The guest ended, unasked.
    #[error("the guest powered off or reset while it was in use")]
    Reset,
    /// The monitor does not come to start the kernel.
    #[error("the monitor did not start the guest kernel within {} s", .0.as_secs())]
    NoKernel(Duration),
    /// The kernel runs, the agent does not come.
    #[error(
        "the guest kernel runs, but its agent did not answer within {} s: is the initramfs Nacre's? \
         (a slow machine needs a longer boot timeout)", .0.as_secs()
    )]
    NoAgent(Duration),
    /// The agent came, and answers no call.
    #[error("the agent in the guest has come up, but does not answer")]
    AgentSilent,
    /// The agent was there and is gone.
    #[error("the agent in the guest has died")]
    AgentDied,
}

/// A [`Cause`] with what was last heard.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Diagnosis {
    /// Why.
    pub cause: Cause,
    /// Last lines of the guest's console.
    pub console: Vec<String>,
    /// Last lines of the monitor's log.
    pub log: Vec<String>,
}

impl std::error::Error for Diagnosis {}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.cause)?;
        for (name, lines) in [("monitor", &self.log), ("guest console", &self.console)] {
            if !lines.is_empty() {
                write!(f, "\n  last lines of the {name}:")?;
            }
            for line in lines {
                write!(f, "\n  | {line}")?;
            }
        }
        Ok(())
    }
}

/// What is known when something has gone wrong.
#[derive(Clone, Debug, Default)]
pub(crate) struct Evidence {
    /// The guest's kernel was started.
    pub(crate) kernel_entered: bool,
    /// The agent had connected.
    pub(crate) agent_ready: bool,
    /// The agent's connection has closed.
    pub(crate) agent_gone: bool,
    /// How the monitor's process ended, if it has.
    pub(crate) process: Option<ProcessEnd>,
    /// Why the monitor ended the virtual machine, in its own words.
    pub(crate) reason: Option<ExitReason>,
    /// The guest's console.
    pub(crate) console: String,
    /// The monitor's log.
    pub(crate) log: String,
    /// How long was waited, if that was the problem.
    pub(crate) waited: Option<Duration>,
}

impl Evidence {
    pub(crate) fn diagnose(&self) -> Diagnosis {
        let cause = self.cause();
        let monitor_talks = !matches!(cause, Cause::Panic(_) | Cause::TooLittleMemory(_));
        let log = if monitor_talks { &self.log[..] } else { "" };
        Diagnosis {
            cause,
            console: text::last_lines(&self.console, SHOWN_LINES),
            log: text::last_lines(log, SHOWN_LINES),
        }
    }

    fn cause(&self) -> Cause {
        if let Some(ExitReason::Failed(why)) = &self.reason {
            return Cause::Monitor(text::one_line(why));
        }
        if let Some(words) = self.last_words() {
            return words;
        }
        match (&self.reason, self.process) {
            (Some(ExitReason::TripleFault), _) => Cause::TripleFault,
            (Some(ExitReason::GuestReset), _) if self.agent_ready => Cause::Reset,
            (Some(ExitReason::GuestReset), _) => Cause::ResetEarly,
            (_, Some(end)) if self.kernel_entered => Cause::MonitorEnded(end.to_string()),
            (_, Some(end)) => Cause::MonitorEndedEarly(end.to_string()),
            (_, None) if self.agent_gone => Cause::AgentDied,
            (_, None) if self.agent_ready => Cause::AgentSilent,
            (_, None) => {
                let waited = self.waited.unwrap_or_default();
                if self.kernel_entered {
                    Cause::NoAgent(waited)
                } else {
                    Cause::NoKernel(waited)
                }
            }
        }
    }

    /// What a kernel that panicked says, if this one did.
    fn last_words(&self) -> Option<Cause> {
        let (_, after) = self.console.rsplit_once(PANIC)?;
        let words = text::one_line(after.lines().next().unwrap_or_default());
        let is_memory =
            !self.agent_ready && OUT_OF_MEMORY.iter().any(|sign| self.console.contains(sign));
        Some(if is_memory {
            Cause::TooLittleMemory(words)
        } else {
            Cause::Panic(words)
        })
    }
}

#[cfg(test)]
#[path = "diagnosis_test.rs"]
mod tests;
