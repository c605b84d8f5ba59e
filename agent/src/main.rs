//! PID 1 of the guest, and its helpers.

use std::process::ExitCode;

use nacre_agent::{Role, boot, log, run_helper};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if let Some(role) = args.get(1).and_then(|name| Role::parse(name)) {
        return help(role, args.get(2).map(String::as_str));
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

/// Carries out the task that is asked for on the control socket.
fn help(role: Role, control: Option<&str>) -> ExitCode {
    let control = control.and_then(|number| number.parse().ok());
    match control.map(|control| run_helper(role, control)) {
        Some(Ok(())) => ExitCode::SUCCESS,
        // The agent sees the end of the control socket.
        Some(Err(_)) | None => ExitCode::FAILURE,
    }
}
