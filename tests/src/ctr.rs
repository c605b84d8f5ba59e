//! Containers that are run by `ctr`, and what containerd says of them.

use std::cell::Cell;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use crate::{Containerd, Ended, Running, Runtime, image};

/// A name that no container had before.
#[must_use]
pub fn new_id() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The command that runs a container of BusyBox until it has ended, and removes it.
#[must_use]
pub fn run(containerd: &Containerd, runtime: Runtime, options: &[&str], args: &[&str]) -> Command {
    let mut command = start(containerd, runtime, &[&["--rm"], options].concat());
    command.arg(image::BUSYBOX).arg(new_id()).args(args);
    command
}

fn start(containerd: &Containerd, runtime: Runtime, options: &[&str]) -> Command {
    let mut command = containerd.ctr(&["run", "--runtime", runtime.name()]);
    command.args(options);
    command
}

/// A container that runs beside its test.
#[derive(Debug)]
pub struct Task<'a> {
    containerd: &'a Containerd,
    id: String,
    execs: Cell<u32>,
}

impl<'a> Task<'a> {
    /// Starts a container of BusyBox in the background.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start(
        containerd: &'a Containerd,
        runtime: Runtime,
        options: &[&str],
        args: &[&str],
    ) -> Self {
        let id = new_id();
        let mut command = start(containerd, runtime, &[&["--detach"], options].concat());
        command.arg(image::BUSYBOX).arg(&id).args(args);
        let _ = Running::to_the_end(command).expect_code(0);
        Self::of(containerd, id)
    }

    /// One that was started already.
    #[must_use]
    pub fn of(containerd: &'a Containerd, id: String) -> Self {
        Self {
            containerd,
            id,
            execs: Cell::new(0),
        }
    }

    /// Its identifier.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Runs `ctr tasks` with its identifier after these words.
    #[must_use]
    pub fn ctr(&self, words: &[&str]) -> Ended {
        let mut command = self.containerd.ctr(&["tasks"]);
        command.args(words).arg(&self.id);
        Running::to_the_end(command)
    }

    /// The command that runs a further process in it.
    #[must_use]
    pub fn exec_command(&self, options: &[&str], args: &[&str]) -> Command {
        self.execs.set(self.execs.get() + 1);
        let exec_id = format!("exec{}", self.execs.get());
        let mut command = self
            .containerd
            .ctr(&["tasks", "exec", "--exec-id", &exec_id]);
        command.args(options).arg(&self.id).args(args);
        command
    }

    /// Runs a further process in it until that has ended.
    #[must_use]
    pub fn exec(&self, args: &[&str]) -> Ended {
        Running::to_the_end(self.exec_command(&[], args))
    }

    /// Its state as containerd lists it, such as `RUNNING`.
    ///
    /// # Panics
    /// When containerd does not answer.
    #[must_use]
    pub fn state(&self) -> Option<String> {
        let listed = Running::to_the_end(self.containerd.ctr(&["tasks", "ls"])).expect_code(0);
        listed.text().lines().find_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some(self.id.as_str())).then(|| words.nth(1).unwrap().to_owned())
        })
    }

    /// Waits until it is in a state.
    ///
    /// # Panics
    /// When it does not come to it.
    pub fn wait_for(&self, state: &str) {
        crate::wait_until(&format!("{} is {state}", self.id), || {
            self.state().as_deref() == Some(state)
        });
    }

    /// Kills it, waits for its end, and removes it.
    pub fn remove(self) {
        let _ = self.ctr(&["kill", "--signal", "KILL"]);
        self.wait_for("STOPPED");
        self.delete();
    }

    /// Removes it after its end and returns its exit status.
    ///
    /// # Panics
    /// When it cannot be removed.
    pub fn delete(&self) -> i32 {
        let ended = self.ctr(&["delete"]).expect_code(0);
        self.forget();
        // A warning is the only way in which `ctr` says it.
        let status = ended.stderr.split_once("exit with non-zero exit code ");
        status.map_or(0, |(_, status)| {
            status
                .trim_end()
                .trim_end_matches('"')
                .parse()
                .expect("a number")
        })
    }

    /// Removes what containerd remembers of it when its task is gone.
    ///
    /// # Panics
    /// When that fails.
    pub fn forget(&self) {
        let removed = self.containerd.ctr(&["containers", "delete", &self.id]);
        let _ = Running::to_the_end(removed).expect_code(0);
    }
}

/// What containerd published.
#[derive(Clone, Debug)]
pub struct Event {
    /// Such as `/tasks/exit`.
    pub topic: String,
    /// What the topic's message says.
    pub body: Value,
}

impl Event {
    /// Whether it is of a container.
    #[must_use]
    pub fn is_of(&self, id: &str) -> bool {
        self.body["container_id"] == id
    }
}

/// Takes down what containerd publishes.
#[derive(Debug)]
pub struct Events {
    running: Running,
}

impl Events {
    /// From now on.
    #[must_use]
    pub fn listen(containerd: &Containerd) -> Self {
        let running = Running::start(containerd.ctr(&["events"]));
        // An event of our own says that it listens.
        while !running.said().contains("/namespaces/") {
            let label = format!("listening={}", new_id());
            let labelled =
                containerd.ctr(&["namespaces", "label", crate::containerd::NAMESPACE, &label]);
            let _ = Running::to_the_end(labelled).expect_code(0);
        }
        Self { running }
    }

    /// All there were until now.
    #[must_use]
    pub fn heard(&self) -> Vec<Event> {
        self.running.said().lines().filter_map(parse).collect()
    }

    /// All that are of a container, once there is one with this topic.
    ///
    /// # Panics
    /// When it does not come.
    #[must_use]
    pub fn until(&self, id: &str, topic: &str) -> Vec<Event> {
        crate::wait_until(&format!("{topic} of {id}"), || {
            self.heard()
                .iter()
                .any(|event| event.is_of(id) && event.topic == topic)
        });
        self.heard()
            .into_iter()
            .filter(|event| event.is_of(id))
            .collect()
    }
}

/// A line such as `2026-11-23 08:00:00 +0000 UTC namespace /tasks/start {…}`.
fn parse(line: &str) -> Option<Event> {
    let (head, body) = line.split_once(" {")?;
    Some(Event {
        topic: head.split_whitespace().last()?.to_owned(),
        body: serde_json::from_str(&format!("{{{body}")).ok()?,
    })
}
