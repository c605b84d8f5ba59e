//! `vm-run check`: whether this machine can run pods.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nacre_pod::assets::{Found, MissingAsset};
use nacre_pod::check::{self, Files, Finding, can_run, files};

use crate::cli::{self, CheckArgs};

/// Prints a line for each thing that a pod needs; fails when one is missing.
pub(crate) fn run(args: &CheckArgs) -> ExitCode {
    let mut findings = check::machine();
    let found = Found::find(&cli::files(
        args.kernel.as_deref(),
        args.initramfs.as_deref(),
    ));
    findings.extend([
        file("monitor", &found.monitor, files::monitor),
        file("guest kernel", &found.kernel, files::kernel),
        file("initramfs", &found.initramfs, files::initramfs),
    ]);
    print(&findings);
    if can_run(&findings) && (!args.boot || boots(&found)) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn boots(found: &Found) -> bool {
    let (Ok(monitor), Ok(kernel), Ok(initramfs)) =
        (&found.monitor, &found.kernel, &found.initramfs)
    else {
        return false;
    };
    let boot = [check::boot(Files {
        monitor,
        kernel,
        initramfs,
    })];
    print(&boot);
    can_run(&boot)
}

fn file(
    what: &'static str,
    found: &Result<PathBuf, MissingAsset>,
    check: impl Fn(&Path) -> Finding,
) -> Finding {
    match found {
        Ok(path) => check(path),
        Err(missing) => Finding::fail(what, missing.to_string(), ""),
    }
}

fn print(findings: &[Finding]) {
    let mut output = io::stdout().lock();
    for finding in findings {
        // The exit status remains when nobody reads the lines.
        let _ = writeln!(output, "{finding}");
    }
}

#[cfg(test)]
mod tests {
    use nacre_pod::check::Verdict;

    use super::*;

    #[test]
    fn a_file_that_was_named_is_looked_at_and_no_other() {
        let nowhere = Some(Path::new("/no/such/file"));
        let found = Found::find(&cli::files(nowhere, nowhere));
        for (what, found) in [("a", &found.kernel), ("b", &found.initramfs)] {
            let finding = file(what, found, files::kernel);
            assert_eq!(finding.verdict, Verdict::Fail);
            assert_eq!(finding.what, "guest kernel");
            assert!(finding.detail.contains("/no/such/file"), "{finding}");
        }
    }
}
