//! Containers as the host sees them: calls and streams against a real agent.
//!
//! Each test has a guest of its own: the agent's service as PID 1 of new
//! namespaces, on Unix sockets instead of vsock. Needs root, cgroup v2 and a
//! static busybox.

// A test that cannot be prepared is a test that fails.
#![allow(clippy::expect_used, clippy::unwrap_used)]

mod guest;
mod server;

mod confinement;
mod control;
mod exec;
mod failures;
mod lifecycle;
mod pods;
mod streams;
mod volumes;

use libtest_mimic::{Arguments, Trial};

use guest::Guest;

fn main() {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|role| role == server::ROLE) {
        server::run(&args.next().expect("the guest's directory"));
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        eprintln!("ignored, because containers can only be run by root");
    }
    let tests = [
        lifecycle::tests(),
        failures::tests(),
        pods::tests(),
        streams::tests(),
        confinement::tests(),
        control::tests(),
        exec::tests(),
        volumes::tests(),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests.concat_trials()).exit();
}

/// Whether this machine can run a test; those that it cannot show as ignored.
fn can_run(name: &str) -> bool {
    // Without the controller there is no limit to run into.
    let has_limits = !name.contains("memory") || guest::has_memory_controller();
    nix::unistd::geteuid().is_root() && has_limits
}

/// A named check of one guest.
type Check = (&'static str, fn(&Guest));

trait ConcatTrials {
    fn concat_trials(self) -> Vec<Trial>;
}

impl<const N: usize> ConcatTrials for [Vec<Check>; N] {
    fn concat_trials(self) -> Vec<Trial> {
        self.into_iter()
            .flatten()
            .map(|(name, check)| {
                Trial::test(name, move || {
                    let guest = Guest::start();
                    check(&guest);
                    guest.check_nothing_is_left();
                    Ok(())
                })
                .with_ignored_flag(!can_run(name))
            })
            .collect()
    }
}
