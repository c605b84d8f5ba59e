//! `vm-run`, started and watched.

use std::io::Read;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::{Ended, Running, TestBundle, proc};

/// A `vm-run` that runs. It is killed when it is dropped.
#[derive(Debug)]
pub struct VmRun(Running);

impl VmRun {
    /// Runs a bundle without input until it has ended.
    #[must_use]
    pub fn bundle(bundle: &TestBundle, options: &[&str]) -> Ended {
        bundle.write();
        Running::to_the_end(Self::command(bundle.path(), options))
    }

    /// Starts a bundle whose input stays open until [`Running::close_stdin`] or the end.
    #[must_use]
    pub fn start(bundle: &TestBundle, options: &[&str]) -> Self {
        bundle.write();
        let mut command = Self::command(bundle.path(), options);
        command.stdin(Stdio::piped());
        Self::start_command(command)
    }

    /// The command line for a bundle, without input.
    #[must_use]
    pub fn command(dir: &Path, options: &[&str]) -> Command {
        let mut command = Command::new("vm-run");
        command.arg("bundle").args(options).arg(dir);
        command.stdin(Stdio::null());
        command
    }

    /// The command line for a container of an image, without input, and with a cache of its own.
    #[must_use]
    pub fn image(cache: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new("vm-run");
        command.arg("image").arg("--cache").arg(cache);
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// Starts a command that is `vm-run` or becomes it; what it prints is collected.
    #[must_use]
    pub fn start_command(command: Command) -> Self {
        Self(Running::start(command))
    }

    /// Starts a bundle whose output the test reads itself.
    #[must_use]
    pub fn start_unread(bundle: &TestBundle, options: &[&str]) -> (Self, impl Read + use<>) {
        bundle.write();
        let (running, output) = Running::start_unread(Self::command(bundle.path(), options));
        (Self(running), output)
    }

    /// The process identifier of its monitor.
    ///
    /// # Panics
    /// When there is not exactly one.
    #[must_use]
    pub fn monitor(&self) -> u32 {
        let monitors = proc::named("nacre-vmm");
        assert_eq!(monitors.len(), 1, "{monitors:?}");
        monitors[0]
    }

    /// Waits until it has ended; input that is open is ended first.
    #[must_use]
    pub fn wait(self) -> Ended {
        self.0.wait()
    }
}

impl Deref for VmRun {
    type Target = Running;

    fn deref(&self) -> &Running {
        &self.0
    }
}

impl DerefMut for VmRun {
    fn deref_mut(&mut self) -> &mut Running {
        &mut self.0
    }
}
