//! The standard descriptors of PID 1.

use std::fs::File;

use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::error::{Doing, Error};

/// The kernel opens them on the console, where nobody reads.
pub(super) fn to_null() -> Result<(), Error> {
    let doing = "cannot open /dev/null";
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .doing(doing)?;
    dup2_stdin(&null).doing(doing)?;
    dup2_stdout(&null).doing(doing)?;
    dup2_stderr(&null).doing(doing)
}
