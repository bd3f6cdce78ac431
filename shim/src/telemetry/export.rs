//! Sends spans as OTLP in JSON over HTTP, in batches. A collector that is slow or away costs spans, and nothing
//! else: nobody waits for it but the shim's last moment, and that briefly.
//!
//! Each message has a connection of its own, in plain HTTP: the collector is the node's, and a client of TLS
//! would be in the memory of every pod.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{Request, header};
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, warn};
use url::Url;

use super::Telemetry;
use super::resolve::Resolver;
use super::span::{Item, Service, Span};
use crate::exchange::exchange;

/// Spans of one message.
const BATCH: usize = 128;
/// How long a span waits for others.
const PAUSE: Duration = Duration::from_secs(1);
/// For one message.
const PATIENCE: Duration = Duration::from_secs(5);
/// OTLP's port for HTTP.
const PORT: u16 = 4318;
/// Bytes of the collector's answer.
const ANSWER_BYTES: usize = 64 * 1024;
/// OTLP's numbers for the side that answers, for what is inside, and for a status that is an error.
const SERVER: u32 = 2;
const INTERNAL: u32 = 1;
const ERROR: u32 = 2;

/// Empties the queue.
pub(super) struct Exporter {
    waiting: mpsc::Receiver<Item>,
    url: Url,
    sandbox: String,
    telemetry: Telemetry,
    failing: bool,
    resolver: Resolver,
}

impl Exporter {
    /// One that sends to `url`.
    pub(super) fn new(
        waiting: mpsc::Receiver<Item>,
        url: Url,
        sandbox: &str,
        telemetry: &Telemetry,
    ) -> Self {
        let host = url.host_str().unwrap_or_default();
        // A literal of IPv6 is in brackets, which no resolver takes.
        let name = host.trim_start_matches('[').trim_end_matches(']');
        let resolver = Resolver::new(name, url.port_or_known_default().unwrap_or(PORT));
        Self {
            waiting,
            url,
            sandbox: sandbox.to_owned(),
            telemetry: telemetry.clone(),
            failing: false,
            resolver,
        }
    }

    /// Sends spans for as long as there can be some.
    pub(super) async fn run(mut self) {
        let mut batch = Vec::new();
        let mut due = Instant::now();
        loop {
            let item = tokio::select! {
                item = self.waiting.recv() => item,
                () = sleep_until(due), if !batch.is_empty() => {
                    self.send(&mut batch).await;
                    continue;
                }
            };
            match item {
                None => return self.send(&mut batch).await,
                Some(Item::Flush(done)) => {
                    self.send(&mut batch).await;
                    // Who asked may have given up.
                    let _ = done.send(());
                }
                Some(Item::Span(span)) => {
                    if batch.is_empty() {
                        due = Instant::now() + PAUSE;
                    }
                    batch.push(*span);
                    if batch.len() >= BATCH {
                        self.send(&mut batch).await;
                    }
                }
            }
        }
    }

    /// Sends a batch and forgets it, however that ends.
    async fn send(&mut self, batch: &mut Vec<Span>) {
        if batch.is_empty() {
            return;
        }
        let message = message(&self.sandbox, batch).to_string();
        let spans = std::mem::take(batch).len();
        let sent = timeout(PATIENCE, self.post(message.into())).await;
        match sent.unwrap_or_else(|_| Err("no answer in time".to_owned())) {
            Ok(()) => self.failing = false,
            Err(error) => {
                self.telemetry.lose_spans(spans);
                if self.failing {
                    debug!(error, spans, "spans are lost");
                } else {
                    warn!(error, spans, "spans are lost, and so may be the next ones");
                }
                self.failing = true;
            }
        }
    }

    async fn post(&mut self, message: Bytes) -> Result<(), String> {
        let told = |error: &dyn std::fmt::Display| error.to_string();
        let host = self.url.host_str().unwrap_or_default();
        let port = self.url.port_or_known_default().unwrap_or(PORT);
        let addresses = self.resolver.addresses().await?;
        let stream = TcpStream::connect(addresses.as_slice())
            .await
            .map_err(|error| told(&error))?;
        let request = Request::post(self.url.path())
            .header(header::HOST, format!("{host}:{port}"))
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CONNECTION, "close")
            .body(Full::new(message))
            .map_err(|error| told(&error))?;
        let answer = exchange(stream, request, ANSWER_BYTES).await;
        let (status, _) = answer.map_err(|error| told(&error))?;
        match status.is_success() {
            true => Ok(()),
            false => Err(format!("the collector answered {status}")),
        }
    }
}

/// The request that OTLP has for traces.
fn message(sandbox: &str, spans: &[Span]) -> Value {
    let of = |service: Service, name: &str| {
        let its = spans.iter().filter(|span| span.service == service);
        let its: Vec<Value> = its.map(span).collect();
        let resource = [
            attribute("service.name", name),
            attribute("service.version", env!("CARGO_PKG_VERSION")),
            attribute("cloister.sandbox", sandbox),
        ];
        (!its.is_empty()).then(|| {
            json!({
                "resource": {"attributes": resource},
                "scopeSpans": [{"scope": {"name": name}, "spans": its}],
            })
        })
    };
    let all = [
        of(Service::Shim, "cloister-shim"),
        of(Service::Agent, "cloister-agent"),
    ];
    json!({"resourceSpans": all.into_iter().flatten().collect::<Vec<_>>()})
}

fn span(span: &Span) -> Value {
    let mut attributes = Vec::new();
    let container = span.container.as_deref();
    attributes.extend(container.map(|id| attribute("container.id", id)));
    attributes.extend(span.code.map(|code| attribute("error.type", code.name())));
    let mut value = json!({
        "traceId": span.context.trace_id(),
        "spanId": span.context.span().to_string(),
        "name": span.name,
        "kind": if span.is_server { SERVER } else { INTERNAL },
        "startTimeUnixNano": nanos(span.start),
        "endTimeUnixNano": nanos(span.end),
        "attributes": attributes,
        "status": {},
    });
    if let Some(parent) = span.parent {
        value["parentSpanId"] = parent.to_string().into();
    }
    if let Some(code) = span.code {
        value["status"] = json!({"code": ERROR, "message": code.name()});
    }
    value
}

fn attribute(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}

fn nanos(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_nanos().to_string()
}
