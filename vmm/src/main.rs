//! `nacre-vmm`: the monitor of one pod, started by a front door.

use std::panic;
use std::process::{ExitCode, exit};

use nacre_vmm::{heap, logger, monitor};

/// Exit status after a panic, as Rust programs have it.
const PANICKED: i32 = 101;

fn main() -> ExitCode {
    heap::share();
    logger::install();
    // A monitor that has lost a thread is no monitor.
    panic::set_hook(Box::new(|info| {
        log::error!("bug in the monitor: {info}");
        exit(PANICKED);
    }));
    match monitor::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}
