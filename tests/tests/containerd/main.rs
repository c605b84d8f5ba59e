//! What containerd, `ctr` and CRI do with a runtime. Every test that does not say
//! otherwise runs once with runc and once with Nacre, which shows that the caller
//! changes one word and gets the same behaviour.
//!
//! A test's name is `VERSION::RUNTIME::what it says`. The tests of one version
//! share a containerd; each one leaves the host as it was.

// What cannot be prepared is a test that fails.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod setting;

mod output;
mod start_and_end;

use libtest_mimic::Arguments;

fn main() {
    let tests = [start_and_end::TESTS, output::TESTS].concat();
    setting::run(&Arguments::from_args(), &tests).exit();
}
