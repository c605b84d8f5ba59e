use std::os::unix::net::UnixStream as StdStream;
use std::sync::Arc;

use async_trait::async_trait;
use nacre_protocol::agent_ttrpc;
use ttrpc::asynchronous::{Server, TtrpcContext};

use super::*;

/// What a fake agent answers to a request about the container that is named so.
struct FakeAgent;

fn fail(code: Code) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, "as \u{1b}[1masked"))
}

#[async_trait]
impl agent_ttrpc::Agent for FakeAgent {
    async fn start_container(
        &self,
        _: &TtrpcContext,
        request: messages::StartContainerRequest,
    ) -> ttrpc::Result<messages::StartContainerResponse> {
        match request.container_id.as_str() {
            "fine" => Ok(messages::StartContainerResponse::new()),
            "missing" => Err(fail(Code::NOT_FOUND)),
            "twice" => Err(fail(Code::ALREADY_EXISTS)),
            "running" => Err(fail(Code::FAILED_PRECONDITION)),
            "bad" => Err(fail(Code::INVALID_ARGUMENT)),
            "forbidden" => Err(fail(Code::PERMISSION_DENIED)),
            "too-much" => Err(fail(Code::RESOURCE_EXHAUSTED)),
            "leaving" => Err(fail(Code::UNAVAILABLE)),
            "hangs" => std::future::pending().await,
            _ => Err(fail(Code::DATA_LOSS)),
        }
    }

    async fn wait_container(
        &self,
        _: &TtrpcContext,
        request: messages::WaitContainerRequest,
    ) -> ttrpc::Result<messages::WaitContainerResponse> {
        let exit_status = request.container_id.parse().unwrap_or(u32::MAX);
        Ok(messages::WaitContainerResponse {
            exit_status,
            oom_killed: exit_status == 137,
            ..Default::default()
        })
    }

    async fn container_stats(
        &self,
        _: &TtrpcContext,
        _: messages::ContainerStatsRequest,
    ) -> ttrpc::Result<ContainerStats> {
        Ok(too_much())
    }

    async fn guest_stats(
        &self,
        _: &TtrpcContext,
        _: messages::GuestStatsRequest,
    ) -> ttrpc::Result<GuestStats> {
        let containers = (0..1000).map(|number| (number.to_string(), ContainerStats::new()));
        let mut stats = GuestStats {
            containers: containers.collect(),
            ..Default::default()
        };
        stats.containers.insert("7".into(), too_much());
        Ok(stats)
    }

    async fn set_up_pod(
        &self,
        _: &TtrpcContext,
        _: messages::SetUpPodRequest,
    ) -> ttrpc::Result<messages::SetUpPodResponse> {
        Ok(messages::SetUpPodResponse {
            kernel_release: format!("6.12\u{1b}c{}", "x".repeat(1 << 20)),
            ..Default::default()
        })
    }
}

/// More than a container can use.
fn too_much() -> ContainerStats {
    let counters = (0..1000).map(|number| (format!("counter.{number}_x"), number));
    let mut memory = MemoryStats {
        stat: counters.collect(),
        ..Default::default()
    };
    for name in ["", "Anon", "\u{1b}", &"x".repeat(65), "oom_kill"] {
        memory.events.insert(name.into(), 1);
    }
    ContainerStats {
        io: vec![IoStats::new(); 1000],
        memory: Some(memory).into(),
        ..Default::default()
    }
}

fn into_tokio(stream: StdStream) -> UnixStream {
    stream.set_nonblocking(true).unwrap();
    UnixStream::from_std(stream).unwrap()
}

/// A client of a fake agent, which serves as long as the server is kept.
async fn connect() -> (Agent, Server) {
    let (ours, theirs) = StdStream::pair().unwrap();
    let connection = futures::stream::once(std::future::ready(Ok(into_tokio(theirs))));
    let listener = ttrpc::asynchronous::transport::Listener::new(connection);
    let service = agent_ttrpc::create_agent(Arc::new(FakeAgent));
    let mut server = Server::new()
        .add_listener(listener)
        .register_service(service);
    server.start().await.unwrap();
    (Agent::new(into_tokio(ours), Duration::ZERO), server)
}

#[tokio::test]
async fn errors_keep_their_kind_and_lose_their_escape_sequences() {
    let (agent, _server) = connect().await;
    let said = || "as \\u{1b}[1masked".to_owned();
    assert_eq!(agent.start_container("fine").await, Ok(()));
    for (id, error) in [
        ("missing", AgentError::NotFound(said())),
        ("twice", AgentError::AlreadyExists(said())),
        ("running", AgentError::FailedPrecondition(said())),
        ("bad", AgentError::InvalidArgument(said())),
        ("forbidden", AgentError::PermissionDenied(said())),
        ("too-much", AgentError::ResourceExhausted(said())),
        ("leaving", AgentError::Unavailable(said())),
        ("other", AgentError::Internal(said())),
    ] {
        assert_eq!(agent.start_container(id).await, Err(error));
    }
}

#[tokio::test]
async fn one_call_that_hangs_holds_up_no_other_and_has_a_deadline() {
    let (agent, _server) = connect().await;
    tokio::time::pause();
    let hanging = agent.clone();
    let hanging = tokio::spawn(async move { hanging.start_container("hangs").await });
    assert_eq!(agent.start_container("fine").await, Ok(()));
    let before = tokio::time::Instant::now();
    let late = hanging.await.unwrap();
    assert_eq!(late, Err(AgentError::DeadlineExceeded("start_container")));
    assert!(before.elapsed() <= THOROUGH * 2);
}

#[tokio::test]
async fn the_end_of_a_container_is_a_status_of_eight_bits() {
    let (agent, _server) = connect().await;
    for (id, status, oom_killed) in [("0", 0, false), ("137", 137, true), ("255", 255, false)] {
        let end = ProcessEnd {
            status,
            exited_at: UNIX_EPOCH,
            oom_killed,
        };
        assert_eq!(agent.wait(ProcessId::first_of(id)).await, Ok(end));
    }
    for id in ["256", "nonsense"] {
        let end = agent.wait(ProcessId::first_of(id)).await;
        assert_eq!(end, Err(AgentError::Nonsense("wait_container")));
    }
}

#[tokio::test]
async fn what_the_guest_says_of_itself_is_bounded() {
    let (agent, _server) = connect().await;
    let guest = agent
        .set_up_pod(&messages::SetUpPodRequest::new())
        .await
        .unwrap();
    assert!(guest.kernel_release.starts_with("6.12\\u{1b}c"));
    assert!(guest.kernel_release.len() < 1000);
}

#[tokio::test]
async fn what_containers_are_said_to_use_is_bounded() {
    let (agent, _server) = connect().await;
    let asked = ["7", "8", "absent"].map(String::from).to_vec();
    let mut guest = agent.guest_stats(asked).await.unwrap();
    let mut containers: Vec<_> = guest.containers.keys().cloned().collect();
    containers.sort();
    assert_eq!(containers, ["7", "8"]);
    for stats in [
        agent.container_stats("7").await.unwrap(),
        guest.containers.remove("7").unwrap(),
    ] {
        assert_eq!(stats.io.len(), MAX_DEVICES);
        assert_eq!(stats.memory.stat.len(), MAX_COUNTERS);
        let events: Vec<_> = stats.memory.events.iter().collect();
        assert_eq!(events, [(&"oom_kill".to_owned(), &1)]);
    }
}

#[tokio::test]
async fn a_call_that_the_agent_does_not_know_is_an_error() {
    let (agent, _server) = connect().await;
    assert!(agent.shut_down().await.is_err());
}

#[tokio::test]
async fn a_guest_that_leaves_or_talks_rubbish_is_disconnected() {
    use std::io::Write;
    for rubbish in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", &[0xff; 4096]] {
        let (ours, mut theirs) = StdStream::pair().unwrap();
        let agent = Agent::new(into_tokio(ours), Duration::ZERO);
        theirs.write_all(rubbish).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(agent.start_container("fine").await.is_err());
    }
}

#[test]
fn a_program_that_cannot_be_executed_has_the_status_of_a_shell() {
    let status = |message: &str| AgentError::InvalidArgument(message.into()).exec_status();
    assert_eq!(
        status(r#"exec: "x": executable file not found in $PATH"#),
        Some(127)
    );
    assert_eq!(
        status(r#"exec: "/x": no such file or directory"#),
        Some(127)
    );
    assert_eq!(status(r#"exec: "/x": permission denied"#), Some(126));
    assert_eq!(status(r#"exec: "/": is a directory"#), Some(126));
    assert_eq!(status(r#"exec: "/x": exec format error"#), Some(126));
    assert_eq!(status("root.path: no such file or directory"), None);
    assert_eq!(
        AgentError::Internal(r#"exec: "x": ..."#.into()).exec_status(),
        None
    );
}
