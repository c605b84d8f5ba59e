//! The boot of a pod without containers: what all the rest is for.

use std::time::Duration;

use thiserror::Error;

use super::{Files, Finding};
use crate::boot::{BootConfig, BootError, launch};
use crate::host::{HostError, enter_private_mounts};
use crate::pod::Pod;
use crate::timing::{Moment, Timing};

const WHAT: &str = "boot";

/// Enough for the agent, with room to spare.
const MEMORY_MIB: u64 = 256;

/// As patient as `vm-run bundle` is by default.
const TIMEOUT: Duration = Duration::from_secs(120);

#[derive(Debug, Error)]
enum Failure {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error("cannot start a runtime: {0}")]
    Runtime(#[from] std::io::Error),
}

/// Boots a pod until its agent is ready, and ends it. The calling thread is in a
/// mount namespace of its own afterwards.
#[must_use]
pub fn boot(files: Files<'_>) -> Finding {
    match try_boot(files) {
        Ok((release, took)) => Finding::ok(
            WHAT,
            format!(
                "Linux {release} and its agent were up after {:.0} ms",
                took.as_secs_f64() * 1e3
            ),
        ),
        Err(error) => Finding::fail(WHAT, error.to_string(), ""),
    }
}

fn try_boot(files: Files<'_>) -> Result<(String, Duration), Failure> {
    let mut timing = Timing::new(Moment::now());
    let mounts = enter_private_mounts()?;
    // One thread, this one: the monitor ends with the thread that started it.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let config = BootConfig {
            monitor: files.monitor,
            kernel: files.kernel,
            initramfs: files.initramfs,
            vcpus: 1,
            cpus_online: 1,
            memory_mib: MEMORY_MIB,
            verbose_kernel: false,
            timeout: TIMEOUT,
            nics: Vec::new(),
            changes: None,
            hostname: String::new(),
            cgroup: None,
        };
        let booting = launch(config, &mounts)?;
        let pod = Pod::ready(booting, &mut timing).await?;
        let release = pod.guest().kernel_release.clone();
        let ready = timing.agent_ready.unwrap_or_else(Moment::now);
        pod.end().await;
        Ok((release, ready.since(timing.request)))
    })
}
