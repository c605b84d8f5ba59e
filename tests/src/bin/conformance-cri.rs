//! `conformance-cri 1|2 HANDLER CRITEST [OPTION...]`: in the test host, runs critest with a
//! containerd of that version and with that runtime handler. Its images come from a registry
//! of its own. Ends with critest's status.

// A helper of tests stops at the first thing that is not as it should be.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::{Command, ExitCode, Stdio};

use nacre_tests::containerd::Version;
use nacre_tests::{Containerd, critest};

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let [version, handler, critest, options @ ..] = &words[..] else {
        panic!("usage: conformance-cri 1|2 HANDLER CRITEST [OPTION...]");
    };
    let version = match version.as_str() {
        "1" => Version::One,
        "2" => Version::Two,
        other => panic!("no containerd {other} is here, but 1 and 2"),
    };
    let registry = critest::registry();
    let containerd = Containerd::start(version);
    containerd.pull_from(&registry);
    let endpoint = format!("unix://{}", containerd.socket().display());
    let status = Command::new(critest)
        .args(["--runtime-endpoint", &endpoint])
        .args(["--image-endpoint", &endpoint])
        .args(["--runtime-handler", handler, "--config", "/dev/null"])
        .args(options)
        .stdin(Stdio::null())
        .status()
        .expect("critest");
    // What the runtime said, for who looks for the reason of a failure.
    eprintln!("{}", containerd.log());
    ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1))
}
