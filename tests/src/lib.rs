//! Helpers of the end-to-end tests, which run as root in the test host, one
//! after the other.
//!
//! They stop at the first thing that is not as it should be, as tests do.
//! `vm-run` is taken from `PATH`; `NACRE_SOAK=1` asks for larger counts.

// A helper that cannot do its work fails the test that called it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod bundle;
pub mod clean;
pub mod cni;
pub mod containerd;
pub mod crictl;
pub mod critest;
pub mod ctr;
pub mod image;
pub mod initramfs;
pub mod kubelet;
pub mod loop_device;
pub mod netns;
pub mod oci;
pub mod podman;
pub mod proc;
pub mod pty;
pub mod registry;
pub mod running;
pub mod shim;
pub mod vm_run;

use std::process::Command;
use std::time::{Duration, Instant};

pub use bundle::TestBundle;
pub use clean::Clean;
pub use containerd::{Containerd, Runtime};
pub use oci::OciRuntime;
pub use podman::Podman;
pub use running::{Ended, Running};
pub use vm_run::VmRun;

/// Nothing that a test waits for takes longer. Twenty pods that boot at a time take theirs.
pub(crate) fn patience() -> Duration {
    Duration::from_secs(count(180, 1800))
}

/// `soak` when larger counts were asked for, else `usual`.
#[must_use]
pub fn count<T>(usual: T, soak: T) -> T {
    if std::env::var_os("NACRE_SOAK").is_some_and(|value| !value.is_empty()) {
        soak
    } else {
        usual
    }
}

/// Waits until something is so.
///
/// # Panics
/// When it takes longer than anything should, also where all is emulated.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(
            start.elapsed() < patience(),
            "not so after {:?}: {what}",
            patience()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Runs a line of shell and returns what it prints.
///
/// # Panics
/// When it fails.
pub fn sh(script: &str) -> String {
    let output = Command::new("sh")
        .args(["-euc", script])
        .output()
        .expect("a shell");
    assert!(
        output.status.success(),
        "{script}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

/// Bytes without a pattern, the same for the same length.
#[must_use]
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        // xorshift64, Marsaglia 2003.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
