//! Runs OCI bundles in micro-VMs of their own.

mod bundle;
mod check;
mod cli;
mod exit;
mod forward;
mod gc;
mod image;
mod launch;
mod logger;
mod manual;
mod network;
mod oci;
mod pods;
mod shape;
mod signals;
mod size;
mod terminal;

use std::process::ExitCode;

use clap::Parser;
use nacre_pod::timing::Moment;

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    let request = Moment::now();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return exit::usage(&error),
    };
    match cli.command {
        Command::Bundle(mut args) => {
            args.pod.debug |= cli.globals.debug;
            logger::start(args.pod.debug);
            exit::status(bundle::run(&args, request))
        }
        Command::Image(mut args) => {
            args.pod.debug |= cli.globals.debug;
            logger::start(args.pod.debug);
            exit::status(image::run(&args, request))
        }
        Command::Check(args) => check::run(&args),
        Command::Gc => {
            logger::start(false);
            gc::run()
        }
        Command::Manual(args) => manual::write(&args),
        Command::Pods(verb) => pods::run(&verb, cli.globals.debug),
        Command::Oci(verb) => oci::run(&cli.globals, &verb),
    }
}
