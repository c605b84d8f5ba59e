//! A monitor that a shell plays: it says on descriptor 4 what a monitor would.
//! Starting one takes root, as it does a real one.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use nacre_vmm::client::Launch;
use nacre_vmm::config::MonitorConfig;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::geteuid;

use super::*;
use crate::boot::diagnose;
use crate::diagnosis::Cause;

const ENTERED: &str = r#"printf '{"KernelEntered":{"at_ns":2000,"up_ns":1000}}' >&4"#;

/// A machine whose monitor runs `script`; `None` without root.
pub(crate) fn play(script: &str) -> Option<Machine> {
    if !geteuid().is_root() {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let binary = dir.path().join("monitor");
    fs::write(&binary, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
    let config = MonitorConfig {
        vcpus: 1,
        memory_mib: 64,
        verbose_kernel: false,
        guest_cid: 3,
        host_ports: Vec::new(),
        share_tag: String::new(),
        share: "/".into(),
        jail: "/".into(),
        network: Vec::new(),
    };
    let null = || OwnedFd::from(fs::File::open("/dev/null").unwrap());
    let (log, log_writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let monitor = Monitor::spawn(Launch {
        binary: &binary,
        config: &config,
        kvm: null(),
        kernel: null(),
        initramfs: null(),
        network: Vec::new(),
        log: log_writer,
        cgroup: None,
    });
    // The shell has opened the script when it has said something or ended.
    let machine = Machine::watch(monitor.unwrap(), log).unwrap();
    std::mem::forget(dir);
    Some(machine)
}

async fn cause_of(script: &str) -> Option<Cause> {
    let machine = play(script)?;
    Some(diagnose(&machine, Some(Duration::from_secs(7))).await.cause)
}

#[tokio::test]
async fn a_monitor_that_ends_is_reaped_and_its_end_is_told() {
    let Some(machine) = play("exit 3") else {
        return;
    };
    let end = machine.ended().await;
    assert_eq!(end.process, ProcessEnd::Exited(3));
    assert!(end.report.is_none());
    let cause = cause_of(&format!("{ENTERED}; exit 4")).await;
    assert_eq!(
        cause,
        Some(Cause::MonitorEnded("exited with status 4".into()))
    );
}

#[tokio::test]
async fn the_last_message_is_heard_though_the_process_has_ended() {
    let report = r#"printf '{"Exited":{"reason":{"Failed":"no such luck"},"console":"x"}}' >&4"#;
    if let Some(cause) = cause_of(report).await {
        assert_eq!(cause, Cause::Monitor("no such luck".into()));
    }
}

#[tokio::test]
async fn phases_are_known_as_they_are_reached() {
    let Some(machine) = play(&format!("{ENTERED}; exec sleep 100")) else {
        return;
    };
    let mut state = machine.state();
    let state = state
        .wait_for(|state| state.entered.is_some())
        .await
        .unwrap();
    let moments = (Moment::from_nanos(1000), Moment::from_nanos(2000));
    assert_eq!(state.entered, Some(moments));
    assert!(state.ready.is_none() && state.end.is_none());
}

#[tokio::test]
async fn a_monitor_that_hangs_is_killed_and_the_silence_explained() {
    let cause = cause_of("exec sleep 100").await;
    assert!(
        matches!(cause, None | Some(Cause::NoKernel(_))),
        "{cause:?}"
    );
    let cause = cause_of(&format!("{ENTERED}; exec sleep 100")).await;
    assert!(matches!(cause, None | Some(Cause::NoAgent(_))), "{cause:?}");
}

#[tokio::test]
async fn rubbish_on_the_control_socket_ends_the_monitor() {
    let Some(machine) = play("echo rubbish >&4; exec sleep 100") else {
        return;
    };
    let end = machine.ended().await;
    assert_eq!(end.process, ProcessEnd::Signaled(9));
}

#[tokio::test]
async fn an_agent_that_nobody_announced_is_not_there() {
    let accepted = r#"printf '{"Accepted":{"port":9,"at_ns":1,"exits":1}}' >&4"#;
    let Some(machine) = play(&format!("{accepted}; {ENTERED}; exec sleep 100")) else {
        return;
    };
    let mut state = machine.state();
    let state = state
        .wait_for(|state| state.entered.is_some())
        .await
        .unwrap();
    assert!(state.ready.is_none());
}

#[tokio::test]
async fn dropping_a_machine_leaves_no_process() {
    let Some(machine) = play("exec sleep 100") else {
        return;
    };
    let pidfd = machine.pidfd.try_clone().unwrap();
    drop(machine);
    // The watcher reaps it as it is dropped by the runtime.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(pidfd_send_signal(&pidfd, Signal::KILL).is_err());
}

#[tokio::test]
async fn questions_are_answered_in_order_and_not_for_ever() {
    let answer = |question, text| {
        format!(r#"printf '{{"Console":{{"question":{question},"text":"{text}"}}}}' >&4"#)
    };
    let answers = format!("{}; sleep 0.1; {}", answer(1, "first"), answer(2, "second"));
    // A shell cannot wait for the question; the answers come a moment later.
    let Some(machine) = play(&format!("sleep 0.3; {answers}; exec sleep 100")) else {
        return;
    };
    let (first, second) = tokio::join!(machine.console(), machine.console());
    assert_eq!(first.as_deref(), Some("first"));
    assert_eq!(second.as_deref(), Some("second"));
    assert_eq!(machine.stats().await, None);
}

#[test]
fn a_monitor_that_does_not_answer_is_not_asked_for_ever() {
    let mut waiting = Waiting::<()>::default();
    let most = u64::try_from(MAX_WAITING).unwrap();
    assert!((0..most).all(|question| waiting.join(question).is_some()));
    assert!(waiting.join(most).is_none());
    // It was only slow.
    waiting.answer(0, ());
    assert!(waiting.join(most).is_some());
}

#[test]
fn an_answer_goes_to_its_question_and_to_no_other() {
    let mut waiting = Waiting::default();
    let mut ask = |question| waiting.join(question).unwrap();
    let (mut first, lost, mut next, mut last) = (ask(1), ask(3), ask(5), ask(7));
    waiting.answer(2, "made up");
    next.try_recv().unwrap_err();
    // Number 3 was never answered, and nobody waits for it any more.
    drop(lost);
    waiting.answer(5, "next");
    assert_eq!(next.try_recv(), Ok("next"));
    waiting.answer(5, "twice");
    waiting.answer(1, "first");
    assert_eq!(first.try_recv(), Ok("first"));
    waiting.answer(7, "last");
    assert_eq!(last.try_recv(), Ok("last"));
    assert!(waiting.0.is_empty());
}
