use std::path::PathBuf;

use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::types::task::Status;
use protobuf::Message;
use tokio::sync::mpsc;

use super::*;
use crate::fake_guest::{FakeGuest, PID};

struct Shim {
    guest: Arc<FakeGuest>,
    tasks: Tasks,
    events: mpsc::Receiver<Envelope>,
    lifetime: Arc<Lifetime>,
}

impl Shim {
    fn new() -> Self {
        let guest = FakeGuest::new();
        let (publisher, events) = Publisher::for_test();
        let lifetime = Arc::new(Lifetime::new(PathBuf::from("/nowhere/socket")));
        let tasks = Tasks::new(guest.clone(), publisher, "ns", lifetime.clone());
        Self {
            guest,
            tasks,
            events,
            lifetime,
        }
    }

    /// One with a container `c` that runs.
    async fn running() -> Self {
        let shim = Self::new();
        shim.create("c").await.unwrap();
        shim.tasks.start("c", "").await.unwrap();
        shim
    }

    /// One with a container `c` that has ended with 3.
    async fn stopped() -> Self {
        let shim = Self::running().await;
        shim.guest.finish("c", "", 3);
        shim.tasks.wait("c", "").await.unwrap();
        shim
    }

    async fn create(&self, id: &str) -> Result<u32, Failure> {
        let request = CreateTaskRequest {
            id: id.into(),
            bundle: "/b".into(),
            ..Default::default()
        };
        self.tasks.create(request).await
    }

    fn exec(&self, exec: &str) -> Result<(), Failure> {
        self.tasks
            .exec(&exec_request("c", exec, r#"{"args":["x"]}"#))
    }

    /// One with a process `e` that runs in the container `c`.
    async fn executing() -> Self {
        let shim = Self::running().await;
        shim.exec("e").unwrap();
        shim.tasks.start("c", "e").await.unwrap();
        shim
    }

    fn was_killed(&self) -> bool {
        self.guest.calls().contains(&"kill the pod".to_owned())
    }

    fn status(&self, exec: &str) -> Status {
        let state = self.tasks.state("c", exec).unwrap();
        state.status.enum_value().unwrap()
    }

    /// The topics of all events so far, an exit with whose it is.
    fn topics(&mut self) -> Vec<String> {
        let mut topics = Vec::new();
        while let Ok(envelope) = self.events.try_recv() {
            let topic = envelope.topic.clone();
            topics.push(match topic.as_str() {
                "/tasks/exit" => {
                    let exit = events::TaskExit::parse_from_bytes(&envelope.event.value).unwrap();
                    format!("{topic} {} {}", exit.id, exit.exit_status)
                }
                _ => topic,
            });
        }
        topics
    }
}

fn exec_request(id: &str, exec: &str, spec: &str) -> ExecProcessRequest {
    ExecProcessRequest {
        id: id.into(),
        exec_id: exec.into(),
        spec: Some(Any {
            value: spec.into(),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    }
}

fn json(text: &str) -> Any {
    Any {
        value: text.into(),
        ..Default::default()
    }
}

/// The code of a call that must fail.
fn code<T: std::fmt::Debug>(result: Result<T, Failure>) -> Code {
    result.unwrap_err().code
}

#[tokio::test]
async fn a_container_lives_and_tells_of_it_in_order() {
    let mut shim = Shim::new();
    assert_eq!(shim.create("c").await.unwrap(), PID);
    assert_eq!(shim.status(""), Status::CREATED);
    assert_eq!(shim.tasks.start("c", "").await.unwrap(), PID);
    assert_eq!(shim.status(""), Status::RUNNING);
    shim.guest.finish("c", "", 3);
    assert_eq!(shim.tasks.wait("c", "").await.unwrap().status, 3);
    assert_eq!(shim.status(""), Status::STOPPED);
    let deleted = shim.tasks.delete("c", "").await.unwrap();
    assert_eq!((deleted.pid, deleted.exit.unwrap().status), (PID, 3));
    assert_eq!(code(shim.tasks.state("c", "")), Code::NOT_FOUND);
    assert_eq!(
        shim.topics(),
        [
            "/tasks/create",
            "/tasks/start",
            "/tasks/exit c 3",
            "/tasks/delete"
        ]
    );
}

#[tokio::test]
async fn what_is_unknown_is_not_found() {
    let shim = Shim::running().await;
    let size = TerminalSize::default();
    let tasks = &shim.tasks;
    let update = json("{}");
    for (id, exec) in [("x", ""), ("c", "x")] {
        assert_eq!(code(tasks.state(id, exec)), Code::NOT_FOUND);
        assert_eq!(code(tasks.start(id, exec).await), Code::NOT_FOUND);
        assert_eq!(code(tasks.wait(id, exec).await), Code::NOT_FOUND);
        assert_eq!(code(tasks.kill(id, exec, 9, false).await), Code::NOT_FOUND);
        assert_eq!(code(tasks.delete(id, exec).await), Code::NOT_FOUND);
        assert_eq!(code(tasks.resize(id, exec, size).await), Code::NOT_FOUND);
        assert_eq!(code(tasks.close_io(id, exec, true)), Code::NOT_FOUND);
    }
    assert_eq!(code(tasks.pause("x").await), Code::NOT_FOUND);
    assert_eq!(code(tasks.resume("x").await), Code::NOT_FOUND);
    assert_eq!(code(tasks.pids("x").await), Code::NOT_FOUND);
    assert_eq!(code(tasks.stats("x").await), Code::NOT_FOUND);
    assert_eq!(code(tasks.update("x", &update).await), Code::NOT_FOUND);
    let exec = exec_request("x", "e", "{}");
    assert_eq!(code(tasks.exec(&exec)), Code::NOT_FOUND);
    assert_eq!(tasks.pid("x"), 0);
    assert_eq!(tasks.pid("c"), PID);
}

#[tokio::test]
async fn names_are_taken_once() {
    let shim = Shim::running().await;
    assert_eq!(code(shim.create("c").await), Code::ALREADY_EXISTS);
    shim.exec("e").unwrap();
    assert_eq!(code(shim.exec("e")), Code::ALREADY_EXISTS);
    for name in ["", "../x", "a b"] {
        assert_eq!(code(shim.create(name).await), Code::INVALID_ARGUMENT);
        assert_eq!(code(shim.exec(name)), Code::INVALID_ARGUMENT);
    }
}

#[tokio::test]
async fn a_container_that_could_not_be_created_leaves_its_name() {
    let mut shim = Shim::new();
    shim.guest
        .fail_next(Failure::invalid_argument("linux.x: no"));
    assert_eq!(code(shim.create("c").await), Code::INVALID_ARGUMENT);
    assert!(shim.topics().is_empty());
    shim.create("c").await.unwrap();
}

#[tokio::test]
async fn checkpoints_are_not_supported() {
    let shim = Shim::new();
    let request = CreateTaskRequest {
        id: "c".into(),
        checkpoint: "/x".into(),
        ..Default::default()
    };
    assert_eq!(code(shim.tasks.create(request).await), Code::UNIMPLEMENTED);
}

#[tokio::test]
async fn a_created_container_can_only_start_or_go() {
    let mut shim = Shim::new();
    shim.create("c").await.unwrap();
    assert_eq!(code(shim.tasks.pause("c").await), Code::FAILED_PRECONDITION);
    assert_eq!(
        code(shim.tasks.resume("c").await),
        Code::FAILED_PRECONDITION
    );
    shim.exec("e").unwrap();
    assert_eq!(
        code(shim.tasks.start("c", "e").await),
        Code::FAILED_PRECONDITION
    );
    let deleted = shim.tasks.delete("c", "").await.unwrap();
    assert_eq!(deleted.exit.unwrap().status, 137);
    assert_eq!(
        shim.topics(),
        [
            "/tasks/create",
            "/tasks/exec-added",
            "/tasks/exit c 137",
            "/tasks/delete"
        ]
    );
}

#[tokio::test]
async fn a_running_container_is_neither_started_nor_deleted() {
    let shim = Shim::running().await;
    let tasks = &shim.tasks;
    assert_eq!(code(tasks.start("c", "").await), Code::FAILED_PRECONDITION);
    assert_eq!(code(tasks.delete("c", "").await), Code::FAILED_PRECONDITION);
    assert_eq!(code(tasks.resume("c").await), Code::FAILED_PRECONDITION);
    assert_eq!(shim.status(""), Status::RUNNING);
}

#[tokio::test]
async fn a_stopped_container_can_only_be_looked_at_and_deleted() {
    let shim = Shim::stopped().await;
    let tasks = &shim.tasks;
    assert_eq!(code(tasks.start("c", "").await), Code::FAILED_PRECONDITION);
    assert_eq!(code(tasks.pause("c").await), Code::FAILED_PRECONDITION);
    assert_eq!(code(tasks.resume("c").await), Code::FAILED_PRECONDITION);
    assert_eq!(code(shim.exec("e")), Code::FAILED_PRECONDITION);
    let update = tasks.update("c", &json("{}")).await;
    assert_eq!(code(update), Code::FAILED_PRECONDITION);
    let resize = tasks.resize("c", "", TerminalSize::default()).await;
    assert_eq!(code(resize), Code::FAILED_PRECONDITION);
    // containerd takes these for "it is over", which is what they are.
    assert_eq!(code(tasks.kill("c", "", 9, true).await), Code::NOT_FOUND);
    assert_eq!(code(tasks.stats("c").await), Code::NOT_FOUND);
    assert_eq!(tasks.pids("c").await.unwrap(), []);
    tasks.close_io("c", "", true).unwrap();
    assert_eq!(tasks.wait("c", "").await.unwrap().status, 3);
    tasks.delete("c", "").await.unwrap();
    assert_eq!(code(tasks.delete("c", "").await), Code::NOT_FOUND);
}

#[tokio::test]
async fn a_start_that_fails_may_be_tried_again() {
    let mut shim = Shim::new();
    shim.create("c").await.unwrap();
    let wrong = Failure::invalid_argument("exec: \"x\": no such file");
    shim.guest.fail_next(wrong.clone());
    assert_eq!(shim.tasks.start("c", "").await.unwrap_err(), wrong);
    assert_eq!(shim.status(""), Status::CREATED);
    assert_eq!(shim.topics(), ["/tasks/create"]);
    shim.tasks.start("c", "").await.unwrap();
}

#[tokio::test]
async fn the_start_is_told_before_the_end_however_fast_it_comes() {
    let mut shim = Shim::new();
    shim.create("c").await.unwrap();
    let guest = shim.guest.clone();
    let slow = guest.slow.lock().await;
    let tasks = shim.tasks.clone();
    let start = tokio::spawn(async move { tasks.start("c", "").await });
    tokio::task::yield_now().await;
    assert_eq!(
        code(shim.tasks.delete("c", "").await),
        Code::FAILED_PRECONDITION
    );
    shim.guest.finish("c", "", 0);
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert_eq!(shim.topics(), ["/tasks/create"]);
    drop(slow);
    start.await.unwrap().unwrap();
    shim.tasks.wait("c", "").await.unwrap();
    assert_eq!(shim.topics(), ["/tasks/start", "/tasks/exit c 0"]);
}

#[tokio::test]
async fn pausing_follows_its_states() {
    let mut shim = Shim::running().await;
    let tasks = shim.tasks.clone();
    tasks.pause("c").await.unwrap();
    assert_eq!(shim.status(""), Status::PAUSED);
    assert_eq!(code(tasks.pause("c").await), Code::FAILED_PRECONDITION);
    assert_eq!(code(shim.exec("e")), Code::FAILED_PRECONDITION);
    let failure = tasks.delete("c", "").await.unwrap_err();
    assert_eq!(failure.message, "cannot delete a paused process");
    tasks.resume("c").await.unwrap();
    assert_eq!(shim.status(""), Status::RUNNING);
    assert_eq!(
        shim.topics(),
        [
            "/tasks/create",
            "/tasks/start",
            "/tasks/paused",
            "/tasks/resumed"
        ]
    );
    // One that fails changes nothing.
    shim.guest.fail_next(Failure::internal("no"));
    assert_eq!(code(tasks.pause("c").await), Code::INTERNAL);
    assert_eq!(shim.status(""), Status::RUNNING);
    tasks.pause("c").await.unwrap();
    shim.guest.fail_next(Failure::internal("no"));
    assert_eq!(code(tasks.resume("c").await), Code::INTERNAL);
    assert_eq!(shim.status(""), Status::PAUSED);
    // A paused container that is killed has stopped.
    tasks.kill("c", "", 9, false).await.unwrap();
    tasks.wait("c", "").await.unwrap();
    assert_eq!(shim.status(""), Status::STOPPED);
}

#[tokio::test]
async fn signals_reach_whom_they_are_for() {
    let shim = Shim::executing().await;
    let tasks = &shim.tasks;
    tasks.kill("c", "", 15, true).await.unwrap();
    tasks.kill("c", "e", 2, false).await.unwrap();
    let calls = shim.guest.calls();
    assert!(calls.contains(&"signal 15 true ".to_owned()), "{calls:?}");
    assert!(calls.contains(&"signal 2 false e".to_owned()), "{calls:?}");
    for signal in [0, 65, u32::MAX] {
        let killed = tasks.kill("c", "", signal, false).await;
        assert_eq!(code(killed), Code::INVALID_ARGUMENT);
    }
}

#[tokio::test]
async fn a_kill_that_comes_too_late_finds_nothing() {
    let shim = Shim::running().await;
    // The guest knows of the end before the shim does.
    shim.guest
        .fail_next(Failure::failed_precondition("it has ended"));
    let failure = shim.tasks.kill("c", "", 15, false).await.unwrap_err();
    assert_eq!(failure, Failure::not_found("process already finished"));
}

#[tokio::test]
async fn a_guest_that_does_not_answer_a_kill_is_killed() {
    let mut shim = Shim::executing().await;
    // Who gives up a probe gives up nothing else.
    shim.guest.fail_next(Failure::deadline_exceeded("late"));
    let probe = shim.tasks.kill("c", "e", 9, false).await;
    assert_eq!(code(probe), Code::DEADLINE_EXCEEDED);
    // One that is asked to end gets its time for it.
    shim.guest.fail_next(Failure::deadline_exceeded("late"));
    shim.tasks.kill("c", "", 15, false).await.unwrap();
    assert!(!shim.was_killed());
    shim.guest.fail_next(Failure::deadline_exceeded("late"));
    shim.tasks.kill("c", "", 9, false).await.unwrap();
    assert!(shim.was_killed());
    assert_eq!(shim.tasks.wait("c", "").await.unwrap().status, 137);
    assert_eq!(shim.topics().last().unwrap(), "/tasks/exit c 137");
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_lies_about_a_kill_loses_its_pod() {
    let answers: [fn() -> Option<Failure>; 4] = [
        || None,
        || Some(Failure::not_found("no such container")),
        || Some(Failure::failed_precondition("it has ended")),
        || Some(Failure::internal("no")),
    ];
    for answer in answers {
        let shim = Shim::running().await;
        shim.guest.lie();
        if let Some(failure) = answer() {
            shim.guest.fail_next(failure);
        }
        let before = tokio::time::Instant::now();
        let _ = shim.tasks.kill("c", "", 9, false).await;
        assert_eq!(before.elapsed(), Duration::ZERO);
        assert_eq!(shim.status(""), Status::RUNNING);
        assert_eq!(shim.tasks.wait("c", "").await.unwrap().status, 137);
        assert_eq!(before.elapsed(), KILLED);
        assert!(shim.was_killed());
        shim.tasks.delete("c", "").await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_container_ends_of_a_kill_stays() {
    let shim = Shim::executing().await;
    shim.tasks.kill("c", "e", 9, false).await.unwrap();
    shim.tasks.wait("c", "e").await.unwrap();
    // It ends late, but it ends, and who reads its output takes even longer.
    shim.guest.lie();
    shim.tasks.kill("c", "", 9, true).await.unwrap();
    tokio::time::sleep(KILLED - Duration::from_secs(1)).await;
    shim.guest.finish("c", "", 137);
    tokio::time::sleep(KILLED * 2).await;
    assert_eq!(shim.status(""), Status::STOPPED);
    assert!(!shim.was_killed());
    // Other signals are nothing to be made sure of.
    let shim = Shim::running().await;
    shim.guest.lie();
    shim.tasks.kill("c", "", 15, true).await.unwrap();
    tokio::time::sleep(KILLED * 2).await;
    assert_eq!(shim.status(""), Status::RUNNING);
    assert!(!shim.was_killed());
}

#[tokio::test(start_paused = true)]
async fn a_further_process_that_does_not_end_of_a_kill_is_given_up() {
    let mut shim = Shim::executing().await;
    shim.guest.lie();
    let before = tokio::time::Instant::now();
    shim.tasks.kill("c", "e", 9, false).await.unwrap();
    assert_eq!(shim.tasks.wait("c", "e").await.unwrap().status, 137);
    assert_eq!(before.elapsed(), KILLED);
    assert_eq!(shim.topics().last().unwrap(), "/tasks/exit e 137");
    shim.tasks.delete("c", "e").await.unwrap();
    assert_eq!(shim.status(""), Status::RUNNING);
    assert!(!shim.was_killed());
}

#[tokio::test(start_paused = true)]
async fn processes_that_outlive_their_container_are_given_up() {
    let shim = Shim::executing().await;
    shim.guest.finish("c", "", 0);
    shim.tasks.wait("c", "").await.unwrap();
    assert_eq!(shim.tasks.wait("c", "e").await.unwrap().status, 137);
}

#[tokio::test(start_paused = true)]
async fn a_created_container_goes_though_the_guest_keeps_it() {
    let shim = Shim::new();
    shim.create("c").await.unwrap();
    shim.guest.lie();
    shim.guest.fail_next(Failure::internal("no"));
    let deleted = shim.tasks.delete("c", "").await.unwrap();
    assert_eq!(deleted.exit.unwrap().status, 137);
    assert!(shim.was_killed());
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_refuses_a_deletion_loses_its_pod() {
    let shim = Shim::stopped().await;
    shim.create("d").await.unwrap();
    shim.guest.lie();
    shim.tasks.delete("c", "").await.unwrap();
    assert!(shim.was_killed());
    assert_eq!(shim.tasks.wait("d", "").await.unwrap().status, 137);

    // One that does not answer, when nothing else of it is alive.
    let shim = Shim::stopped().await;
    shim.guest.fail_next(Failure::deadline_exceeded("late"));
    shim.tasks.delete("c", "").await.unwrap();
    assert!(shim.was_killed());
}

#[tokio::test]
async fn a_pod_that_is_lost_ends_all_of_its_containers() {
    let mut shim = Shim::executing().await;
    shim.create("d").await.unwrap();
    shim.guest.lose();
    for (id, exec) in [("c", ""), ("c", "e"), ("d", "")] {
        assert_eq!(shim.tasks.wait(id, exec).await.unwrap().status, 137);
    }
    let topics = shim.topics();
    let position = |topic: &str| topics.iter().position(|other| other == topic).unwrap();
    assert!(position("/tasks/exit e 137") < position("/tasks/exit c 137"));
    assert!(topics.contains(&"/tasks/exit d 137".to_owned()));
    shim.tasks.delete("c", "").await.unwrap();
    shim.tasks.delete("d", "").await.unwrap();
}

#[tokio::test]
async fn a_further_process_lives_and_tells_of_it() {
    let mut shim = Shim::executing().await;
    assert_eq!(shim.status("e"), Status::RUNNING);
    let calls = shim.guest.calls();
    let exec = r#"exec e {"args":["x"],"terminal":false}"#.to_owned();
    assert!(calls.contains(&exec), "{calls:?}");
    assert_eq!(
        code(shim.tasks.start("c", "e").await),
        Code::FAILED_PRECONDITION
    );
    assert_eq!(
        code(shim.tasks.delete("c", "e").await),
        Code::FAILED_PRECONDITION
    );
    shim.guest.finish("c", "e", 5);
    assert_eq!(shim.tasks.wait("c", "e").await.unwrap().status, 5);
    assert_eq!(
        code(shim.tasks.kill("c", "e", 9, false).await),
        Code::NOT_FOUND
    );
    let deleted = shim.tasks.delete("c", "e").await.unwrap();
    assert_eq!(deleted.exit.unwrap().status, 5);
    assert_eq!(code(shim.tasks.state("c", "e")), Code::NOT_FOUND);
    assert_eq!(
        shim.topics(),
        [
            "/tasks/create",
            "/tasks/start",
            "/tasks/exec-added",
            "/tasks/exec-started",
            "/tasks/exit e 5"
        ]
    );
    // The name is free again.
    shim.exec("e").unwrap();
}

#[tokio::test]
async fn a_further_process_that_never_ran_can_be_deleted() {
    let shim = Shim::running().await;
    shim.exec("e").unwrap();
    assert_eq!(
        code(shim.tasks.kill("c", "e", 9, false).await),
        Code::FAILED_PRECONDITION
    );
    let tasks = shim.tasks.clone();
    let wait = tokio::spawn(async move { tasks.wait("c", "e").await });
    tokio::task::yield_now().await;
    assert_eq!(shim.tasks.delete("c", "e").await.unwrap().exit, None);
    // Nor who had waited before.
    assert_eq!(wait.await.unwrap().unwrap().status, 255);

    shim.exec("f").unwrap();
    let wrong = Failure::invalid_argument("exec: \"x\": no such file");
    shim.guest.fail_next(wrong.clone());
    assert_eq!(shim.tasks.start("c", "f").await.unwrap_err(), wrong);
    // Who waits for it is not left waiting.
    assert_eq!(shim.tasks.wait("c", "f").await.unwrap().status, 255);
    shim.tasks.delete("c", "f").await.unwrap();
    let calls = shim.guest.calls();
    assert!(
        !calls.iter().any(|call| call.starts_with("delete")),
        "{calls:?}"
    );
}

#[tokio::test]
async fn a_signal_for_a_process_that_is_starting_comes_after_the_start() {
    let shim = Shim::running().await;
    shim.exec("e").unwrap();
    let slow = shim.guest.slow.lock().await;
    let (starts, kills, deletes) = (shim.tasks.clone(), shim.tasks.clone(), shim.tasks.clone());
    let start = tokio::spawn(async move { starts.start("c", "e").await });
    tokio::task::yield_now().await;
    let kill = tokio::spawn(async move { kills.kill("c", "e", 2, true).await });
    let delete = tokio::spawn(async move { deletes.delete("c", "e").await });
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert!(!kill.is_finished() && !delete.is_finished());
    drop(slow);
    start.await.unwrap().unwrap();
    kill.await.unwrap().unwrap();
    assert_eq!(
        code(delete.await.unwrap()),
        Code::FAILED_PRECONDITION,
        "it runs now"
    );
    // It is for this process, whatever was said of the others.
    let calls = shim.guest.calls();
    assert!(calls.contains(&"signal 2 false e".to_owned()), "{calls:?}");
}

#[tokio::test]
async fn the_containers_end_is_the_last_of_its_processes() {
    let mut shim = Shim::executing().await;
    shim.guest.finish("c", "", 0);
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert_eq!(shim.status(""), Status::RUNNING);
    shim.guest.finish("c", "e", 137);
    shim.tasks.wait("c", "").await.unwrap();
    let topics = shim.topics();
    assert_eq!(
        topics[topics.len() - 2..],
        ["/tasks/exit e 137", "/tasks/exit c 0"]
    );
}

#[tokio::test]
async fn lack_of_memory_is_told_before_the_end_and_once() {
    let mut shim = Shim::running().await;
    shim.guest.end_with("c", "", 137, true);
    shim.tasks.wait("c", "").await.unwrap();
    shim.guest.kills.send_replace(1);
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        shim.topics()[2..],
        ["/tasks/oom", "/tasks/exit c 137"],
        "one that the watcher has not seen"
    );

    let mut shim = Shim::running().await;
    shim.guest.kills.send_replace(2);
    tokio::time::sleep(Duration::from_millis(20)).await;
    shim.guest.end_with("c", "", 137, true);
    shim.tasks.wait("c", "").await.unwrap();
    assert_eq!(shim.topics()[2..], ["/tasks/oom", "/tasks/exit c 137"]);
}

#[tokio::test(start_paused = true)]
async fn lack_of_memory_is_told_only_so_often() {
    let mut shim = Shim::running().await;
    shim.topics();
    for kills in 1..=100 {
        shim.guest.kills.send_replace(kills);
        tokio::time::sleep(OOM_PAUSE / 50).await;
    }
    assert!((2..=3).contains(&shim.topics().len()));
    // All of them have been told of.
    tokio::time::sleep(OOM_PAUSE).await;
    shim.topics();
    tokio::time::sleep(OOM_PAUSE * 2).await;
    assert!(shim.topics().is_empty());
}

#[tokio::test]
async fn terminals_are_resized_and_others_left_alone() {
    let shim = Shim::new();
    let request = CreateTaskRequest {
        id: "c".into(),
        terminal: true,
        ..Default::default()
    };
    shim.tasks.create(request).await.unwrap();
    shim.tasks.start("c", "").await.unwrap();
    let size = TerminalSize {
        columns: 80,
        rows: 24,
    };
    shim.tasks.resize("c", "", size).await.unwrap();
    shim.exec("e").unwrap();
    shim.tasks.resize("c", "e", size).await.unwrap();
    let resizes: Vec<_> = shim.guest.calls();
    let resizes: Vec<_> = resizes
        .iter()
        .filter(|call| call.starts_with("resize"))
        .collect();
    assert_eq!(resizes, ["resize 80x24"]);
}

#[tokio::test]
async fn limits_must_be_an_object() {
    let shim = Shim::running().await;
    shim.tasks
        .update("c", &json(r#"{"memory":{"limit":1}}"#))
        .await
        .unwrap();
    let calls = shim.guest.calls();
    assert_eq!(calls.last().unwrap(), r#"update c {"memory":{"limit":1}}"#);
    for wrong in ["", "[]", "{"] {
        let updated = shim.tasks.update("c", &json(wrong)).await;
        assert_eq!(code(updated), Code::INVALID_ARGUMENT, "{wrong}");
    }
    for wrong in ["", "7", "{"] {
        let added = shim.tasks.exec(&exec_request("c", "e", wrong));
        assert_eq!(code(added), Code::INVALID_ARGUMENT, "{wrong}");
    }
}

#[tokio::test]
async fn processes_are_listed_with_the_names_they_were_executed_under() {
    let shim = Shim::executing().await;
    let pids = shim.tasks.pids("c").await.unwrap();
    assert_eq!(pids, [(1, None), (2, Some("e".to_owned())), (77, None)]);
}

#[tokio::test]
async fn a_pods_use_is_the_sum_of_its_containers() {
    let shim = Shim::running().await;
    shim.create("d").await.unwrap();
    let any = shim.tasks.stats_of_all().await.unwrap();
    let metrics = Metrics::parse_from_bytes(&any.value).unwrap();
    assert_eq!(metrics.pids.current, 6);
    // The network is one for all of them.
    let received = metrics.network.iter().map(|network| network.rx_bytes);
    assert_eq!(received.collect::<Vec<_>>(), [11]);
}

#[tokio::test]
async fn only_one_of_two_deletions_at_once_deletes() {
    let shim = Shim::stopped().await;
    let (one, other) = tokio::join!(shim.tasks.delete("c", ""), shim.tasks.delete("c", ""));
    assert!(one.is_ok() != other.is_ok());
    let deletions = shim.guest.calls();
    let deletions = deletions.iter().filter(|call| *call == "delete c");
    assert_eq!(deletions.count(), 1);
}

#[tokio::test]
async fn a_deletion_that_fails_may_be_tried_again() {
    let shim = Shim::stopped().await;
    // The pod is not to be ended for it.
    shim.create("d").await.unwrap();
    shim.guest.fail_next(Failure::deadline_exceeded("late"));
    assert_eq!(
        code(shim.tasks.delete("c", "").await),
        Code::DEADLINE_EXCEEDED
    );
    assert!(!shim.was_killed());
    shim.tasks.delete("c", "").await.unwrap();
}

#[tokio::test]
async fn the_shim_ends_when_its_last_container_is_deleted() {
    let shim = Shim::stopped().await;
    shim.tasks.shutdown().await;
    shim.lifetime.check_open().unwrap();
    shim.tasks.delete("c", "").await.unwrap();
    shim.tasks.shutdown().await;
    shim.lifetime.over().await;
    assert_eq!(shim.guest.calls().last().unwrap(), "end");
    assert_eq!(code(shim.create("d").await), Code::UNAVAILABLE);
}
