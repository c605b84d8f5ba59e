use std::os::unix::net::UnixStream as StdStream;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::{Instant, timeout};

use super::*;
use crate::monitor::tests::play;

fn attached(minor: u32, containers: &[&str]) -> Attached {
    let host = crate::host::HostDisk::imagined(7, minor, false);
    Attached {
        number: host.number(),
        read_only: false,
        alone: false,
        device: Some(minor),
        guest: None,
        containers: containers.iter().map(|&name| name.to_owned()).collect(),
        held: host.hold(),
    }
}

/// An agent that never answers, as long as the stream is kept.
fn silent_agent() -> (Agent, StdStream) {
    let (ours, theirs) = StdStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let agent = Agent::new(UnixStream::from_std(ours).unwrap(), Duration::ZERO);
    (agent, theirs)
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_does_not_answer_holds_up_others_for_one_deadline() {
    // Without root there is no monitor to play.
    let Some(machine) = play("exec sleep 600") else {
        return;
    };
    let (agent, _theirs) = silent_agent();
    let ends = Ends {
        machine: &machine,
        agent: &agent,
    };
    let mut slots = Slots::default();
    for (slot, minor) in slots.iter_mut().zip(0..) {
        *slot = Some(attached(minor, &["one"]));
    }
    let start = Instant::now();
    let all: Vec<_> = (0..slots.len()).collect();
    let closing = give_back(ends, &mut slots, "one", &all).await;
    assert!(closing.is_empty());
    clear_away(ends, &mut slots).await;
    assert!(start.elapsed() < Duration::from_secs(25));
    let waits = |slot: &Option<Attached>| slot.as_ref().is_some_and(|of| of.containers.is_empty());
    assert!(slots.iter().all(waits), "what is not let go of is kept");
    machine.kill();
    machine.ended().await;
}

#[tokio::test(start_paused = true)]
async fn a_container_without_disks_waits_for_nobody() {
    let Some(machine) = play("exec sleep 600") else {
        return;
    };
    let (agent, _theirs) = silent_agent();
    let ends = Ends {
        machine: &machine,
        agent: &agent,
    };
    let disks = Disks::default();
    disks.users.add("one");
    let held = disks.slots.lock().await;
    let second = Duration::from_secs(1);
    let other = timeout(second, disks.release(ends, "other")).await;
    other.expect("without disks");
    let one = timeout(second, disks.release(ends, "one")).await;
    one.expect_err("behind whoever has the slots");
    drop(held);
    machine.kill();
    machine.ended().await;
}

#[test]
fn a_container_is_forgotten_once_it_uses_no_slot() {
    let users = Users::default();
    let mut slots = Slots::default();
    users.add("one");
    slots[3] = Some(attached(0, &["other", "one"]));
    users.settle("one", &slots);
    assert!(users.has("one"));
    slots[3] = Some(attached(0, &["other"]));
    users.settle("one", &slots);
    assert!(!users.has("one"));
}

#[test]
fn what_the_host_may_have_mounted_is_mounted_by_no_other_container() {
    let raw = attached(0, &["one"]);
    raw.admit(false, false).unwrap();
    raw.admit(true, false).unwrap();
    let error = raw.admit(false, true).unwrap_err();
    assert!(matches!(error, AttachError::Shared { .. }), "{error}");
    let claimed = Attached { alone: true, ..raw };
    claimed.admit(false, true).unwrap();
    let read_only = Attached {
        read_only: true,
        ..claimed
    };
    let error = read_only.admit(false, true).unwrap_err();
    assert!(matches!(error, AttachError::ReadOnly { .. }), "{error}");
}
