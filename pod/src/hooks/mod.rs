//! The hooks of a container that run on the host (runtime-spec, "POSIX-platform Hooks"), and
//! what they are told of it.
//!
//! They run where the front door was started. Those that run inside the guest go there with
//! the specification.

mod run;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::runtime::{ContainerState, Hooks, State};

pub use self::run::HookError;
use self::run::Moment;
use crate::host::RuntimeNamespaces;
use crate::spec::OCI_VERSION;

/// The hooks of a container that run on the host.
#[derive(Clone, Debug)]
pub struct HostHooks {
    hooks: Hooks,
    id: String,
    /// The process that lives as long as the container.
    pid: u32,
    bundle: PathBuf,
    annotations: HashMap<String, String>,
}

impl HostHooks {
    /// The `hooks` of the container `id`, for which the process `pid` of the host stands.
    #[must_use]
    pub fn new(
        hooks: Hooks,
        id: &str,
        pid: u32,
        bundle: &Path,
        annotations: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        Self {
            hooks,
            id: id.to_owned(),
            pid,
            bundle: bundle.to_owned(),
            annotations: annotations.into_iter().collect(),
        }
    }

    /// Whether there are any for [`HostHooks::creating`].
    #[must_use]
    pub fn are_due_at_creation(&self) -> bool {
        let moments = [Moment::Prestart, Moment::CreateRuntime];
        moments
            .iter()
            .any(|moment| !moment.of(&self.hooks).is_empty())
    }

    /// Runs those that are due while the container is being created (`prestart`,
    /// `createRuntime`) in `host`.
    ///
    /// # Errors
    /// [`HookError`] of the first that fails; the container must not come about then.
    pub async fn creating(&self, host: &Arc<RuntimeNamespaces>) -> Result<(), HookError> {
        let state = self.state(ContainerState::Creating);
        for moment in [Moment::Prestart, Moment::CreateRuntime] {
            run::run(moment, &self.hooks, &state, Some(host)).await?;
        }
        Ok(())
    }

    /// Runs those that are due when the container's program runs (`poststart`), in `host`
    /// or where this process is.
    ///
    /// # Errors
    /// [`HookError`] of the first that fails; the container must be stopped then.
    pub async fn started(&self, host: Option<&Arc<RuntimeNamespaces>>) -> Result<(), HookError> {
        let state = self.state(ContainerState::Running);
        run::run(Moment::Poststart, &self.hooks, &state, host).await
    }

    /// Runs those that are due when the container has been deleted (`poststop`), in `host`
    /// or where this process is. Of one that fails, the log tells.
    pub async fn deleted(&self, host: Option<&Arc<RuntimeNamespaces>>) {
        let state = self.state(ContainerState::Stopped);
        run::run_each(Moment::Poststop, &self.hooks, &state, host).await;
    }

    fn state(&self, status: ContainerState) -> State {
        let mut state = State::default();
        state
            .set_version(OCI_VERSION.to_owned())
            .set_id(self.id.clone())
            .set_status(status)
            .set_bundle(self.bundle.clone());
        if status != ContainerState::Stopped {
            state.set_pid(i32::try_from(self.pid).ok());
        }
        if !self.annotations.is_empty() {
            state.set_annotations(Some(self.annotations.clone()));
        }
        state
    }
}
