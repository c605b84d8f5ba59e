//! `create` and `run`.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::channel::{self, Caller};
use super::cli::{CreateArgs, GlobalArgs, RunArgs};
use super::error::OciError;
use super::keeper::{Keeper, Mode};
use super::pid_file;
use super::state::Root;
use super::verb;

/// What the process that keeps a container is told.
#[derive(Debug, Deserialize, Serialize)]
struct Order {
    bundle: PathBuf,
    console_socket: Option<PathBuf>,
}

/// Creates a container with a process that keeps it.
pub(crate) fn create(globals: &GlobalArgs, args: &CreateArgs) -> Result<(), OciError> {
    check(globals, args)?;
    let order = Order {
        bundle: bundle(args)?,
        console_socket: args.console_socket.as_deref().map(absolute).transpose()?,
    };
    let mut keeper = channel::spawn(globals, "keep", &args.container.id, &order)?;
    keeper.done()?;
    if let Some(file) = &args.pid_file {
        // Not released, the keeper removes all.
        pid_file::write(file, keeper.pid())?;
    }
    keeper.release()
}

/// Creates a container and starts it; attached, also waits for its end.
pub(crate) fn run(globals: &GlobalArgs, args: &RunArgs) -> Result<u8, OciError> {
    let id = &args.create.container.id;
    let root = Root::new(globals.root.clone());
    if args.detach {
        create(globals, &args.create)?;
        return match verb::start(&root, id) {
            Ok(()) => Ok(0),
            Err(error) => {
                // What did not start is not left there.
                super::delete::force(&root, id)?;
                Err(error)
            }
        };
    }
    check(globals, &args.create)?;
    if args.create.console_socket.is_some() {
        return Err(OciError::NoTerminal);
    }
    let keeper = Keeper {
        root,
        id: id.clone(),
        bundle: bundle(&args.create)?,
        debug: globals.debug,
        mode: Mode::Attached {
            pid_file: args.create.pid_file.as_deref().map(absolute).transpose()?,
            keep: args.keep,
        },
    };
    keeper.keep()
}

/// The process that keeps a container.
pub(crate) fn keep(globals: &GlobalArgs, id: &str) -> Result<u8, OciError> {
    let (order, channel): (Order, UnixStream) = channel::take()?;
    let failed = |error: OciError| {
        channel::fail(&channel, &error);
        error
    };
    // Signals of the caller's terminal are not the container's.
    rustix::process::setsid()
        .map_err(OciError::system("cannot start a session"))
        .map_err(failed)?;
    let telling = channel.try_clone().map_err(OciError::system("channel"))?;
    let keeper = Keeper {
        root: Root::new(globals.root.clone()),
        id: id.to_owned(),
        bundle: order.bundle,
        debug: globals.debug,
        mode: Mode::Detached {
            caller: Caller::new(telling),
            console_socket: order.console_socket,
        },
    };
    keeper.keep().map_err(failed)
}

fn check(globals: &GlobalArgs, args: &CreateArgs) -> Result<(), OciError> {
    super::state::check_id(&args.container.id)?;
    log::debug!("state below {}", globals.root.display());
    Ok(())
}

fn bundle(args: &CreateArgs) -> Result<PathBuf, OciError> {
    let dir = args.bundle.as_deref().unwrap_or(Path::new("."));
    dir.canonicalize()
        .map_err(OciError::system(format!("bundle {}", dir.display())))
}

pub(crate) fn absolute(path: &Path) -> Result<PathBuf, OciError> {
    std::path::absolute(path).map_err(OciError::system(path.display().to_string()))
}
