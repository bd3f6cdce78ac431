//! Events for containerd, in order, retried while containerd restarts.
//!
//! Without an address (CRI-O gives none) events are only logged. Publishing never holds up a call:
//! the queue is bounded, and drops the newest event when containerd is away for long.

use std::time::Duration;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageDyn, MessageField};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};
use ttrpc::context::Context;

use crate::clock;

/// Events that wait for containerd.
const MAX_QUEUED: usize = 1024;
/// How often an event is tried.
const TRIES: u32 = 10;
/// How long containerd may take for one.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait before the next try; it doubles up to eight of these.
const RETRY_DELAY: Duration = Duration::from_millis(100);
/// How long the shim's end waits for the last events.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

enum Item {
    Event(Envelope),
    Flush(oneshot::Sender<()>),
}

/// Sends events to containerd.
#[derive(Clone)]
pub struct Publisher {
    namespace: String,
    queue: mpsc::Sender<Item>,
    has_listener: bool,
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher")
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

impl Publisher {
    /// A publisher to containerd's ttRPC address, or to the log alone where there is none.
    #[must_use]
    pub fn new(address: Option<String>, namespace: &str) -> Self {
        let (queue, items) = mpsc::channel(MAX_QUEUED);
        let has_listener = address.is_some();
        tokio::spawn(forward_all(address, items));
        Self {
            namespace: namespace.to_owned(),
            queue,
            has_listener,
        }
    }

    /// Whether somebody gets the events.
    #[must_use]
    pub fn has_listener(&self) -> bool {
        self.has_listener
    }

    /// Queues one event.
    pub fn publish(&self, topic: &str, event: &dyn MessageDyn) {
        let Ok(event) = any(event) else { return };
        let envelope = Envelope {
            timestamp: MessageField::some(clock::timestamp(std::time::SystemTime::now())),
            namespace: self.namespace.clone(),
            topic: topic.to_owned(),
            event: MessageField::some(event),
            ..Default::default()
        };
        if self.queue.try_send(Item::Event(envelope)).is_err() {
            warn!(topic, "containerd takes no events: this one is dropped");
        }
    }

    /// Waits until the events so far are sent, or it is too late for them.
    pub async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        if self.queue.send(Item::Flush(done)).await.is_ok() {
            let _ = timeout(FLUSH_TIMEOUT, flushed).await;
        }
    }
}

/// Packs a message under its bare name, as containerd's `typeurl` does.
///
/// # Errors
/// Where the message is too large to be written.
pub fn any(message: &dyn MessageDyn) -> containerd_shim_protos::protobuf::Result<Any> {
    let mut value = Vec::new();
    message.write_to_vec_dyn(&mut value)?;
    Ok(Any {
        type_url: message.descriptor_dyn().full_name().to_owned(),
        value,
        ..Default::default()
    })
}

async fn forward_all(address: Option<String>, mut items: mpsc::Receiver<Item>) {
    let mut client = None;
    while let Some(item) = items.recv().await {
        match (item, &address) {
            (Item::Flush(done), _) => {
                let _ = done.send(());
            }
            (Item::Event(event), None) => debug!(topic = event.topic, "event"),
            (Item::Event(event), Some(address)) => forward(address, &mut client, event).await,
        }
    }
}

async fn forward(address: &str, client: &mut Option<EventsClient>, event: Envelope) {
    let topic = event.topic.clone();
    let request = ForwardRequest {
        envelope: MessageField::some(event),
        ..Default::default()
    };
    for attempt in 0..TRIES {
        if client.is_none() {
            *client = connect(address).await;
        }
        if let Some(connected) = client.as_ref() {
            match timeout(
                FORWARD_TIMEOUT,
                connected.forward(Context::default(), &request),
            )
            .await
            {
                Ok(Ok(_)) => return,
                Ok(Err(error)) => debug!(%error, topic, "event was not taken"),
                Err(_) => debug!(topic, "event was not taken in time"),
            }
            *client = None;
        }
        sleep(RETRY_DELAY * 2_u32.pow(attempt.min(3))).await;
    }
    warn!(
        topic,
        size = request.compute_size(),
        "containerd did not take an event"
    );
}

async fn connect(address: &str) -> Option<EventsClient> {
    let address = if address.contains("://") {
        address.to_owned()
    } else {
        format!("unix://{address}")
    };
    match Client::connect(&address).await {
        Ok(client) => Some(EventsClient::new(client)),
        Err(error) => {
            debug!(%error, address, "connection for events");
            None
        }
    }
}
