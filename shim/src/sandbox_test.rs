use std::path::PathBuf;

use ttrpc::Code;

use super::*;
use crate::events::Publisher;
use crate::fake_guest::{FakeGuest, PID};

struct Shim {
    guest: Arc<FakeGuest>,
    tasks: Tasks,
    sandbox: Sandbox,
    lifetime: Arc<Lifetime>,
}

impl Shim {
    fn new() -> Self {
        let guest = FakeGuest::new();
        let (publisher, _) = Publisher::for_test();
        let lifetime = Arc::new(Lifetime::new(PathBuf::from("/nowhere/socket")));
        let tasks = Tasks::new(guest.clone(), publisher, "ns", lifetime.clone());
        let sandbox = Sandbox::new("pod", guest.clone(), tasks.clone(), lifetime.clone());
        Self {
            guest,
            tasks,
            sandbox,
            lifetime,
        }
    }

    fn created() -> Self {
        let shim = Self::new();
        shim.sandbox.create(&request("pod")).unwrap();
        shim
    }

    async fn running() -> Self {
        let shim = Self::created();
        shim.sandbox.start("pod").await.unwrap();
        shim
    }

    fn state(&self) -> String {
        self.sandbox.status("pod", false).unwrap().state
    }
}

fn request(id: &str) -> CreateSandboxRequest {
    CreateSandboxRequest {
        sandbox_id: id.into(),
        bundle_path: "/nowhere".into(),
        ..Default::default()
    }
}

fn code<T: std::fmt::Debug>(result: Result<T, Failure>) -> Code {
    result.unwrap_err().code
}

#[tokio::test]
async fn a_sandbox_lives_without_containers() {
    let shim = Shim::created();
    assert_eq!(shim.state(), "SANDBOX_NOTREADY");
    let (pid, created_at) = shim.sandbox.start("pod").await.unwrap();
    assert_eq!(pid, PID);
    assert!(created_at.unwrap().seconds > 0);
    let status = shim.sandbox.status("pod", true).unwrap();
    assert_eq!((status.state.as_str(), status.pid), ("SANDBOX_READY", PID));
    assert_eq!(status.info["runtime"], "io.containerd.nacre.v2");
    shim.sandbox.ping("pod").unwrap();
    shim.sandbox.metrics("pod").await.unwrap();
    // Its last container's deletion is not its end.
    shim.tasks.shutdown().await;
    assert_eq!(shim.state(), "SANDBOX_READY");
    shim.lifetime.check_open().unwrap();

    shim.sandbox.stop("pod").await.unwrap();
    assert_eq!(shim.sandbox.wait("pod").await.unwrap().status, 0);
    let status = shim.sandbox.status("pod", false).unwrap();
    assert_eq!(status.state, "SANDBOX_NOTREADY");
    assert!(status.exited_at.seconds > 0);
    shim.lifetime.check_open().unwrap();
    shim.sandbox.shutdown().await;
    shim.lifetime.over().await;
}

#[tokio::test]
async fn what_was_never_created_is_not_found() {
    for shim in [Shim::new(), Shim::created()] {
        let sandbox = &shim.sandbox;
        let id = "other";
        assert_eq!(code(sandbox.start(id).await), Code::NOT_FOUND);
        assert_eq!(code(sandbox.stop(id).await), Code::NOT_FOUND);
        assert_eq!(code(sandbox.wait(id).await), Code::NOT_FOUND);
        assert_eq!(code(sandbox.status(id, false)), Code::NOT_FOUND);
        assert_eq!(code(sandbox.ping(id)), Code::NOT_FOUND);
        assert_eq!(code(sandbox.check(id)), Code::NOT_FOUND);
        assert_eq!(code(sandbox.metrics(id).await), Code::NOT_FOUND);
    }
    assert_eq!(code(Shim::new().sandbox.ping("pod")), Code::NOT_FOUND);
}

#[tokio::test]
async fn a_sandbox_is_created_and_started_once() {
    let shim = Shim::running().await;
    assert_eq!(
        code(shim.sandbox.create(&request("pod"))),
        Code::ALREADY_EXISTS
    );
    assert_eq!(
        code(shim.sandbox.create(&request("other"))),
        Code::INVALID_ARGUMENT
    );
    assert_eq!(
        code(shim.sandbox.start("pod").await),
        Code::FAILED_PRECONDITION
    );
    shim.sandbox.stop("pod").await.unwrap();
    assert_eq!(
        code(shim.sandbox.start("pod").await),
        Code::FAILED_PRECONDITION
    );
    assert_eq!(
        code(shim.sandbox.create(&request("pod"))),
        Code::ALREADY_EXISTS
    );
}

#[tokio::test]
async fn stop_may_be_called_at_any_time_and_again() {
    let shim = Shim::created();
    shim.sandbox.stop("pod").await.unwrap();
    shim.sandbox.stop("pod").await.unwrap();
    assert_eq!(code(shim.sandbox.ping("pod")), Code::UNAVAILABLE);
    assert_eq!(
        code(shim.sandbox.metrics("pod").await),
        Code::FAILED_PRECONDITION
    );
}

#[tokio::test]
async fn a_wait_is_answered_when_the_pod_has_ended_and_not_before() {
    let shim = Shim::running().await;
    let slow = shim.guest.slow_end.lock().await;
    let (stops, waits) = (shim.sandbox.clone(), shim.sandbox.clone());
    let stop = tokio::spawn(async move { stops.stop("pod").await });
    let wait = tokio::spawn(async move { waits.wait("pod").await });
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert!(!wait.is_finished());
    assert_eq!(shim.state(), "SANDBOX_NOTREADY");
    assert_eq!(code(shim.sandbox.ping("pod")), Code::UNAVAILABLE);
    drop(slow);
    stop.await.unwrap().unwrap();
    assert_eq!(wait.await.unwrap().unwrap().status, 0);
}

#[tokio::test]
async fn a_sandbox_that_does_not_boot_has_stopped() {
    let shim = Shim::created();
    shim.guest.fail_next(Failure::internal("no KVM"));
    let failure = shim.sandbox.start("pod").await.unwrap_err();
    assert_eq!(failure, Failure::internal("no KVM"));
    assert_eq!(shim.state(), "SANDBOX_NOTREADY");
    assert_eq!(shim.sandbox.wait("pod").await.unwrap().status, 255);
}

#[tokio::test]
async fn a_stop_during_the_start_wins() {
    let shim = Shim::created();
    let slow = shim.guest.slow.lock().await;
    let sandbox = shim.sandbox.clone();
    let start = tokio::spawn(async move { sandbox.start("pod").await });
    tokio::task::yield_now().await;
    shim.sandbox.stop("pod").await.unwrap();
    drop(slow);
    assert_eq!(code(start.await.unwrap()), Code::FAILED_PRECONDITION);
    assert_eq!(shim.state(), "SANDBOX_NOTREADY");
    assert_eq!(shim.guest.calls().last().unwrap(), "end");
}

#[tokio::test]
async fn a_pod_that_is_lost_is_a_sandbox_that_was_killed() {
    let shim = Shim::running().await;
    shim.guest.lose();
    assert_eq!(shim.sandbox.wait("pod").await.unwrap().status, 137);
    assert_eq!(shim.state(), "SANDBOX_NOTREADY");
    assert_eq!(code(shim.sandbox.ping("pod")), Code::UNAVAILABLE);
    shim.sandbox.stop("pod").await.unwrap();
}

#[tokio::test]
async fn shutdown_ends_the_shim_whatever_there_is() {
    for shim in [Shim::new(), Shim::created(), Shim::running().await] {
        shim.sandbox.shutdown().await;
        shim.lifetime.over().await;
        assert_eq!(
            code(shim.sandbox.create(&request("pod"))),
            Code::UNAVAILABLE
        );
    }
}
