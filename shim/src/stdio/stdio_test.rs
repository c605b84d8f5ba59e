use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{CWD, Mode};

use super::*;

const OWNER: Owner<'static> = Owner {
    namespace: "ns",
    id: "c1",
};

fn fifo(dir: &Path, name: &str) -> String {
    let path = dir.join(name);
    let mode = Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    path.to_str().unwrap().to_owned()
}

async fn open(places: &Places) -> Result<(Stdio, Kept), Failure> {
    places.open(TerminalSize::default(), OWNER).await
}

#[tokio::test]
async fn nobody_waits_for_the_other_end_of_a_fifo() {
    let dir = tempfile::tempdir().unwrap();
    let places = Places {
        stdin: fifo(dir.path(), "in"),
        stdout: fifo(dir.path(), "out"),
        stderr: fifo(dir.path(), "err"),
        terminal: false,
    };
    let opened = tokio::time::timeout(Duration::from_secs(5), open(&places)).await;
    let (stdio, mut kept) = opened.unwrap().unwrap();
    let mut stdout = File::from(stdio.stdout.unwrap());
    stdout.write_all(b"out").unwrap();
    File::from(stdio.stderr.unwrap()).write_all(b"err").unwrap();

    // A client comes, types, and goes: stdin has not ended.
    std::fs::write(&places.stdin, b"typed").unwrap();
    let mut stdin = File::from(stdio.stdin.unwrap());
    let mut buffer = [0; 16];
    assert_eq!(stdin.read(&mut buffer).unwrap(), 5);
    let error = stdin.read(&mut buffer).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    kept.close_stdin();
    assert_eq!(stdin.read(&mut buffer).unwrap(), 0);

    // Output that nobody has read yet is still there for who comes late.
    let mut late = File::open(&places.stdout).unwrap();
    assert_eq!(late.read(&mut buffer).unwrap(), 3);
    kept.finish().await;
}

#[tokio::test]
async fn a_terminal_has_no_stderr() {
    let dir = tempfile::tempdir().unwrap();
    let places = Places {
        stdout: fifo(dir.path(), "out"),
        stderr: "/nowhere".into(),
        terminal: true,
        ..Places::default()
    };
    let (stdio, _kept) = open(&places).await.unwrap();
    assert!(stdio.terminal.is_some() && stdio.stdout.is_some());
    assert!(stdio.stdin.is_none() && stdio.stderr.is_none());
}

#[tokio::test]
async fn a_log_file_is_made_and_takes_both_outputs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b/log");
    let places = Places {
        stdout: format!("file://{}", path.display()),
        ..Places::default()
    };
    for _ in 0..2 {
        let (stdio, _kept) = open(&places).await.unwrap();
        File::from(stdio.stdout.unwrap())
            .write_all(b"out ")
            .unwrap();
        File::from(stdio.stderr.unwrap())
            .write_all(b"err ")
            .unwrap();
    }
    assert_eq!(std::fs::read(path).unwrap(), b"out err out err ");
}

#[tokio::test]
async fn what_cannot_be_opened_is_named() {
    for (places, message) in [
        (
            Places {
                stdin: "/nowhere/in".into(),
                ..Places::default()
            },
            "stdin: /nowhere/in: ",
        ),
        (
            Places {
                stdout: "/nowhere/out".into(),
                ..Places::default()
            },
            "stdout: /nowhere/out: ",
        ),
        (
            Places {
                stdout: "npipe:///x".into(),
                ..Places::default()
            },
            "stdio: unknown scheme \"npipe\"",
        ),
    ] {
        let failure = open(&places).await.unwrap_err();
        assert_eq!(failure.code, ttrpc::Code::INVALID_ARGUMENT);
        assert!(failure.message.starts_with(message), "{failure}");
    }
}

/// A logger that is a script.
fn script(dir: &Path, text: &str) -> PathBuf {
    let path = dir.join("logger");
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[tokio::test]
async fn a_logger_takes_both_outputs_and_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let program = script(
        dir.path(),
        "echo \"$CONTAINER_NAMESPACE $CONTAINER_ID $1 $2\" >$2; exec 5>&-; \
         { /bin/cat <&3; /bin/cat <&4; /bin/sleep 0.2; echo done; } >>$2",
    );
    let places = Places {
        stdout: format!("binary://{}?--to={}", program.display(), log.display()),
        ..Places::default()
    };
    let (stdio, mut kept) = open(&places).await.unwrap();
    File::from(stdio.stdout.unwrap())
        .write_all(b"out\n")
        .unwrap();
    File::from(stdio.stderr.unwrap())
        .write_all(b"err\n")
        .unwrap();
    kept.finish().await;
    let text = std::fs::read_to_string(&log).unwrap();
    let head = format!("ns c1 --to {}\n", log.display());
    assert_eq!(text, format!("{head}out\nerr\ndone\n"));
}

#[tokio::test]
async fn a_logger_that_crashes_is_told_from_one_that_is_ready() {
    let dir = tempfile::tempdir().unwrap();
    let program = script(dir.path(), "exit 3");
    let places = Places {
        stdout: format!("binary-v2://{}", program.display()),
        ..Places::default()
    };
    let failure = open(&places).await.unwrap_err();
    assert!(
        failure.message.contains("ended without being ready"),
        "{failure}"
    );
    let missing = Places {
        stdout: "binary:///nowhere/logger".into(),
        ..Places::default()
    };
    let failure = open(&missing).await.unwrap_err();
    assert!(failure.message.contains("/nowhere/logger"), "{failure}");
}
