//! Spans: one for each call of containerd, and below it one for each phase of a start, in the trace that the
//! caller named.
//!
//! ```text
//!   containerd's span
//!   └─ containerd.task.Task/Create             a call (or containerd.sandbox.Sandbox/StartSandbox)
//!      ├─ vmm, kernel, agent                   phases of the pod
//!      └─ create ─traceparent─► the agent      a phase of the container
//!         ├─ attest ─traceparent─► the broker's own spans
//!         └─ pull ──traceparent─► the broker's own spans
//! ```
//!
//! A caller that names none, as containerd 1.x, gets the sandbox's own trace, so that a pod and its containers
//! are in one. What a guest adds is a number and a time: its spans have the shim's names, and there are at most
//! as many as a timeline has entries.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use agent_api::{ErrorCode, SpanId, TraceParent};
use tokio::sync::{mpsc, oneshot};

use crate::lock::lock;

/// Spans that wait to be sent; more are lost.
const QUEUE: usize = 256;
/// Containers of which a call is under way.
const MAX_UNDER_WAY: usize = 256;
/// The guest's part of a creation.
const CREATE: &str = "create";
/// Calls that make no trace of their own: they change nothing, and are made all the time.
const QUIET: [&str; 12] = [
    "state",
    "pids",
    "stats",
    "connect",
    "wait",
    "close_io",
    "resize_pty",
    "platform",
    "wait_sandbox",
    "sandbox_status",
    "ping_sandbox",
    "sandbox_metrics",
];
/// Methods of the pod's service without the pod in their name.
const PLATFORM: &str = "platform";

/// Who did what a span tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Service {
    Shim,
    Agent,
}

/// One span.
#[derive(Debug, Clone)]
pub(super) struct Span {
    pub(super) context: TraceParent,
    pub(super) parent: Option<SpanId>,
    pub(super) name: String,
    pub(super) service: Service,
    /// Whether it answers a caller.
    pub(super) is_server: bool,
    pub(super) start: SystemTime,
    pub(super) end: SystemTime,
    pub(super) container: Option<String>,
    pub(super) code: Option<ErrorCode>,
}

/// What the exporter gets.
#[derive(Debug)]
pub(super) enum Item {
    Span(Box<Span>),
    /// Send what there is, and say so.
    Flush(oneshot::Sender<()>),
}

/// Collects spans. Until it is known whether somebody wants them they wait; from then on it costs nothing where
/// nobody does.
#[derive(Debug)]
pub(super) struct Traces {
    is_off: AtomicBool,
    queue: mpsc::Sender<Item>,
    waiting: Mutex<Option<mpsc::Receiver<Item>>>,
    /// The calls under way that have phases, by their container.
    calls: Mutex<BTreeMap<String, UnderWay>>,
    own: Mutex<Option<[u8; 16]>>,
    began: SystemTime,
    lost: AtomicU64,
}

#[derive(Debug, Clone)]
struct UnderWay {
    context: TraceParent,
    since: SystemTime,
    /// The guest's part, once it was asked, and whether its span was put.
    making: Option<Making>,
}

#[derive(Debug, Clone, Copy)]
struct Making {
    span: SpanId,
    since: SystemTime,
    is_told: bool,
}

/// The span of a call that is under way.
#[derive(Debug)]
pub(super) struct Open {
    context: TraceParent,
    parent: Option<SpanId>,
    start: SystemTime,
    method: &'static str,
    container: String,
}

/// A phase that is over.
#[derive(Debug, Clone, Copy)]
pub struct Phase<'a> {
    /// Its name.
    pub name: &'static str,
    /// How long it took.
    pub took: Duration,
    /// How long ago it ended.
    pub ended: Duration,
    /// The container it was for.
    pub container: Option<&'a str>,
    /// Its span's id, where the guest told it.
    pub span: Option<SpanId>,
}

impl Traces {
    pub(super) fn new() -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        Self {
            is_off: AtomicBool::new(false),
            queue,
            waiting: Mutex::new(Some(waiting)),
            calls: Mutex::default(),
            own: Mutex::default(),
            began: SystemTime::now(),
            lost: AtomicU64::new(0),
        }
    }

    /// Nobody wants spans.
    pub(super) fn off(&self) {
        self.is_off.store(true, Ordering::Relaxed);
        drop(self.take_waiting());
        lock(&self.calls).clear();
    }

    /// The spans, for the one who sends them. There is one.
    pub(super) fn take_waiting(&self) -> Option<mpsc::Receiver<Item>> {
        lock(&self.waiting).take()
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    pub(super) fn lose(&self, spans: u64) {
        self.lost.fetch_add(spans, Ordering::Relaxed);
    }

    /// A call begins.
    pub(super) fn begin(
        &self,
        method: &'static str,
        container: &str,
        parent: Option<TraceParent>,
    ) -> Option<Open> {
        if self.is_off.load(Ordering::Relaxed) || (parent.is_none() && QUIET.contains(&method)) {
            return None;
        }
        let span = SpanId::new(random()?)?;
        let context = match parent {
            Some(parent) => parent.with_span(span),
            None => TraceParent::new(self.own_trace()?, span, true)?,
        };
        let start = SystemTime::now();
        if matches!(method, "create" | "start" | "start_sandbox") {
            let mut calls = lock(&self.calls);
            if calls.len() < MAX_UNDER_WAY {
                let call = UnderWay {
                    context,
                    since: start,
                    making: None,
                };
                calls.insert(container.to_owned(), call);
            }
        }
        Some(Open {
            context,
            parent: parent.map(TraceParent::span),
            start,
            method,
            container: container.to_owned(),
        })
    }

    /// A call is over.
    pub(super) fn end(&self, open: Open, outcome: Result<(), ErrorCode>) {
        let mut calls = lock(&self.calls);
        let is_its = |call: &UnderWay| call.context.span() == open.context.span();
        let call = match calls.get(&open.container).is_some_and(is_its) {
            true => calls.remove(&open.container),
            false => None,
        };
        drop(calls);
        // What the guest was asked for and did not do: others may be below it.
        let making = call.and_then(|call| call.making);
        if let Some(making) = making.filter(|making| !making.is_told) {
            self.put(Span {
                context: open.context.with_span(making.span),
                parent: Some(open.context.span()),
                name: CREATE.to_owned(),
                service: Service::Shim,
                is_server: false,
                start: making.since,
                end: SystemTime::now(),
                container: Some(open.container.clone()),
                code: outcome.err(),
            });
        }
        self.put(Span {
            context: open.context,
            parent: open.parent,
            name: full_name(open.method),
            service: Service::Shim,
            is_server: true,
            start: open.start,
            end: SystemTime::now(),
            container: Some(open.container),
            code: outcome.err(),
        });
    }

    /// The guest is asked to make a container: what it is told of the trace.
    pub(super) fn making(&self, container: &str) -> Option<TraceParent> {
        let mut calls = lock(&self.calls);
        let call = calls.get_mut(container)?;
        let span = SpanId::new(random()?)?;
        call.making = Some(Making {
            span,
            since: SystemTime::now(),
            is_told: false,
        });
        Some(call.context.with_span(span))
    }

    /// A phase is over.
    pub(super) fn phase(&self, sandbox: &str, phase: &Phase<'_>) {
        if self.is_off.load(Ordering::Relaxed) {
            return;
        }
        let is_agents = matches!(phase.name, "attest" | "pull");
        let mut calls = lock(&self.calls);
        let call = match phase.container {
            Some(container) => calls.get_mut(container),
            // The first container that needs it attests for all.
            None if is_agents => calls.values_mut().rfind(|call| call.making.is_some()),
            None => calls.get_mut(sandbox),
        };
        let Some(call) = call else { return };
        let making = call.making.as_mut().filter(|_| phase.name == CREATE);
        let making = making.map(|making| {
            making.is_told = true;
            making.span
        });
        let call = call.clone();
        drop(calls);
        // A guest that gave a span of ours for its own would make two of one.
        let is_ours = |span: &SpanId| {
            let made = call.making.map(|making| making.span);
            *span == call.context.span() || Some(*span) == made
        };
        let told = phase.span.filter(|span| !is_ours(span));
        let Some(span) = making.or(told).or_else(|| SpanId::new(random()?)) else {
            return;
        };
        let now = SystemTime::now();
        let end = now.checked_sub(phase.ended).unwrap_or(now).max(self.began);
        // A guest says how long it took; before its call there was nothing.
        let start = end.checked_sub(phase.took).unwrap_or(end).max(call.since);
        let parent = match call.making {
            Some(making) if is_agents => making.span,
            _ => call.context.span(),
        };
        self.put(Span {
            context: call.context.with_span(span),
            parent: Some(parent),
            name: phase.name.to_owned(),
            service: match phase.name {
                "kernel" | "agent" | "attest" | "pull" => Service::Agent,
                _ => Service::Shim,
            },
            is_server: false,
            start: start.min(end),
            end,
            container: phase.container.map(str::to_owned),
            code: None,
        });
    }

    /// Has what there is sent; answered when it was.
    pub(super) fn flush(&self) -> Option<oneshot::Receiver<()>> {
        if self.is_off.load(Ordering::Relaxed) || lock(&self.waiting).is_some() {
            return None;
        }
        let (done, flushed) = oneshot::channel();
        self.queue.try_send(Item::Flush(done)).ok()?;
        Some(flushed)
    }

    fn put(&self, span: Span) {
        if !span.context.is_sampled() {
            return;
        }
        if self.queue.try_send(Item::Span(Box::new(span))).is_err() {
            self.lose(1);
        }
    }

    fn own_trace(&self) -> Option<[u8; 16]> {
        let mut own = lock(&self.own);
        if own.is_none() {
            *own = random();
        }
        *own
    }
}

/// A method with its service.
fn full_name(method: &str) -> String {
    let service = match method == PLATFORM
        || method.ends_with("_sandbox")
        || method.starts_with("sandbox_")
    {
        true => "containerd.sandbox.Sandbox",
        false => "containerd.task.Task",
    };
    format!("{service}/{}", camel(method))
}

/// `resize_pty` as `ResizePty`.
fn camel(method: &str) -> String {
    let mut camel = String::with_capacity(method.len());
    for word in method.split('_') {
        let mut letters = word.chars();
        camel.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        camel.push_str(letters.as_str());
    }
    camel
}

/// The kernel's random bytes; nothing is traced where it has none for us.
fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")
        .ok()?
        .read_exact(&mut bytes)
        .ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(traces: &Traces) -> Vec<Span> {
        let mut waiting = traces.take_waiting().unwrap();
        let mut spans = Vec::new();
        while let Ok(Item::Span(span)) = waiting.try_recv() {
            spans.push(*span);
        }
        spans
    }

    fn phase<'a>(name: &'static str, container: Option<&'a str>) -> Phase<'a> {
        Phase {
            name,
            took: Duration::from_secs(1_000_000),
            ended: Duration::ZERO,
            container,
            span: None,
        }
    }

    #[test]
    fn phases_hang_below_their_call_and_the_guests_below_its_part() {
        let traces = Traces::new();
        let parent: TraceParent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
            .parse()
            .unwrap();
        let open = traces.begin("create", "pod", Some(parent)).unwrap();
        traces.phase("pod", &phase("vmm", None));
        let told = traces.making("pod").unwrap();
        let of_guest = SpanId::new([7; 8]);
        traces.phase(
            "pod",
            &Phase {
                span: of_guest,
                ..phase("attest", None)
            },
        );
        traces.phase("pod", &phase("create", Some("pod")));
        traces.phase("pod", &phase("create", Some("another")));
        traces.end(open, Err(ErrorCode::NotFound));
        let spans = spans(&traces);
        let names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
        assert_eq!(
            names,
            ["vmm", "attest", "create", "containerd.task.Task/Create"]
        );
        let [vmm, attest, create, call] = &spans[..] else {
            unreachable!()
        };
        assert_eq!(call.parent, Some(parent.span()));
        assert_eq!(vmm.parent, Some(call.context.span()));
        assert_eq!(create.context.span(), told.span());
        assert_eq!(create.parent, Some(call.context.span()));
        assert_eq!(
            (attest.parent, Some(attest.context.span())),
            (Some(told.span()), of_guest)
        );
        assert_eq!(
            (attest.service, call.code),
            (Service::Agent, Some(ErrorCode::NotFound))
        );
        // Whatever a guest says, nothing began before its call.
        assert!(
            spans
                .iter()
                .all(|span| span.start >= call.start && span.start <= span.end)
        );
        assert!(
            spans
                .iter()
                .all(|span| span.context.trace_id() == parent.trace_id())
        );
    }

    #[test]
    fn a_creation_that_the_guest_refuses_has_a_span_for_what_is_below_it() {
        let traces = Traces::new();
        let open = traces.begin("create", "c", None).unwrap();
        let told = traces.making("c").unwrap();
        traces.phase("pod", &phase("pull", Some("c")));
        traces.end(open, Err(ErrorCode::ImageDenied));
        let spans = spans(&traces);
        let [pull, create, _] = &spans[..] else {
            unreachable!()
        };
        assert_eq!(pull.parent, Some(told.span()));
        assert_eq!(
            (create.context.span(), create.code),
            (told.span(), Some(ErrorCode::ImageDenied))
        );
    }

    #[test]
    fn without_a_caller_a_pod_has_one_trace_and_who_wants_none_gets_none() {
        let traces = Traces::new();
        for (method, container) in [
            ("create", "pod"),
            ("create", "c"),
            ("start", "c"),
            ("state", "c"),
        ] {
            if let Some(open) = traces.begin(method, container, None) {
                traces.end(open, Ok(()));
            }
        }
        let unwanted = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
        let open = traces.begin("create", "d", unwanted.parse().ok()).unwrap();
        assert!(!traces.making("d").unwrap().is_sampled());
        traces.end(open, Ok(()));
        let spans = spans(&traces);
        assert_eq!(spans.len(), 3, "{spans:?}");
        let first = spans[0].context.trace_id();
        assert!(
            spans
                .iter()
                .all(|span| span.context.trace_id() == first && span.parent.is_none())
        );
    }

    #[test]
    fn a_flood_is_lost_and_counted_and_off_is_off() {
        let traces = Traces::new();
        let open = traces.begin("create", "pod", None).unwrap();
        for _ in 0..QUEUE + 50 {
            traces.phase("pod", &phase("attest", Some("pod")));
        }
        assert_eq!(traces.lost(), 50);
        traces.off();
        traces.end(open, Ok(()));
        assert!(traces.begin("create", "pod", None).is_none());
        assert!(traces.flush().is_none());
    }
}
