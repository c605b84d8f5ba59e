//! From nothing to an agent that serves.
//!
//! [`launch`] returns as soon as the monitor's process exists, so that the share
//! is filled while the kernel boots; [`Booting::ready`] waits for the rest.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nacre_protocol::agent::SetUpPodRequest;
use nacre_protocol::{AGENT_PORT, GUEST_CID, READY_PORT, SHARE_TAG};
use nacre_vmm::client::{Launch, Monitor, SpawnError};
use nacre_vmm::config::MonitorConfig;
pub use nacre_vmm::config::{MAX_MEMORY_MIB, MAX_VCPUS, MIN_MEMORY_MIB};
use rustix::pipe::{PipeFlags, pipe_with};
use thiserror::Error;
use tokio::time::Instant;

use crate::agent::{Agent, AgentError, GuestInfo};
use crate::cgroup::HostCgroup;
use crate::diagnosis::{Diagnosis, Evidence};
use crate::host::PrivateMounts;
use crate::monitor::{Machine, State};
use crate::network::{Changes, Nic};

/// Bytes of randomness that a guest gets for its own generator.
const SEED: usize = 64;

/// What a pod is made of.
#[derive(Debug)]
pub struct BootConfig<'a> {
    /// The `nacre-vmm` binary.
    pub monitor: &'a Path,
    /// The guest kernel.
    pub kernel: &'a Path,
    /// The initramfs.
    pub initramfs: &'a Path,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// How many of them are online when the pod is ready.
    pub cpus_online: u8,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// The guest's kernel logs everything, not only errors.
    pub verbose_kernel: bool,
    /// How long the guest may take until its agent serves.
    pub timeout: Duration,
    /// Network interfaces besides `lo`.
    pub nics: Vec<Nic>,
    /// What may change of them while the pod runs.
    pub changes: Option<Changes>,
    /// Host name of the guest; empty keeps the kernel's.
    pub hostname: String,
    /// The cgroup of the host to run in; `None`: the caller's.
    pub cgroup: Option<&'a HostCgroup>,
}

/// Why a pod did not boot.
#[derive(Debug, Error)]
pub enum BootError {
    /// KVM cannot be used.
    #[error("cannot open /dev/kvm: {source}{} (`vm-run check` tells more)", kvm_advice(.source))]
    Kvm {
        /// The system's answer.
        source: io::Error,
    },
    /// A file that is needed cannot be read.
    #[error("cannot read the {what} {}: {source}", path.display())]
    File {
        /// Which.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The kernel is none.
    #[error("{} is no guest kernel: {reason}", path.display())]
    NoKernel {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        reason: &'static str,
    },
    /// The monitor's process did not come to be.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// Something on the way needs what the system does not give.
    #[error("cannot boot the pod: {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The guest did not come up.
    #[error("{0}")]
    Guest(Box<Diagnosis>),
    /// The agent could not prepare the guest.
    #[error("cannot prepare the guest: {0}")]
    SetUp(AgentError),
}

impl BootError {
    fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System {
            what,
            source: source.into(),
        }
    }
}

fn kvm_advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => {
            ": this machine has no KVM: enable virtualisation in its firmware, or nested \
             virtualisation in its hypervisor, and load kvm_intel or kvm_amd"
        }
        io::ErrorKind::PermissionDenied => ": run as root, or as a member of the group kvm",
        _ => "",
    }
}

/// A pod whose monitor runs and whose agent is waited for.
#[derive(Debug)]
pub struct Booting {
    machine: Machine,
    set_up: SetUpPodRequest,
    changes: Option<Changes>,
    timeout: Duration,
}

/// A pod whose agent serves.
#[derive(Debug)]
pub(crate) struct Booted {
    pub(crate) machine: Machine,
    pub(crate) agent: Agent,
    pub(crate) guest: GuestInfo,
    pub(crate) changes: Option<Changes>,
}

/// Starts the monitor. Call it on a thread that lasts: the monitor ends with it.
///
/// # Errors
/// [`BootError`]; nothing is then left.
pub fn launch(config: BootConfig<'_>, mounts: &PrivateMounts) -> Result<Booting, BootError> {
    let set_up = set_up_request(&config);
    let monitor_config = MonitorConfig {
        vcpus: config.vcpus,
        memory_mib: config.memory_mib,
        verbose_kernel: config.verbose_kernel,
        guest_cid: GUEST_CID,
        host_ports: vec![READY_PORT],
        share_tag: SHARE_TAG.to_owned(),
        share: mounts.share_path().to_owned(),
        jail: mounts.jail_path().to_owned(),
        network: config.nics.iter().map(|nic| nic.config.clone()).collect(),
    };
    let kvm = File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .map_err(|source| BootError::Kvm { source })?;
    let (log, log_writer) =
        pipe_with(PipeFlags::CLOEXEC).map_err(BootError::system("pipe for the log"))?;
    let cgroup = config.cgroup.map(HostCgroup::dir).transpose();
    let monitor = Monitor::spawn(Launch {
        binary: config.monitor,
        config: &monitor_config,
        kvm: kvm.into(),
        kernel: open_kernel(config.kernel)?,
        initramfs: open("initramfs", config.initramfs)?.into(),
        network: config.nics.into_iter().map(|nic| nic.fds).collect(),
        log: log_writer,
        cgroup: cgroup.map_err(BootError::system("cgroup"))?,
    })?;
    let machine = Machine::watch(monitor, log).map_err(BootError::system("control socket"))?;
    Ok(Booting {
        machine,
        set_up,
        changes: config.changes,
        timeout: config.timeout,
    })
}

fn set_up_request(config: &BootConfig<'_>) -> SetUpPodRequest {
    let nics = config.nics.iter();
    SetUpPodRequest {
        hostname: config.hostname.clone(),
        cpus: config.cpus_online.into(),
        interfaces: nics.clone().map(|nic| nic.interface.clone()).collect(),
        policy_rules: nics.flat_map(|nic| nic.policy_rules.clone()).collect(),
        ..Default::default()
    }
}

fn open(what: &'static str, path: &Path) -> Result<File, BootError> {
    File::open(path).map_err(|source| BootError::File {
        what,
        path: path.to_owned(),
        source,
    })
}

/// Opens the kernel and looks at its first bytes: a file that cannot be one is
/// told apart here, before a monitor is started for it.
fn open_kernel(path: &Path) -> Result<OwnedFd, BootError> {
    let mut file = open("guest kernel", path)?;
    let failed = |source| BootError::File {
        what: "guest kernel",
        path: path.to_owned(),
        source,
    };
    let mut head = Vec::with_capacity(0x206);
    (&mut file)
        .take(0x206)
        .read_to_end(&mut head)
        .map_err(failed)?;
    file.rewind().map_err(failed)?;
    match not_a_kernel(&head) {
        None => Ok(file.into()),
        Some(reason) => Err(BootError::NoKernel {
            path: path.to_owned(),
            reason,
        }),
    }
}

/// Why a file that begins like this is no kernel for a guest.
pub(crate) fn not_a_kernel(head: &[u8]) -> Option<&'static str> {
    // ELF64, little-endian, an executable for x86-64 (System V ABI, "ELF header").
    let is_64_bit = head.get(4..6) == Some(&[2, 1]);
    let is_x86_64 = head.get(18..20) == Some(&[62, 0]);
    if head.get(0x202..0x206) == Some(b"HdrS") {
        Some("it is a compressed bzImage; the uncompressed vmlinux is needed")
    } else if !head.starts_with(b"\x7fELF") {
        Some("it is not an ELF file; an uncompressed vmlinux is needed")
    } else if !is_64_bit || !is_x86_64 {
        Some("it is an ELF file, but not for x86-64")
    } else {
        None
    }
}

impl Booting {
    /// Gives the guest the content of a resolv.conf, for containers that
    /// [mount](crate::spec::Bundle::mount_resolv_conf) it; empty for none.
    #[must_use]
    pub fn with_resolv_conf(mut self, content: String) -> Self {
        self.set_up.resolv_conf = content;
        self
    }

    /// Gives the guest the content of `/etc/hosts`, for containers that
    /// [mount](crate::spec::Bundle::mount_pod_files) it; empty for none.
    #[must_use]
    pub fn with_hosts(mut self, content: String) -> Self {
        self.set_up.hosts = content;
        self
    }

    /// Sets kernel parameters of the pod by their names, as `linux.sysctl` of a bundle.
    #[must_use]
    pub fn with_sysctls(mut self, parameters: HashMap<String, String>) -> Self {
        self.set_up.sysctls = parameters;
        self
    }

    /// Waits for the agent and prepares the guest.
    ///
    /// # Errors
    /// [`BootError`]; the monitor is then gone.
    pub(crate) async fn ready(mut self) -> Result<Booted, BootError> {
        let deadline = Instant::now() + self.timeout;
        if !self.agent_came(deadline).await {
            return Err(BootError::Guest(Box::new(self.diagnose().await)));
        }
        let connection = self.machine.connect(AGENT_PORT).await;
        let agent = Agent::new(
            connection.map_err(BootError::system("connection to the agent"))?,
            self.timeout,
        );
        self.fill_in_set_up()?;
        match agent.set_up_pod(&self.set_up).await {
            Ok(guest) => Ok(Booted {
                machine: self.machine,
                agent,
                guest,
                changes: self.changes,
            }),
            Err(AgentError::Disconnected(_) | AgentError::DeadlineExceeded(_)) => {
                Err(BootError::Guest(Box::new(self.diagnose().await)))
            }
            Err(error) => Err(BootError::SetUp(error)),
        }
    }

    async fn agent_came(&self, deadline: Instant) -> bool {
        let mut state = self.machine.state();
        let decided = state.wait_for(|state| state.ready.is_some() || state.end.is_some());
        match tokio::time::timeout_at(deadline, decided).await {
            Ok(Ok(state)) => state.end.is_none(),
            Ok(Err(_)) | Err(_) => false,
        }
    }

    /// Clock and randomness, as late as can be.
    fn fill_in_set_up(&mut self) -> Result<(), BootError> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        self.set_up.realtime_ns = i64::try_from(now.as_nanos()).unwrap_or(0);
        let mut seed = vec![0; SEED];
        File::open("/dev/urandom")
            .and_then(|mut random| random.read_exact(&mut seed))
            .map_err(BootError::system("/dev/urandom"))?;
        self.set_up.entropy = seed;
        Ok(())
    }

    async fn diagnose(&self) -> Diagnosis {
        diagnose(&self.machine, Some(self.timeout)).await
    }
}

/// How long a monitor whose guest is gone may take to say so and to end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Finds out what has become of a machine that does not answer, and ends it.
pub(crate) async fn diagnose(machine: &Machine, waited: Option<Duration>) -> Diagnosis {
    // A connection breaks a moment before its end is known.
    let _ = tokio::time::timeout(LAST_WORDS, machine.ended()).await;
    let state: State = machine.state().borrow().clone();
    let console = match &state.end {
        Some(end) => end.report.as_ref().map(|report| report.console.clone()),
        None => machine.console().await,
    };
    if state.end.is_none() {
        machine.kill();
        machine.ended().await;
    }
    let report = state.end.as_ref().and_then(|end| end.report.as_ref());
    let evidence = Evidence {
        kernel_entered: state.entered.is_some(),
        agent_ready: state.ready.is_some(),
        agent_gone: state.agent_gone,
        process: state.end.as_ref().map(|end| end.process),
        reason: report.map(|report| report.reason.clone()),
        console: console.unwrap_or_default(),
        log: machine.log().text().await,
        waited,
    };
    evidence.diagnose()
}

#[cfg(test)]
#[path = "boot_test.rs"]
mod tests;
