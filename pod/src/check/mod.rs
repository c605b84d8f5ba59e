//! Says whether this machine can run pods, and what to do where it cannot.
//!
//! What can be tried is tried: a version number or a flag says less than the
//! call itself. Nothing is changed and nothing is left behind.

mod boot;
mod capabilities;
mod cgroups;
mod cpu;
mod devices;
pub mod files;
mod host_kernel;
mod kvm;
mod namespaces;
mod probe;

use std::fmt;
use std::path::Path;

pub use self::boot::boot;
use self::cpu::Cpu;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Pods run, but slower or without something.
    Warn,
    /// No pod can run.
    Fail,
}

/// What was found about one thing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    /// How much it matters.
    pub verdict: Verdict,
    /// What was looked at.
    pub what: &'static str,
    /// How it is.
    pub detail: String,
    /// What to do about it; empty when there is nothing to do.
    pub advice: String,
}

impl Finding {
    /// As it should be.
    pub fn ok(what: &'static str, detail: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Ok,
            what,
            detail: detail.into(),
            advice: String::new(),
        }
    }

    /// Pods run, but slower or without something.
    pub fn warn(what: &'static str, detail: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Warn,
            advice: advice.into(),
            ..Self::ok(what, detail)
        }
    }

    /// No pod can run.
    pub fn fail(what: &'static str, detail: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Fail,
            advice: advice.into(),
            ..Self::ok(what, detail)
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        write!(f, "{verdict:4}  {}: {}", self.what, self.detail)?;
        if !self.advice.is_empty() {
            write!(f, " — {}", self.advice)?;
        }
        Ok(())
    }
}

/// The files that every pod is made of.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    /// The `nacre-vmm` binary.
    pub monitor: &'a Path,
    /// The guest kernel.
    pub kernel: &'a Path,
    /// The initramfs.
    pub initramfs: &'a Path,
}

/// Looks at what a pod needs of the machine, the most telling first. Takes some
/// milliseconds, and some seconds at most.
#[must_use]
pub fn machine() -> Vec<Finding> {
    let (mut findings, usable) = kvm::check(&Cpu::of_this_machine());
    if usable {
        findings.push(probe::check());
    }
    findings.extend([
        capabilities::check(),
        namespaces::check(),
        host_kernel::check(),
        cgroups::check(),
        devices::vhost_net(),
        devices::tun(),
    ]);
    findings
}

/// Whether pods run on a machine of which this was found.
#[must_use]
pub fn can_run(findings: &[Finding]) -> bool {
    findings
        .iter()
        .all(|finding| finding.verdict < Verdict::Fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line_with_what_to_do() {
        let fine = Finding::ok("KVM", "/dev/kvm");
        assert_eq!(fine.to_string(), "ok    KVM: /dev/kvm");
        let bad = Finding::fail("KVM", "no /dev/kvm", "load it");
        assert_eq!(bad.to_string(), "FAIL  KVM: no /dev/kvm — load it");
    }

    #[test]
    fn warnings_do_not_keep_pods_from_running() {
        let fine = Finding::ok("a", "");
        let slow = Finding::warn("b", "", "");
        let bad = Finding::fail("c", "", "");
        assert!(can_run(&[fine.clone(), slow.clone()]));
        assert!(!can_run(&[fine, bad, slow]));
    }

    #[test]
    fn looking_leaves_no_trace() {
        let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let namespaces = || std::fs::read_link("/proc/thread-self/ns/user").unwrap();
        let before = (mounts(), namespaces());
        let findings = machine();
        let mut names: Vec<_> = findings.iter().map(|finding| finding.what).collect();
        names.dedup();
        assert_eq!(names.len(), findings.len(), "one finding a subject");
        assert_eq!((mounts(), namespaces()), before);
    }
}
