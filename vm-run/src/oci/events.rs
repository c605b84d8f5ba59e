//! `events`: what a container uses, once or again and again.

use std::time::Duration;

use serde_json::json;

use super::cli::EventsArgs;
use super::error::OciError;
use super::list::print;
use super::state::{Root, Status};
use super::stats;
use super::verb;
use super::wire::{Answer, Request};

/// Prints events, a line each, until the container has ended.
pub(crate) fn events(root: &Root, args: &EventsArgs) -> Result<(), OciError> {
    let stopped = OciError::Other(format!("container with id {} is not running", args.id));
    let home = verb::live(root, &args.id, stopped)?;
    let mut known = None;
    loop {
        let mut stats = match verb::ask(&home, &Request::Stats) {
            Ok(Answer::Stats(stats)) => stats,
            Ok(_) => return Err(OciError::Nonsense),
            Err(OciError::NotRunning) if !args.stats => return Ok(()),
            Err(error) => return Err(error),
        };
        let kills = stats::take_oom_kills(&mut stats);
        if args.stats {
            return print(&format!("{stats}\n"));
        }
        if known.is_some_and(|known| kills > known) {
            print(&format!("{}\n", json!({ "type": "oom", "id": args.id })))?;
        }
        known = Some(kills);
        print(&format!("{stats}\n"))?;
        std::thread::sleep(Duration::from_secs(args.interval));
        match home.record() {
            Ok(record) if record.status() != Status::Stopped => {}
            // Ended, or deleted.
            Ok(_) | Err(OciError::Missing) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}
