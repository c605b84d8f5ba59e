//! One process as containerd sees it: a container's first, or one executed later.
//!
//! ```text
//! Created ─► Starting ─► Running ─► Stopped
//!    │           │                     ▲
//!    └───────────┴─────────────────────┘
//! ```
//! A process is stopped once it has ended *and* its output is written, so that
//! who waits for it may go.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use nacre_pod::stdio::TerminalSize;
use tokio::sync::watch;

use crate::failure::Failure;
use crate::guest::Output;
use crate::stdio::{Kept, Places};

/// How long the output of a process that has ended waits for a client that comes
/// back, and then for one that is there but does not read.
const LATE_READER: Duration = Duration::from_secs(10);
const SLOW_READER: Duration = Duration::from_secs(20);

/// How a process ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Exit {
    /// Exit code, or 128+n when signal n ended it.
    pub(crate) status: u32,
    pub(crate) at: SystemTime,
}

impl Exit {
    /// The status of a process that ended with its pod.
    const KILLED: u32 = 137;
    /// The status of a process that never came to be.
    const UNKNOWN: u32 = 255;

    /// It has just ended with `status`.
    pub(crate) fn now(status: u32) -> Self {
        Self {
            status,
            at: SystemTime::now(),
        }
    }

    /// It has just ended with its pod.
    pub(crate) fn killed() -> Self {
        Self::now(Self::KILLED)
    }

    /// It could not be started.
    pub(crate) fn never_ran() -> Self {
        Self::now(Self::UNKNOWN)
    }
}

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Stage {
    Created,
    Starting,
    Running,
    Stopped(Exit),
}

impl Stage {
    /// As a word for messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Created | Self::Starting => "created",
            Self::Running => "running",
            Self::Stopped(_) => "stopped",
        }
    }
}

/// A process.
pub(crate) struct Process {
    /// Identifier that it was executed under; empty: the container's first.
    pub(crate) exec: String,
    pub(crate) places: Places,
    stage: watch::Sender<Stage>,
    fate: watch::Sender<Fate>,
    state: Mutex<State>,
}

/// Whether the guest is still asked for a process's end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fate {
    Awaited,
    /// The guest has said that it has ended, or the pod is gone.
    Ended,
    /// The guest does not say so, and nobody waits for it any more.
    GivenUp,
}

#[derive(Default)]
struct State {
    output: Option<Box<dyn Output>>,
    guest_pid: u32,
    kept: Kept,
    stdin_closed: bool,
    size: Option<TerminalSize>,
    deleting: bool,
}

impl Process {
    /// One that is created.
    pub(crate) fn new(exec: &str, places: Places) -> Self {
        Self {
            exec: exec.to_owned(),
            places,
            stage: watch::Sender::new(Stage::Created),
            fate: watch::Sender::new(Fate::Awaited),
            state: Mutex::default(),
        }
    }

    pub(crate) fn stage(&self) -> Stage {
        *self.stage.borrow()
    }

    /// How it ended, if it has.
    pub(crate) fn exit(&self) -> Option<Exit> {
        match self.stage() {
            Stage::Stopped(exit) => Some(exit),
            _ => None,
        }
    }

    /// Waits for its end.
    pub(crate) async fn stopped(&self) -> Exit {
        let mut stage = self.stage.subscribe();
        loop {
            if let Stage::Stopped(exit) = *stage.borrow_and_update() {
                return exit;
            }
            // The sender is ours: it cannot be gone.
            let _ = stage.changed().await;
        }
    }

    /// Waits until its end is known; its output may go on.
    pub(crate) async fn ended(&self) {
        self.wait_for_fate(|fate| fate != Fate::Awaited).await;
    }

    /// Notes that its end is known.
    pub(crate) fn note_end(&self) {
        self.decide(Fate::Ended);
    }

    /// Lets nobody wait any more for the guest to say that it has ended.
    pub(crate) fn give_up(&self) {
        self.decide(Fate::GivenUp);
    }

    /// Waits until it is given up.
    pub(crate) async fn given_up(&self) {
        self.wait_for_fate(|fate| fate == Fate::GivenUp).await;
    }

    /// Whether it was given up.
    pub(crate) fn is_given_up(&self) -> bool {
        *self.fate.borrow() == Fate::GivenUp
    }

    async fn wait_for_fate(&self, mut is_wanted: impl FnMut(Fate) -> bool) {
        // The sender is ours: it cannot be gone.
        let _ = self
            .fate
            .subscribe()
            .wait_for(|fate| is_wanted(*fate))
            .await;
    }

    /// What was decided first stays.
    fn decide(&self, new: Fate) {
        self.fate.send_if_modified(|fate| {
            let is_open = *fate == Fate::Awaited;
            if is_open {
                *fate = new;
            }
            is_open
        });
    }

    /// Waits while a start is under way.
    pub(crate) async fn not_starting(&self) {
        let mut stage = self.stage.subscribe();
        let _ = stage.wait_for(|stage| *stage != Stage::Starting).await;
    }

    /// Begins a start.
    ///
    /// # Errors
    /// `FailedPrecondition` unless it is created.
    pub(crate) fn begin_start(&self) -> Result<(), Failure> {
        let begun = self.stage.send_if_modified(|stage| {
            let created = *stage == Stage::Created;
            if created {
                *stage = Stage::Starting;
            }
            created
        });
        if begun {
            return Ok(());
        }
        Err(Failure::failed_precondition(format!(
            "cannot start a {} process",
            match self.stage() {
                Stage::Starting => "starting",
                stage => stage.name(),
            }
        )))
    }

    /// Ends it for those who wait, if it was never started: from here on it cannot be.
    ///
    /// # Errors
    /// `FailedPrecondition` when a start has begun.
    pub(crate) fn end_unstarted(&self) -> Result<(), Failure> {
        self.stage.send_if_modified(|stage| {
            let created = *stage == Stage::Created;
            if created {
                *stage = Stage::Stopped(Exit::never_ran());
            }
            created
        });
        match self.stage() {
            Stage::Stopped(_) => Ok(()),
            _ => Err(Failure::failed_precondition(
                "cannot delete a running process",
            )),
        }
    }

    /// Moves on, unless it has ended.
    pub(crate) fn enter(&self, new: Stage) {
        self.stage.send_if_modified(|stage| {
            let alive = !matches!(stage, Stage::Stopped(_));
            if alive {
                *stage = new;
            }
            alive
        });
    }

    /// Reserves the deletion, which only one caller can do.
    ///
    /// # Errors
    /// `FailedPrecondition` when another does it.
    pub(crate) fn begin_delete(&self) -> Result<(), Failure> {
        let mut state = self.state();
        if state.deleting {
            return Err(Failure::failed_precondition("it is being deleted already"));
        }
        state.deleting = true;
        Ok(())
    }

    /// The deletion has failed; it may be tried again.
    pub(crate) fn abandon_delete(&self) {
        self.state().deleting = false;
    }

    /// It has come to be in the guest; its stdio is `kept`.
    pub(crate) fn attach(&self, output: Box<dyn Output>, kept: Kept) {
        let mut state = self.state();
        state.guest_pid = output.pid();
        state.output = Some(output);
        state.kept = kept;
        if state.stdin_closed {
            state.kept.close_stdin();
        }
    }

    /// Its number in the guest; 0 before it is there.
    pub(crate) fn guest_pid(&self) -> u32 {
        self.state().guest_pid
    }

    /// Lets its stdin end, now or when it starts.
    pub(crate) fn close_stdin(&self) {
        let mut state = self.state();
        state.stdin_closed = true;
        state.kept.close_stdin();
    }

    /// Size of its terminal, if somebody has set one.
    pub(crate) fn size(&self) -> TerminalSize {
        self.state().size.unwrap_or_default()
    }

    pub(crate) fn set_size(&self, size: TerminalSize) {
        self.state().size = Some(size);
    }

    /// Waits until the output of the process, which has ended, is written, but
    /// not for ever: nobody may be there to read it.
    pub(crate) async fn drain(&self) {
        let (output, mut kept) = self.detach();
        if let Some(mut output) = output {
            let mut drained = output.drain();
            if tokio::time::timeout(LATE_READER, &mut drained)
                .await
                .is_err()
            {
                // Where the shim was the only reader, writing now fails.
                kept.close_readers();
                if tokio::time::timeout(SLOW_READER, drained).await.is_err() {
                    log::warn!("output of a process that has ended is not read; it is cut off");
                }
            }
        }
        kept.finish().await;
    }

    /// Cuts the streams of the process, which nobody knows to have ended.
    pub(crate) async fn cut(&self) {
        let (output, mut kept) = self.detach();
        drop(output);
        kept.finish().await;
    }

    fn detach(&self) -> (Option<Box<dyn Output>>, Kept) {
        let mut state = self.state();
        (state.output.take(), std::mem::take(&mut state.kept))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves nothing half-changed here.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_starts_once_and_stops_once() {
        let process = Process::new("", Places::default());
        process.begin_start().unwrap();
        let failure = process.begin_start().unwrap_err();
        assert_eq!(failure.message, "cannot start a starting process");
        process.enter(Stage::Running);
        let failure = process.begin_start().unwrap_err();
        assert_eq!(failure.message, "cannot start a running process");
        assert_eq!(failure.code, ttrpc::Code::FAILED_PRECONDITION);

        let exit = Exit::now(3);
        process.enter(Stage::Stopped(exit));
        process.enter(Stage::Stopped(Exit::killed()));
        process.enter(Stage::Created);
        assert_eq!(process.stopped().await, exit);
        let failure = process.begin_start().unwrap_err();
        assert_eq!(failure.message, "cannot start a stopped process");
    }

    /// Output that nobody reads.
    struct Stuck;

    #[async_trait::async_trait]
    impl Output for Stuck {
        fn pid(&self) -> u32 {
            1
        }

        async fn drain(&mut self) {
            std::future::pending().await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn output_that_nobody_reads_is_cut_off() {
        let process = Process::new("", Places::default());
        process.attach(Box::new(Stuck), Kept::default());
        let before = tokio::time::Instant::now();
        process.drain().await;
        assert_eq!(before.elapsed(), LATE_READER + SLOW_READER);
        // There is nothing left to wait for.
        process.drain().await;
    }

    #[test]
    fn only_one_deletes() {
        let process = Process::new("", Places::default());
        process.begin_delete().unwrap();
        process.begin_delete().unwrap_err();
        process.abandon_delete();
        process.begin_delete().unwrap();
    }
}
