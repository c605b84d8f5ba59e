//! Events for containerd, in order and complete.
//!
//! Calls only put an event into a queue. One task sends them, one after the
//! other, to containerd's ttrpc socket, and tries again as long as containerd is
//! not there: after its restart it hears what has happened meanwhile.

use std::time::{Duration, SystemTime};

use containerd_shim_protos::events::task as events;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::EventsClient;
use containerd_shim_protos::topics;
use protobuf::MessageFull;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::timestamp::Timestamp;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use ttrpc::context;

/// Events that wait while containerd is away. More would be a pod that nobody
/// looks after.
const QUEUE: usize = 4096;

/// Places in the queue that are kept for events without which containerd does not know what
/// there is: a guest causes the others as often as it likes.
const RESERVED: usize = QUEUE / 2;

/// How long containerd may take for an event.
const DEADLINE: Duration = Duration::from_secs(5);

/// Between two tries, at first and at last.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Where a kind of event belongs.
pub(crate) trait Event: MessageFull {
    /// Its topic.
    const TOPIC: &'static str;
    /// Whether it is about the life of a container or process.
    const LIFECYCLE: bool;
}

macro_rules! topics {
    ($lifecycle:literal; $($event:ident: $topic:ident,)*) => {
        $(impl Event for events::$event {
            const TOPIC: &'static str = topics::$topic;
            const LIFECYCLE: bool = $lifecycle;
        })*
    };
}

topics! {
    true;
    TaskCreate: TASK_CREATE_EVENT_TOPIC,
    TaskStart: TASK_START_EVENT_TOPIC,
    TaskDelete: TASK_DELETE_EVENT_TOPIC,
    TaskExit: TASK_EXIT_EVENT_TOPIC,
    TaskExecAdded: TASK_EXEC_ADDED_EVENT_TOPIC,
    TaskExecStarted: TASK_EXEC_STARTED_EVENT_TOPIC,
    TaskPaused: TASK_PAUSED_EVENT_TOPIC,
    TaskResumed: TASK_RESUMED_EVENT_TOPIC,
}

topics! {
    false;
    TaskOOM: TASK_OOM_EVENT_TOPIC,
}

/// Takes events. All of its clones feed one queue.
#[derive(Clone, Debug)]
pub(crate) struct Publisher {
    namespace: String,
    queue: mpsc::Sender<Envelope>,
}

/// The task that sends the events.
#[derive(Debug)]
pub(crate) struct Delivery {
    task: JoinHandle<()>,
    stop: oneshot::Sender<()>,
}

/// A queue of events of `namespace` for the containerd at `address`; with an
/// empty address nobody wants them.
pub(crate) fn publisher(namespace: &str, address: &str) -> (Publisher, Delivery) {
    let (queue, events) = mpsc::channel(QUEUE);
    let publisher = Publisher {
        namespace: namespace.to_owned(),
        queue,
    };
    let address = address.strip_prefix("unix://").unwrap_or(address);
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(deliver(events, address.to_owned(), stopped));
    (publisher, Delivery { task, stop })
}

impl Publisher {
    /// Sends `event` after all that were sent before.
    pub(crate) fn send<E: Event>(&self, event: &E) {
        let envelope = match self.envelope(event) {
            Ok(envelope) => envelope,
            Err(error) => return log::error!("event {}: {error}", E::TOPIC),
        };
        log::debug!("event {}: {event}", E::TOPIC);
        if !E::LIFECYCLE && self.queue.capacity() <= RESERVED {
            return log::debug!("event {} is lost: too many wait", E::TOPIC);
        }
        if let Err(error) = self.queue.try_send(envelope) {
            log::error!("event {} is lost: {error}", E::TOPIC);
        }
    }

    fn envelope<E: Event>(&self, event: &E) -> protobuf::Result<Envelope> {
        Ok(Envelope {
            timestamp: Some(Timestamp::from(SystemTime::now())).into(),
            namespace: self.namespace.clone(),
            topic: E::TOPIC.to_owned(),
            event: Some(Any {
                type_url: E::descriptor().full_name().to_owned(),
                value: event.write_to_bytes()?,
                ..Default::default()
            })
            .into(),
            ..Default::default()
        })
    }

    /// A publisher whose events are handed out.
    #[cfg(test)]
    pub(crate) fn for_test() -> (Self, mpsc::Receiver<Envelope>) {
        let (queue, events) = mpsc::channel(QUEUE);
        let publisher = Self {
            namespace: "test".to_owned(),
            queue,
        };
        (publisher, events)
    }
}

impl Delivery {
    /// Takes no more events, and waits until the last is sent, but no longer than
    /// `limit`.
    pub(crate) async fn finish(mut self, limit: Duration) {
        // Nobody listens when the task has ended by itself.
        let _ = self.stop.send(());
        if tokio::time::timeout(limit, &mut self.task).await.is_err() {
            log::warn!("containerd does not take the last events");
            self.task.abort();
        }
    }
}

async fn deliver(
    mut events: mpsc::Receiver<Envelope>,
    address: String,
    mut stop: oneshot::Receiver<()>,
) {
    let mut containerd = None;
    let mut stopping = false;
    loop {
        let next = tokio::select! {
            biased;
            next = events.recv() => next,
            _ = &mut stop, if !stopping => {
                stopping = true;
                events.close();
                continue;
            }
        };
        let Some(envelope) = next else {
            break;
        };
        if address.is_empty() {
            continue;
        }
        let request = ForwardRequest {
            envelope: Some(envelope).into(),
            ..Default::default()
        };
        let mut pause = RETRY.0;
        while let Err(error) = forward(&mut containerd, &address, &request).await {
            log::debug!("events to {address}: {error}");
            containerd = None;
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
        }
    }
}

async fn forward(
    containerd: &mut Option<EventsClient>,
    address: &str,
    request: &ForwardRequest,
) -> ttrpc::Result<()> {
    let client = match containerd {
        Some(client) => client,
        None => containerd.insert(connect(address).await?),
    };
    let forwarded = client.forward(context::with_duration(DEADLINE), request);
    // ttrpc's own deadline does not cover everything.
    match tokio::time::timeout(DEADLINE, forwarded).await {
        // An event that containerd does not want is not offered again.
        Ok(Err(ttrpc::Error::RpcStatus(status))) if !passes(status.code()) => {
            log::error!("containerd refuses an event: {}", status.message);
            Ok(())
        }
        Ok(answer) => answer.map(drop),
        Err(late) => Err(ttrpc::Error::Others(late.to_string())),
    }
}

/// Whether an error of this kind may be another one next time.
fn passes(code: ttrpc::Code) -> bool {
    use ttrpc::Code;
    matches!(
        code,
        Code::UNAVAILABLE | Code::DEADLINE_EXCEEDED | Code::CANCELLED | Code::UNKNOWN
    )
}

async fn connect(address: &str) -> ttrpc::Result<EventsClient> {
    let stream = tokio::net::UnixStream::connect(address)
        .await
        .map_err(|error| ttrpc::Error::Socket(error.to_string()))?;
    Ok(EventsClient::new(ttrpc::asynchronous::Client::new(
        stream.into(),
    )))
}

#[cfg(test)]
#[path = "events_test.rs"]
mod tests;
