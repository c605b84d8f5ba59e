//! `containerd-shim-nacre-v2`: containerd's Task and Sandbox API on top of `pod`.
//!
//! containerd calls it with `start` for every container; that starts one shim a
//! pod, which is this program once more ([`serve`]). What containerd asks of the
//! shim comes in at [`service`] and [`sandbox_service`], the rules are in [`tasks`]
//! and [`sandbox`], and what they need of the machine is a [`guest`], which [`pod`] is.

mod annotations;
mod bootstrap;
mod bundle_files;
mod cli;
mod config;
mod container;
mod delete;
mod events;
mod failure;
#[cfg(test)]
mod fake_guest;
mod guest;
mod handover;
mod info;
mod launch;
mod lifetime;
mod logger;
mod mount_options;
mod options;
mod pod;
mod process;
mod resources;
mod rootfs;
mod sandbox;
mod sandbox_files;
mod sandbox_service;
mod sandbox_setup;
mod serve;
mod service;
mod sizing;
mod socket;
mod start;
mod stats;
mod status;
mod stdio;
mod tasks;
mod trace;
mod wire;

use std::error::Error;
use std::process::ExitCode;

use crate::cli::{Action, Cli};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", info::PROGRAM);
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let cli = Cli::parse(std::env::args_os().skip(1))?;
    match cli.action {
        Action::Version => info::print_version()?,
        Action::Info => info::print_info()?,
        Action::Start => start::run(&cli)?,
        Action::Delete => delete::run(&cli)?,
        Action::Serve => serve::run(&cli)?,
    }
    Ok(())
}
