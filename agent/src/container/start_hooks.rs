//! `startContainer` hooks: programs of the container's own root that run in its first process's
//! place before its program does (runtime-spec, "StartContainer Hooks").
//!
//! libcontainer runs them when it has let go of whoever started the container, so that a
//! failure would go unnoticed.

use std::collections::HashMap;
use std::path::Path;

use libcontainer::container::{ContainerStatus, State};
use libcontainer::hooks::run_hooks;
use oci_spec::runtime::{Hook, Spec};

use super::id::Id;
use super::report::Failure;

/// The hooks of a container, and what they are told of it.
#[derive(Clone)]
pub(super) struct StartHooks {
    hooks: Vec<Hook>,
    state: State,
}

impl StartHooks {
    /// The `hooks` of a container whose specification is `spec`.
    pub(super) fn new(hooks: Vec<Hook>, id: &Id, bundle: &Path, spec: &Spec) -> Self {
        let mut state = State::new(
            id.as_str(),
            ContainerStatus::Created,
            None,
            bundle.to_owned(),
        );
        state.annotations = spec.annotations().clone();
        Self { hooks, state }
    }

    /// Runs them up to the first that fails, with the program's environment unless they have
    /// their own.
    ///
    /// # Errors
    /// The failure, which names the hook.
    pub(super) fn run(&self, env: &[String]) -> Result<(), Failure> {
        let env: HashMap<_, _> = env
            .iter()
            .filter_map(|variable| variable.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let pid = nix::unistd::Pid::this();
        for (number, hook) in self.hooks.iter().enumerate() {
            let ran = run_hooks(
                Some(&vec![hook.clone()]),
                Some(&self.state),
                None,
                Some(pid),
                Some(&env),
            );
            ran.map_err(|error| {
                let path = hook.path().display();
                let reason = super::build::chain(&error);
                Failure::invalid(format!("hooks.startContainer[{number}]: {path}: {reason}"))
            })?;
        }
        Ok(())
    }
}
