//! `vm-run` as an OCI runtime: the command line that engines know from runc, with a
//! container in a pod of its own (runtime-spec, "Runtime and Lifecycle").
//!
//! `create` starts a process that keeps the container, its [keeper]; the other verbs find
//! it by the container's [state] and talk to it over a socket.

mod affinity;
mod attend;
mod channel;
pub(crate) mod cli;
mod console;
mod create;
mod delete;
mod error;
mod events;
mod exec;
mod fds;
mod keeper;
mod kill;
mod life;
mod list;
mod local_time;
mod pid_file;
mod ps;
mod serve;
mod signal_name;
mod state;
mod stats;
mod template;
mod update;
mod verb;
mod wire;

use std::process::ExitCode;

use nacre_pod::spec::features;

use self::cli::{GlobalArgs, Verb};
use self::error::OciError;
use self::state::Root;
use crate::logger;

/// Carries out a verb and says with what to exit.
pub(crate) fn run(globals: &GlobalArgs, verb: &Verb) -> ExitCode {
    // Looked at before anything here opens one.
    let handed = fds::first_handed(verb.preserved_fds());
    if let Err(error) = logger::start_runtime(
        globals.log.as_deref(),
        globals.log_format == cli::LogFormat::Json,
        globals.debug,
    ) {
        logger::say(&error);
        return ExitCode::FAILURE;
    }
    close_on_exec();
    let is_called = !matches!(verb, Verb::Keep(_) | Verb::Attend(_));
    match fds::refuse(handed).and_then(|()| carry_out(globals, verb)) {
        Ok(status) => ExitCode::from(status),
        // Whoever has started it was told.
        Err(_) if !is_called => ExitCode::FAILURE,
        Err(error) => {
            let (prefix, status) = verb.blame();
            logger::fatal(&format!("{prefix}{error}"));
            ExitCode::from(status)
        }
    }
}

fn carry_out(globals: &GlobalArgs, verb: &Verb) -> Result<u8, OciError> {
    let root = Root::new(globals.root.clone());
    match verb {
        Verb::Create(args) => create::create(globals, args).map(|()| 0),
        Verb::Run(args) => create::run(globals, args),
        Verb::Start(args) => verb::start(&root, &args.id).map(|()| 0),
        Verb::State(args) => list::state(&root, &args.id).map(|()| 0),
        Verb::Kill(args) => kill::kill(&root, args).map(|()| 0),
        Verb::Delete(args) => delete::delete(&root, args).map(|()| 0),
        Verb::Exec(args) => exec::exec(globals, args),
        Verb::List(args) => list::list(&root, args).map(|()| 0),
        Verb::Ps(args) => ps::processes(&root, args).map(|()| 0),
        Verb::Pause(args) => verb::pause(&root, &args.id).map(|()| 0),
        Verb::Resume(args) => verb::resume(&root, &args.id).map(|()| 0),
        Verb::Update(args) => update::update(&root, args).map(|()| 0),
        Verb::Events(args) => events::events(&root, args).map(|()| 0),
        Verb::Spec(args) => template::spec(args).map(|()| 0),
        Verb::Features => list::print(&format!("{:#}\n", features(false))).map(|()| 0),
        Verb::Keep(args) => create::keep(globals, &args.id),
        Verb::Attend(args) => attend::attend(&root, &args.id),
    }
}

impl Verb {
    /// How many descriptors beyond the standard ones are to be passed on.
    fn preserved_fds(&self) -> u32 {
        match self {
            Self::Create(args) => args.preserve_fds,
            Self::Run(args) => args.create.preserve_fds,
            Self::Exec(args) => args.preserve_fds,
            _ => 0,
        }
    }

    /// What an error of the verb begins with, and its exit status, as runc has them.
    fn blame(&self) -> (&'static str, u8) {
        match self {
            Self::Create(_) => ("vm-run create failed: ", 1),
            Self::Run(_) => ("vm-run run failed: ", 1),
            Self::Exec(_) => ("exec failed: ", 255),
            _ => ("", 1),
        }
    }
}

/// What a caller has left open by mistake is not kept open by a process that stays.
fn close_on_exec() {
    // SAFETY: only flags of descriptors change. Without the system call, on a kernel that
    // no pod runs on, they stay as they are.
    unsafe {
        libc::close_range(
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC.cast_signed(),
        )
    };
}
