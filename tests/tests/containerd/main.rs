//! What containerd, `ctr` and CRI do with a runtime. Every test that does not say
//! otherwise runs once with runc and once with Nacre, which shows that the caller
//! changes one word and gets the same behaviour.
//!
//! A test's name is `VERSION::RUNTIME::what it says`. The tests of one version
//! share a containerd; each one leaves the host as it was.

// What cannot be prepared is a test that fails.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod calls;
mod setting;

mod faults;
mod layers;
mod output;
mod pods;
mod sandbox;
mod shim;
mod start_and_end;

use libtest_mimic::Arguments;

fn main() {
    let tests = [
        start_and_end::TESTS,
        output::TESTS,
        layers::TESTS,
        faults::TESTS,
        pods::TESTS,
        shim::TESTS,
        sandbox::TESTS,
    ]
    .concat();
    setting::run(&Arguments::from_args(), &tests).exit();
}
