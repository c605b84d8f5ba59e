//! What containerd, `ctr` and CRI do with a runtime. Every test that does not say otherwise
//! runs with Nacre and, in a soak, once with runc, which shows that the caller changes one
//! word and gets the same behaviour.
//!
//! A test's name is `VERSION::RUNTIME::what it says`. The tests of one version
//! share a containerd; each one leaves the host as it was.

// What cannot be prepared is a test that fails.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod calls;
mod setting;

mod copy;
mod faults;
mod frozen;
mod layers;
mod node;
mod operators;
mod output;
mod pods;
mod port_forward;
mod promises;
mod resize;
mod sandbox;
mod security;
mod shared_volumes;
mod shim;
mod start_and_end;
mod start_faults;
mod streams;
mod volumes;

use libtest_mimic::Arguments;

fn main() {
    let words: Vec<_> = std::env::args().collect();
    if let [_, word, step, dir] = &words[..]
        && word == shared_volumes::INSIDE
    {
        shared_volumes::inside(step, dir.as_ref());
        return;
    }
    let tests = [
        start_and_end::TESTS,
        output::TESTS,
        layers::TESTS,
        node::TESTS,
        operators::TESTS,
        copy::TESTS,
        faults::TESTS,
        start_faults::TESTS,
        frozen::TESTS,
        pods::TESTS,
        port_forward::TESTS,
        security::TESTS,
        streams::TESTS,
        resize::TESTS,
        shim::TESTS,
        sandbox::TESTS,
        promises::TESTS,
        shared_volumes::TESTS,
        volumes::TESTS,
    ]
    .concat();
    setting::run(&Arguments::from_args(), &tests).exit();
}
