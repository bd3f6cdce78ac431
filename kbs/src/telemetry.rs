//! Traces: one span for each request, in the trace that the caller named, sent as OTLP in JSON.
//!
//! A span says what the log says: the pattern of the path, the status, the kind of an error and its
//! ticket. Sending holds up no request: spans wait in a queue, and what does not fit is dropped.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use kbs_protocol::ErrorKind;
use rand::Rng;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use transport::{Client, ClientConfig, PlainHttp, Roots, RootsError, TcpDial, bytes_capped};

use crate::{config::Telemetry, file};

/// Spans that wait to be sent.
const QUEUE: usize = 4096;
/// Spans of one message.
const BATCH: usize = 512;
/// How long a span waits for others.
const PAUSE: Duration = Duration::from_secs(2);
/// For one message, and for the last ones at the end.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of the collector's answer.
const ANSWER_BYTES: usize = 64 * 1024;
const PATH: &str = "/v1/traces";
/// OTLP's number for the side that answers, and for a status that is an error.
const SERVER: u32 = 2;
const ERROR: u32 = 2;

/// Where spans are put.
pub(crate) struct Traces {
    queue: mpsc::Sender<Value>,
    /// Put paths into spans, and with them the names of resources.
    names: bool,
}

/// A span that has begun.
pub(crate) struct Begun {
    context: Context,
    start: SystemTime,
    path: Option<String>,
}

/// What is told of a request when it ends.
pub(crate) struct Ended<'a> {
    pub(crate) method: &'a Method,
    pub(crate) route: Option<&'a str>,
    pub(crate) status: StatusCode,
    pub(crate) error: Option<ErrorKind>,
    pub(crate) ticket: Option<&'a str>,
}

/// Which trace, and which span of it called.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Context {
    trace: String,
    parent: Option<String>,
    sampled: bool,
}

impl Traces {
    /// A queue, and who empties it.
    ///
    /// # Errors
    /// When the roots for the collector cannot be used.
    pub(crate) fn new(config: &Telemetry) -> Result<Option<(Self, Exporter)>, TelemetryError> {
        let Some(endpoint) = &config.otlp_endpoint else {
            return Ok(None);
        };
        let roots = match &config.ca {
            None => Roots::web(),
            Some(path) => {
                Roots::pinned(&file::read_text(path, file::SMALL).map_err(|source| {
                    let path = path.clone();
                    TelemetryError::Read { path, source }
                })?)?
            }
        };
        // A span holds nothing that has to be hidden, and the operator wrote the address.
        let client = ClientConfig {
            plain_http: PlainHttp::Allow,
            ..ClientConfig::new(roots)
        };
        let (queue, waiting) = mpsc::channel(QUEUE);
        let exporter = Exporter {
            waiting,
            client: Client::new(Arc::new(TcpDial), client)?,
            uri: format!("{}{PATH}", endpoint.trim_end_matches('/')),
            failing: false,
        };
        let names = config.resource_names;
        Ok(Some((Self { queue, names }, exporter)))
    }

    /// Begins a span, unless the caller wants none of this trace.
    pub(crate) fn begin(&self, headers: &HeaderMap, path: &str) -> Option<Begun> {
        let context = Context::of(headers);
        context.sampled.then(|| Begun {
            context,
            start: SystemTime::now(),
            path: self.names.then(|| path.to_owned()),
        })
    }

    /// Ends it. It is lost where the queue is full.
    pub(crate) fn end(&self, begun: Begun, ended: &Ended<'_>) {
        let lost = self.queue.try_send(span(begun, ended)).is_err();
        if lost {
            tracing::debug!("a span is lost: the queue is full");
        }
    }
}

impl Context {
    /// The caller's, by W3C's `traceparent`; a new one where there is none that reads.
    fn of(headers: &HeaderMap) -> Self {
        let sent = headers
            .get("traceparent")
            .and_then(|value| value.to_str().ok());
        sent.and_then(Self::parse).unwrap_or_else(|| Self {
            trace: random_hex::<16>(),
            parent: None,
            sampled: true,
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.trim().split('-');
        let mut field = |chars: usize| {
            let field = fields.next()?;
            let hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
            (field.len() == chars && field.bytes().all(hex)).then_some(field)
        };
        let (version, trace, parent, flags) = (field(2)?, field(32)?, field(16)?, field(2)?);
        let zero = |text: &str| text.bytes().all(|c| c == b'0');
        // A later version may have more fields behind these.
        let ends = version != "00" || fields.next().is_none();
        if version == "ff" || zero(trace) || zero(parent) || !ends {
            return None;
        }
        Some(Self {
            trace: trace.to_owned(),
            parent: Some(parent.to_owned()),
            sampled: u8::from_str_radix(flags, 16).ok()? & 1 == 1,
        })
    }
}

fn span(begun: Begun, ended: &Ended<'_>) -> Value {
    let text = |key: &str, value: &str| json!({"key": key, "value": {"stringValue": value}});
    let mut attributes = vec![
        text("http.request.method", ended.method.as_str()),
        json!({
            "key": "http.response.status_code",
            "value": {"intValue": ended.status.as_u16().to_string()},
        }),
    ];
    attributes.extend(ended.route.map(|route| text("http.route", route)));
    attributes.extend(ended.error.map(|kind| text("error.type", kind.name())));
    attributes.extend(ended.ticket.map(|ticket| text("kbs.ticket", ticket)));
    attributes.extend(begun.path.map(|path| text("url.path", &path)));
    let mut span = json!({
        "traceId": begun.context.trace,
        "spanId": random_hex::<8>(),
        "name": format!("{} {}", ended.method, ended.route.unwrap_or("none")),
        "kind": SERVER,
        "startTimeUnixNano": nanos(begun.start),
        "endTimeUnixNano": nanos(SystemTime::now()),
        "attributes": attributes,
        "status": {},
    });
    if let Some(parent) = begun.context.parent {
        span["parentSpanId"] = parent.into();
    }
    if ended.status.is_server_error() {
        span["status"] = json!({"code": ERROR});
    }
    span
}

/// Empties the queue.
pub(crate) struct Exporter {
    waiting: mpsc::Receiver<Value>,
    client: Client,
    uri: String,
    failing: bool,
}

impl Exporter {
    /// Sends spans until it is told to finish, and then those that still wait.
    pub(crate) async fn run(mut self, finish: oneshot::Receiver<()>) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut pause = tokio::time::interval(PAUSE);
        tokio::pin!(finish);
        loop {
            let room = BATCH.saturating_sub(batch.len());
            tokio::select! {
                _ = &mut finish => break,
                _ = pause.tick() => {}
                count = self.waiting.recv_many(&mut batch, room) => {
                    if count == 0 {
                        break;
                    }
                    if batch.len() < BATCH {
                        continue;
                    }
                }
            }
            self.send(&mut batch).await;
        }
        self.waiting.close();
        let rest = async {
            loop {
                let room = BATCH.saturating_sub(batch.len());
                if self.waiting.recv_many(&mut batch, room).await == 0 {
                    break self.send(&mut batch).await;
                }
                self.send(&mut batch).await;
            }
        };
        if tokio::time::timeout(PATIENCE, rest).await.is_err() {
            tracing::warn!("the last spans could not be sent in time");
        }
    }

    /// Sends a batch and forgets it, however that ends.
    async fn send(&mut self, batch: &mut Vec<Value>) {
        if batch.is_empty() {
            return;
        }
        let spans = batch.len();
        let message = json!({"resourceSpans": [{
            "resource": {"attributes": [
                {"key": "service.name", "value": {"stringValue": "kbs"}},
                {"key": "service.version", "value": {"stringValue": env!("CARGO_PKG_VERSION")}},
            ]},
            "scopeSpans": [{"scope": {"name": "kbs"}, "spans": std::mem::take(batch)}],
        }]});
        let sent = tokio::time::timeout(PATIENCE, self.post(message.to_string().into())).await;
        match sent.unwrap_or_else(|_| Err("no answer in time".to_owned())) {
            Ok(()) => self.failing = false,
            Err(error) if self.failing => tracing::debug!(error, spans, "spans are lost"),
            Err(error) => {
                self.failing = true;
                tracing::warn!(error, spans, "spans are lost, and so may be the next ones");
            }
        }
    }

    async fn post(&self, message: Bytes) -> Result<(), String> {
        let request = Request::post(&self.uri)
            .header(header::CONTENT_TYPE, "application/json")
            .body(message)
            .map_err(|error| error.to_string())?;
        let answer = self.client.send(request).await;
        let answer = answer.map_err(|error| error.to_string())?;
        let status = answer.status();
        // Read, so that the connection can be used again.
        let body = bytes_capped(answer.into_body(), ANSWER_BYTES).await;
        body.map_err(|error| error.to_string())?;
        if status.is_success() {
            return Ok(());
        }
        Err(format!("the collector answered {status}"))
    }
}

fn random_hex<const BYTES: usize>() -> String {
    let mut bytes = [0; BYTES];
    rand::rng().fill_bytes(&mut bytes);
    hex::encode(bytes)
}

fn nanos(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_nanos().to_string()
}

/// Traces that cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The file with the roots.
    #[error("telemetry: read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The roots.
    #[error("telemetry: ca: {0}")]
    Roots(#[from] RootsError),
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const PARENT: &str = "00f067aa0ba902b7";

    #[test]
    fn a_callers_trace_is_taken_and_what_does_not_read_begins_a_new_one() {
        let parse = |version: &str, flags: &str, more: &str| {
            Context::parse(&format!("{version}-{TRACE}-{PARENT}-{flags}{more}"))
        };
        let taken = parse("00", "01", "").unwrap();
        assert_eq!((taken.trace.as_str(), taken.sampled), (TRACE, true));
        assert_eq!(taken.parent.as_deref(), Some(PARENT));
        assert!(!parse("00", "00", "").unwrap().sampled);
        assert!(parse("01", "01", "-more").is_some());
        for bad in [
            parse("00", "01", "-more"),
            parse("ff", "01", ""),
            parse("00", "0", ""),
        ] {
            assert_eq!(bad, None);
        }
        let zeros = format!("00-{}-{PARENT}-01", "0".repeat(32));
        let upper = format!("00-{}-{PARENT}-01", TRACE.to_uppercase());
        for bad in [zeros.as_str(), upper.as_str(), "", "00", "00----"] {
            assert_eq!(Context::parse(bad), None, "{bad}");
        }
        let new = Context::of(&HeaderMap::new());
        assert_eq!((new.trace.len(), new.parent), (32, None));
    }
}
