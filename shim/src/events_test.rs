use std::path::Path;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use containerd_shim_protos::shim_async::{Events, create_events};
use protobuf::well_known_types::empty::Empty;
use ttrpc::asynchronous::{Server, TtrpcContext};

use protobuf::Message;

use super::*;

/// A containerd that notes what it hears, after it has refused some.
#[derive(Clone, Default)]
struct Containerd {
    heard: Arc<Mutex<Vec<Envelope>>>,
    refusals: Arc<Mutex<u32>>,
}

#[async_trait]
impl Events for Containerd {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let mut refusals = self.refusals.lock().unwrap();
        if *refusals > 0 {
            *refusals -= 1;
            let status = ttrpc::get_status(ttrpc::Code::UNAVAILABLE, "not now");
            return Err(ttrpc::Error::RpcStatus(status));
        }
        self.heard.lock().unwrap().push(request.envelope.unwrap());
        Ok(Empty::new())
    }
}

impl Containerd {
    async fn serve(&self, path: &Path) -> Server {
        let mut server = Server::new()
            .bind(&format!("unix://{}", path.display()))
            .unwrap()
            .register_service(create_events(Arc::new(self.clone())));
        server.start().await.unwrap();
        server
    }

    fn ids(&self) -> Vec<String> {
        let heard = self.heard.lock().unwrap();
        let id = |envelope: &Envelope| {
            events::TaskOOM::parse_from_bytes(&envelope.event.value)
                .unwrap()
                .container_id
        };
        heard.iter().map(id).collect()
    }
}

fn event(id: &str) -> events::TaskOOM {
    events::TaskOOM {
        container_id: id.to_owned(),
        ..Default::default()
    }
}

#[tokio::test]
async fn events_arrive_in_order_with_topic_and_namespace() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let containerd = Containerd::default();
    let _server = containerd.serve(&path).await;
    let (publisher, delivery) = publisher("ns", path.to_str().unwrap());
    let ids: Vec<_> = (0..20).map(|number| number.to_string()).collect();
    for id in &ids {
        publisher.send(&event(id));
    }
    delivery.finish(Duration::from_secs(5)).await;
    assert_eq!(containerd.ids(), ids);
    let heard = containerd.heard.lock().unwrap();
    assert_eq!(heard[0].topic, "/tasks/oom");
    assert_eq!(heard[0].namespace, "ns");
    assert_eq!(heard[0].event.type_url, "containerd.events.TaskOOM");
    assert!(heard[0].timestamp.seconds > 0);
}

#[tokio::test]
async fn events_wait_for_a_containerd_that_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let containerd = Containerd::default();
    *containerd.refusals.lock().unwrap() = 2;
    let address = format!("unix://{}", path.display());
    let (publisher, delivery) = publisher("ns", &address);
    publisher.send(&event("a"));
    publisher.send(&event("b"));
    tokio::time::sleep(Duration::from_millis(150)).await;
    let _server = containerd.serve(&path).await;
    publisher.send(&event("c"));
    delivery.finish(Duration::from_secs(10)).await;
    assert_eq!(containerd.ids(), ["a", "b", "c"]);
}

#[tokio::test]
async fn nobody_waits_for_ever_for_a_containerd_that_stays_away() {
    let (publisher, delivery) = publisher("ns", "/nowhere/s");
    publisher.send(&event("a"));
    delivery.finish(Duration::from_millis(50)).await;
}

#[tokio::test]
async fn without_an_address_events_go_nowhere() {
    let (publisher, delivery) = publisher("ns", "");
    publisher.send(&event("a"));
    delivery.finish(Duration::from_secs(5)).await;
}

#[test]
fn what_a_guest_causes_leaves_room_for_what_containerd_must_know() {
    let (publisher, mut queue) = Publisher::for_test();
    for _ in 0..2 * QUEUE {
        publisher.send(&event("c"));
    }
    assert_eq!(queue.len(), QUEUE - RESERVED);
    publisher.send(&events::TaskExit::default());
    let mut last = None;
    while let Ok(envelope) = queue.try_recv() {
        last = Some(envelope);
    }
    assert_eq!(last.unwrap().topic, "/tasks/exit");
}
