//! PID 1 of the guest, and the helper that builds its containers.

use std::process::ExitCode;

use nacre_agent::{HELPER_ROLE, boot, build_container, log};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|role| role == HELPER_ROLE) {
        return build(args.get(2).map(String::as_str));
    }
    if std::process::id() != 1 {
        eprintln!("nacre-agent: runs only as PID 1 of a guest");
        return ExitCode::FAILURE;
    }
    if let Err(error) = boot::run() {
        log::fatal(&format!("cannot go on: {error}"));
    }
    boot::reboot();
    // The kernel panics without PID 1, which ends the guest as well.
    ExitCode::FAILURE
}

/// Builds the container that is asked for on the control socket.
fn build(control: Option<&str>) -> ExitCode {
    let control = control.and_then(|number| number.parse().ok());
    match control.map(build_container) {
        Some(Ok(())) => ExitCode::SUCCESS,
        // The agent sees the end of the control socket.
        Some(Err(_)) | None => ExitCode::FAILURE,
    }
}
