use serde_json::{Value, json};

use super::*;

const MIB: u64 = 1 << 20;

fn limits(memory_mib: u64, millicpus: u64) -> Value {
    json!({
        "memory": {"limit": memory_mib * MIB},
        "cpu": {"quota": millicpus * 100, "period": 100_000}
    })
}

/// A VM of 512 MiB with four vCPUs, one of them online, and these containers.
fn room(containers: &[(&str, Value)]) -> Room {
    let mut room = Room::new(512, 4, 1);
    for (id, resources) in containers {
        let resources = serde_json::from_value(resources.clone()).unwrap();
        let wanted = room.admit(id, Allowance::of(&resources));
        room.set_online(wanted);
    }
    room
}

fn change(room: &Room, id: &str, resources: &Value) -> Result<Change, String> {
    let change = room.change(id, resources.to_string().as_bytes());
    change.map_err(|error| error.to_string())
}

/// The CPUs that are online after a change.
fn update(room: &mut Room, id: &str, resources: &Value) -> u8 {
    let change = change(room, id, resources).unwrap();
    room.set_online(change.cpus());
    room.keep(change);
    room.online()
}

#[test]
fn cpus_are_online_as_the_sum_of_the_limits_asks_for() {
    let mut room = room(&[("a", limits(64, 500)), ("b", limits(64, 500))]);
    assert_eq!(room.online(), 1);
    assert_eq!(update(&mut room, "a", &limits(64, 600)), 2);
    assert_eq!(update(&mut room, "b", &limits(64, 3400)), 4);
    assert_eq!(update(&mut room, "b", &limits(64, 400)), 1);
}

#[test]
fn what_the_pod_was_born_with_stays_online() {
    let mut room = Room::new(512, 4, 2);
    assert_eq!(room.admit("a", Allowance::default()), 2);
    assert_eq!(update(&mut room, "a", &limits(64, 100)), 2);
    assert_eq!(update(&mut room, "a", &limits(64, 3000)), 3);
    assert_eq!(update(&mut room, "a", &json!({"cpu": {"quota": -1}})), 2);
}

#[test]
fn a_new_container_gets_the_cpus_that_there_are() {
    let mut room = room(&[("a", limits(64, 2000))]);
    assert_eq!(room.online(), 2);
    let much = serde_json::from_value(limits(10_000, 64_000)).unwrap();
    assert_eq!(room.admit("b", Allowance::of(&much)), 4);
}

#[test]
fn limits_may_be_as_large_as_the_vm_and_no_larger() {
    let room = room(&[("a", limits(64, 500))]);
    change(&room, "a", &limits(512, 4000)).unwrap();
    assert_eq!(
        change(&room, "a", &limits(1024, 500)).unwrap_err(),
        "linux.resources.memory.limit: 1024 MiB asked for, the pod's VM has 512 MiB"
    );
    assert_eq!(
        change(&room, "a", &limits(64, 4500)).unwrap_err(),
        "linux.resources.cpu.quota: 4.5 CPUs asked for, the pod's VM has 4"
    );
}

#[test]
fn the_pods_containers_share_the_vm() {
    let mut room = room(&[("a", limits(64, 500)), ("b", limits(256, 2000))]);
    assert_eq!(
        change(&room, "a", &limits(257, 500)).unwrap_err(),
        "linux.resources.memory.limit: 257 MiB asked for beside 256 MiB of its other containers, \
         the pod's VM has 512 MiB"
    );
    assert_eq!(
        change(&room, "a", &limits(64, 2001)).unwrap_err(),
        "linux.resources.cpu.quota: 2.001 CPUs asked for beside 2 of its other containers, the \
         pod's VM has 4"
    );
    room.leave("b");
    change(&room, "a", &limits(257, 2001)).unwrap();
}

#[test]
fn a_limit_that_does_not_grow_is_never_refused() {
    // A container may be made with limits that its VM never had.
    let room = room(&[("a", limits(1024, 8000))]);
    for fine in [
        limits(1024, 8000),
        limits(800, 6000),
        json!({"pids": {"limit": 7}}),
        json!({"memory": {"limit": -1}, "cpu": {"quota": -1}}),
    ] {
        change(&room, "a", &fine).unwrap();
    }
    change(&room, "a", &limits(1025, 8000)).unwrap_err();
}

#[test]
fn a_first_limit_is_held_against_the_vm() {
    let room = room(&[("a", json!({}))]);
    change(&room, "a", &json!({"memory": {"limit": 512 * MIB}})).unwrap();
    let too_much = change(&room, "a", &json!({"memory": {"limit": 512 * MIB + 1}}));
    assert!(too_much.unwrap_err().contains("513 MiB asked for"));
}

#[test]
fn a_container_that_left_is_not_brought_back() {
    let mut room = room(&[("a", limits(64, 500))]);
    let late = change(&room, "a", &limits(512, 500)).unwrap();
    room.leave("a");
    room.keep(late);
    assert_eq!(room.admit("b", Allowance::default()), 1);
    change(&room, "b", &limits(512, 500)).unwrap();
}

#[test]
fn what_is_no_resources_is_refused() {
    let room = room(&[]);
    for wrong in ["no JSON", r#"{"memory": {"limit": "much"}}"#] {
        let error = room.change("a", wrong.as_bytes()).unwrap_err();
        assert!(
            error.to_string().starts_with("linux.resources: "),
            "{error}"
        );
    }
}
