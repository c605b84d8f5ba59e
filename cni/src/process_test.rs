use std::fs;
use std::os::unix::process::ExitStatusExt;

use super::*;

const SHELL: &str = "/bin/sh";

/// Runs a shell script; the shell reads it from a file, so that stdin is free.
fn shell(script: &str, input: &[u8], deadline: Duration) -> Result<Finished, Unfinished> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("plugin");
    fs::write(&path, format!("#!{SHELL}\n{script}\n")).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&path, mode).unwrap();
    run(&path, &[("PATH", "/usr/bin:/bin".into())], input, deadline)
}

fn finished(script: &str, input: &[u8]) -> Finished {
    match shell(script, input, Duration::from_secs(20)) {
        Ok(finished) => finished,
        Err(_) => panic!("{script} did not end"),
    }
}

#[test]
fn input_and_output_larger_than_a_pipe_pass_through() {
    let input = vec![b'x'; 900_000];
    let finished = finished("cat", &input);
    assert!(finished.status.success());
    assert_eq!(finished.stdout, input);
}

#[test]
fn a_program_need_not_read_its_input() {
    let finished = finished("exec <&-; echo done; exit 3", &vec![b'x'; 900_000]);
    assert_eq!(finished.status.code(), Some(3));
    assert_eq!(finished.stdout, b"done\n");
}

#[test]
fn it_sees_the_environment_it_is_given_and_nothing_else() {
    let finished = finished("/usr/bin/env -u PWD -u SHLVL -u _", b"");
    assert_eq!(finished.stdout, b"PATH=/usr/bin:/bin\n");
}

#[test]
fn it_has_three_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let file = fs::File::create(dir.path().join("secret")).unwrap();
    let leaky = rustix::io::dup(&file).unwrap();
    rustix::io::fcntl_setfd(&leaky, rustix::io::FdFlags::empty()).unwrap();
    let finished = finished("exec ls -l /proc/self/fd", b"");
    let listing = String::from_utf8(finished.stdout).unwrap();
    assert!(!listing.contains("secret"), "{listing}");
    // The fourth one is ls's own, of the directory.
    assert_eq!(listing.matches(" -> ").count(), 4, "{listing}");
}

#[test]
fn too_much_output_ends_it() {
    let result = shell("cat /dev/zero", b"", Duration::from_secs(20));
    assert!(matches!(result, Err(Unfinished::TooMuchOutput)));
}

#[test]
fn too_much_of_a_log_is_cut() {
    let finished = finished("head -c 5000000 /dev/zero >&2; echo ok", b"");
    assert_eq!(finished.stderr.len(), MAX_STDERR);
    assert_eq!(finished.stdout, b"ok\n");
}

#[test]
fn a_hanging_program_dies_with_its_children() {
    let dir = tempfile::tempdir().unwrap();
    let pids = dir.path().join("pids");
    let script = format!(
        "trap '' TERM; sleep 1000 & echo \"$$ $!\" >{}; echo waiting >&2; wait",
        pids.display()
    );
    let before = Instant::now();
    let result = shell(&script, b"", Duration::from_millis(700));
    assert!(before.elapsed() < Duration::from_secs(15));
    let Err(Unfinished::TimedOut { stderr }) = result else {
        panic!("it has not timed out");
    };
    assert_eq!(stderr, b"waiting\n");
    for pid in fs::read_to_string(&pids).unwrap().split_whitespace() {
        assert!(is_gone(pid), "process {pid} lives");
    }
}

/// Whether there is no such process, or nobody has waited for it yet.
fn is_gone(pid: &str) -> bool {
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        match fs::read_to_string(format!("/proc/{pid}/stat")) {
            Err(_) => return true,
            Ok(stat) if stat.contains(") Z ") => return true,
            Ok(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
    false
}

#[test]
fn a_child_left_behind_does_not_hold_the_caller() {
    let before = Instant::now();
    let finished = finished("sleep 15 & echo started", b"");
    assert!(before.elapsed() < Duration::from_secs(10));
    assert_eq!(finished.stdout, b"started\n");
}

#[test]
fn a_signal_is_seen() {
    let finished = finished("kill -SEGV $$", b"");
    assert_eq!(finished.status.signal(), Some(11));
}

#[test]
fn a_program_that_cannot_be_executed_says_why() {
    let result = run(Path::new("/nonexistent"), &[], b"", Duration::from_secs(1));
    let Err(Unfinished::NotStarted(error)) = result else {
        panic!("it has started");
    };
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}
