//! What the services ask of a pod: the line between containerd's API, which is
//! state and rules, and the machine behind it.

use std::path::Path;

use async_trait::async_trait;
use containerd_shim_protos::api::Mount;
use nacre_pod::agent::{ContainerStats, ProcessEnd, ProcessId};
use nacre_pod::status::{ContainerReport, InterfaceReport, Report};
use nacre_pod::stdio::{Stdio, TerminalSize};

use crate::failure::Failure;
use crate::pod::Setup;

/// The output of a process on its way to the host. Dropping it cuts the streams.
#[async_trait]
pub(crate) trait Output: Send {
    /// Number of the process in the guest.
    fn pid(&self) -> u32;

    /// Waits until all output of the process, which has ended, is written, or
    /// nobody takes it.
    async fn drain(&mut self);
}

/// A pod and what can be done with it. Every call may be made at any time, and
/// one that hangs holds up no other.
#[async_trait]
pub(crate) trait Guest: Send + Sync {
    /// Boots the pod before it has a container, for the Sandbox API. It then
    /// stays until [`Guest::end`].
    async fn boot(&self, setup: Setup) -> Result<(), Failure>;

    /// The monitor's process, which lives as long as the pod; 0 if there is none.
    fn pid(&self) -> u32;

    /// Waits until the pod, which runs, is gone.
    async fn gone(&self);

    /// Ends the pod and undoes what was done for it on the host.
    async fn end(&self);

    /// Ends the pod at once, whatever its guest does.
    async fn kill(&self);

    /// Makes a container of a bundle, with `rootfs` mounted as its root. The
    /// first container boots the pod.
    async fn create(
        &self,
        id: &str,
        bundle: &Path,
        rootfs: &[Mount],
        stdio: Stdio,
    ) -> Result<Box<dyn Output>, Failure>;

    /// Starts a container's first process.
    async fn start(&self, id: &str) -> Result<(), Failure>;

    /// Starts a further process; `spec` is `process` of the specification as JSON.
    async fn exec(
        &self,
        process: ProcessId<'_>,
        spec: &[u8],
        stdio: Stdio,
    ) -> Result<Box<dyn Output>, Failure>;

    /// Waits for a process to end.
    async fn wait(&self, process: ProcessId<'_>) -> Result<ProcessEnd, Failure>;

    /// Waits until more than `known` processes were killed for want of memory.
    async fn wait_out_of_memory(&self, id: &str, known: u64) -> Result<u64, Failure>;

    /// Sends a signal to a process, or to all of its container.
    async fn signal(&self, process: ProcessId<'_>, signal: u32, all: bool) -> Result<(), Failure>;

    /// Sets the size of a process's terminal.
    async fn resize(&self, process: ProcessId<'_>, size: TerminalSize) -> Result<(), Failure>;

    /// Freezes a container.
    async fn pause(&self, id: &str) -> Result<(), Failure>;

    /// Lets a frozen container go on.
    async fn resume(&self, id: &str) -> Result<(), Failure>;

    /// Changes a container's limits; `resources` is JSON as in the specification.
    async fn update(&self, id: &str, resources: &[u8]) -> Result<(), Failure>;

    /// Numbers of a container's processes in the guest.
    async fn processes(&self, id: &str) -> Result<Vec<u32>, Failure>;

    /// What a container uses.
    async fn stats(&self, id: &str) -> Result<ContainerStats, Failure>;

    /// What has gone through the pod's network interfaces; empty if it cannot be told.
    async fn interfaces(&self) -> Vec<InterfaceReport>;

    /// What is known of the pod, with these containers and what those use that have not
    /// stopped. The guest is asked once, and for a short time.
    async fn report(&self, containers: Vec<ContainerReport>) -> Report;

    /// The newest part of the guest's console: hostile text.
    async fn console(&self) -> Result<String, Failure>;

    /// The newest part of the monitor's log; empty without one.
    fn monitor_log(&self) -> String;

    /// Removes a container that has ended, on the guest and on the host.
    async fn delete(&self, id: &str) -> Result<(), Failure>;

    /// Forgets a process that was executed in a container and has ended.
    async fn delete_exec(&self, process: ProcessId<'_>) -> Result<(), Failure>;
}
